"""Train with TRL's DPOTrainer on a judge's probability and a weight for every pair.

    python examples/trl_dpo.py

``q`` is the probability that the first completion is the better one; q = 1 with weight 1 is TRL's
own loss. The patched model returns log-probabilities, and only completion tokens reach its head.
Reference log-probabilities are computed once, by the same model before training. Any loss of
``w2s_fast.losses.preference`` can be used. The sum is divided by the number of pairs, so
accumulation over micro-batches is exact.
"""

import sys
import tempfile
from typing import Any

import tiny
import torch
from datasets import Dataset
from torch import Tensor
from trl import DPOConfig, DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

import w2s_fast
from w2s_fast.losses.preference import DPO, Answers


class SoftPairs(DataCollatorForPreference):
    """Add the columns ``q`` and ``weight``, which TRL's collator drops."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        extra = {k: torch.tensor([e[k] for e in examples]) for k in ("q", "weight")}
        return super().torch_call(examples) | extra


class SoftDPOTrainer(DPOTrainer):
    preference = DPO(beta=0.1)

    def logprob(self, model: Any, inputs: Any) -> tuple[Tensor, ...]:
        labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
        columns = {k: inputs[k] for k in ("input_ids", "attention_mask")}
        logp = model(**columns, labels=labels, return_logprob=True, use_cache=False)
        return logp.chunk(2)

    @torch.no_grad()
    def compute_ref_log_probs(self, model: Any, inputs: Any) -> tuple[Tensor, ...]:
        return self.logprob(model, inputs)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        logp = self.logprob(model, inputs)
        lengths = inputs["completion_mask"][:, 1:].sum(1).chunk(2)
        names = ("ref_chosen_logps", "ref_rejected_logps")
        first, second = (Answers(logp[i], inputs[names[i]], lengths[i]) for i in range(2))
        out = self.preference(first, second, inputs["q"], weight=inputs["weight"])
        metrics = self._metrics["train" if self.model.training else "eval"]
        for name in ("margin", "accuracy"):
            mean = out.metrics[name] / out.metrics["pairs"]
            metrics[f"rewards/{name}"].append(self.accelerator.gather(mean).mean().item())
        loss = out.loss_sum / len(inputs["q"])
        return (loss, {}) if return_outputs else loss


def main(folder: str, **settings: Any) -> SoftDPOTrainer:
    settings = tiny.SETTINGS | tiny.TRL | {"precompute_ref_log_probs": True} | settings
    trainer = SoftDPOTrainer(
        w2s_fast.patch(tiny.lm()),
        args=DPOConfig(folder, **settings),
        train_dataset=Dataset.from_list(tiny.pairs()),
        data_collator=SoftPairs(pad_token_id=tiny.tokenizer.pad_token_id),
        processing_class=tiny.tokenizer,
    )
    trainer.train()
    return trainer


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(sys.argv[1] if len(sys.argv) > 1 else folder)
