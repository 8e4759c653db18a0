"""Train a causal language model on weak labels with transformers' Trainer and two more lines.

    python examples/hf_trainer.py

``patch`` makes the model's forward return the weak-to-strong loss of the columns that
``WeakLabelCollator`` pads, without logits. ``labels`` mark the labelled tokens; the Trainer counts
them and divides the loss of an accumulated step by their number.
"""

import sys
import tempfile
from typing import Any

import tiny
from transformers import Trainer, TrainingArguments

import w2s_fast
from w2s_fast.integrations.batches import WeakLabelCollator
from w2s_fast.integrations.patching import progress_callback


def main(folder: str, spec: str = "logconf:aux_coef=0.5", **settings: Any) -> Trainer:
    model = w2s_fast.patch(tiny.lm(), loss=spec)  # line one
    trainer = Trainer(
        model,
        TrainingArguments(folder, **tiny.SETTINGS | settings),
        train_dataset=tiny.rows(),
        data_collator=WeakLabelCollator(tiny.tokenizer),  # line two
        callbacks=[progress_callback(model)],  # for losses with a schedule
    )
    trainer.train()
    return trainer


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(sys.argv[1] if len(sys.argv) > 1 else folder)
