"""Pass any loss to transformers' Trainer as ``compute_loss_func``, for a model with logits.

    python examples/hf_compute_loss_func.py

A classifier learns soft weak labels with the confidence loss. The schedule follows the Trainer's
steps, and accumulated gradients equal those of the whole batch. For causal language models with
large vocabularies use ``hf_trainer.py``, which computes no logits.
"""

import sys
import tempfile
from typing import Any

import tiny
from torch import Tensor
from transformers import DataCollatorWithPadding, Trainer, TrainerCallback, TrainingArguments

import w2s_fast


class WeakLoss(TrainerCallback):
    """Compute the loss; as a callback, track the progress of training for its schedule."""

    def __init__(self, spec: str) -> None:
        self.loss, self.step_frac, self.step = w2s_fast.make_loss(spec), 0.0, 0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.step_frac, self.step = state.global_step / state.max_steps, state.global_step

    def __call__(self, outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        out = self.loss(outputs.logits, labels, step_frac=self.step_frac, step=self.step)
        if num_items_in_batch is None:  # evaluation
            return out.loss_sum / out.count
        # The Trainer counts label entries over the whole step; a row of soft labels has C of them.
        return out.loss_sum * labels.shape[1] / num_items_in_batch


def main(folder: str, spec: str = "logconf:aux_coef=0.5", **settings: Any) -> Trainer:
    texts, labels = tiny.weakly_labelled(48)
    encoded = tiny.tokenizer(texts)["input_ids"]
    probs = labels.probs.tolist()
    data = [{"input_ids": x, "labels": p} for x, p in zip(encoded, probs, strict=True)]
    loss = WeakLoss(spec)
    trainer = Trainer(
        tiny.classifier(),
        TrainingArguments(folder, **tiny.SETTINGS | settings),
        train_dataset=data,
        data_collator=DataCollatorWithPadding(tiny.tokenizer),
        compute_loss_func=loss,
        callbacks=[loss],
    )
    trainer.train()
    return trainer


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(sys.argv[1] if len(sys.argv) > 1 else folder)
