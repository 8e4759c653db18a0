"""Train with TRL's SFTTrainer on weak labels, using the model's own loss.

    python examples/trl_sft.py

SFTTrainer computes its own loss from hidden states. One override calls the ``compute_loss`` of
transformers' Trainer instead, which uses the weak-to-strong loss of the patched model; accumulation
is exact. ``entropy`` and ``mean_token_accuracy`` are no longer logged.
"""

import sys
import tempfile
from typing import Any

import tiny
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

import w2s_fast
from w2s_fast.integrations.batches import WeakLabelCollator
from w2s_fast.integrations.patching import progress_callback


class WeakSFTTrainer(SFTTrainer):
    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        return super(SFTTrainer, self).compute_loss(*args, **kwargs)  # skip SFTTrainer's own loss


def main(folder: str, spec: str = "logconf:aux_coef=0.5", **settings: Any) -> WeakSFTTrainer:
    model = w2s_fast.patch(tiny.lm(), loss=spec)
    trainer = WeakSFTTrainer(
        model,
        SFTConfig(folder, **tiny.SETTINGS | tiny.TRL | settings),
        train_dataset=Dataset.from_list(tiny.rows()),
        data_collator=WeakLabelCollator(tiny.tokenizer),
        processing_class=tiny.tokenizer,
        callbacks=[progress_callback(model)],
    )
    trainer.train()
    return trainer


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(sys.argv[1] if len(sys.argv) > 1 else folder)
