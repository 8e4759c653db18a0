"""Train with TRL's RewardTrainer on a judge's probability and a weight for every pair.

    python examples/trl_reward.py

``q`` is the probability that the first completion is the better one; q = 1 with weight 1 is TRL's
own loss. The sum is divided by the number of pairs, so accumulation over micro-batches is exact.
"""

import sys
import tempfile
from typing import Any

import tiny
import torch
from datasets import Dataset
from torch import Tensor
from trl import RewardConfig, RewardTrainer
from trl.trainer.reward_trainer import DataCollatorForPreference

from w2s_fast.losses.preference import Answers, BradleyTerry


class SoftPairs(DataCollatorForPreference):
    """Add the columns ``q`` and ``weight``, which TRL's collator drops."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        extra = {k: torch.tensor([e[k] for e in examples]) for k in ("q", "weight")}
        return super().torch_call(examples) | extra


class SoftRewardTrainer(RewardTrainer):
    preference = BradleyTerry()

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor | tuple[Tensor, Any]:
        q, weight = inputs.pop("q"), inputs.pop("weight")
        _, outputs = super().compute_loss(model, inputs, return_outputs=True)  # TRL's metrics
        chosen, rejected = outputs.logits.squeeze(-1).chunk(2)
        out = self.preference(Answers(chosen), Answers(rejected), q, weight=weight)
        loss = out.loss_sum / len(q)
        return (loss, outputs) if return_outputs else loss


def main(folder: str, **settings: Any) -> SoftRewardTrainer:
    trainer = SoftRewardTrainer(
        tiny.classifier(num_labels=1),
        RewardConfig(folder, **tiny.SETTINGS | tiny.TRL | settings),
        train_dataset=Dataset.from_list(tiny.pairs()),
        data_collator=SoftPairs(pad_token_id=tiny.tokenizer.pad_token_id),
        processing_class=tiny.tokenizer,
    )
    trainer.train()
    return trainer


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(sys.argv[1] if len(sys.argv) > 1 else folder)
