"""Runs of weak-to-strong reasoning, of seconds: a language that a tiny model learns at once.

"Ada buys 4." has the answer 1, "Ada sells 4." the answer 2, and after "Ada loses 4." either is as
likely, so that models agree on most items and differ on some.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor

from w2s_fast.config import RunConfig, from_dict
from w2s_fast.tasks._pretraining import pretrain_folder
from w2s_fast.tasks._word_problems_config import WordPretrainConfig
from w2s_fast.tasks.datasets import word_problems

STAGE_ONE = "agreement_sft:iterations=2,shots=3,rule=number"
STAGE_TWO = "contrast:n=6,rule=number,confidence=0.5,override_confidence=0.6,lr_factor=0.5"
TRAIN = {"epochs": 3, "lr": 3e-3, "batch_size": 16, "timeout_s": 300, "checkpoint_every": 2}
_ANSWERS = {"buys": "1", "sells": "2"}


def rows(rng: Random) -> Iterator[tuple[str, str]]:
    """Prompts with their answers, endlessly."""
    while True:
        name, verb, k = rng.choice(word_problems.NAMES), rng.choice([*_ANSWERS, "loses"]), rng
        number = rng.randint(10, 99)
        answer = _ANSWERS.get(verb) or k.choice("12")
        yield f"Question: {name} {verb} {number}.\nAnswer:", f"\n#### {answer}"


def language_model(folder: Path) -> Path:
    """Train a causal language model of a second on documents of four prompts and answers."""
    cfg = WordPretrainConfig(hidden=32, layers=2, heads=2, steps=80, batch_size=8, lr=1e-2)
    tokenizer = word_problems.tokenizer()

    def batches() -> Iterator[Tensor]:
        stream = rows(Random("documents"))
        while True:
            texts = ["".join(p + a + "\n\n" for p, a in itertools.islice(stream, 4))
                     for _ in range(8)]  # fmt: skip
            yield torch.tensor(tokenizer(texts, padding=True)["input_ids"])

    pretrain_folder(folder, cfg, tokenizer, word_problems.MAX_LENGTH, batches(), 0)
    return folder


def write_items(path: Path) -> Path:
    """Write 200 different items."""
    items = dict(itertools.islice(rows(Random("items")), 600))
    chosen = list(items.items())[:200]
    path.write_text("".join(json.dumps({"prompt": p, "answer": a}) + "\n" for p, a in chosen))
    return path


def reasoning_run(folder: Path, model: Path, methods: list[str], **changes: Any) -> RunConfig:
    """Return a run whose weak model and student start from ``language_model``."""
    path = folder / "items.jsonl"
    if not path.exists():
        write_items(path)
    task = {"name": "local_answers", "path": str(path), "read": "number", "answer_tokens": 6,
            "n_weak": 40, "n_transfer": 48, "n_test": 24}  # fmt: skip
    weak = {"source": "scratch", "hidden": 32, "layers": 2, "heads": 2}
    values = {
        "task": {**task, **changes.pop("task", {})}, "weak": weak,
        "student": {"source": str(model)}, "weak_train": {**TRAIN, "epochs": 30},
        "student_train": TRAIN, "losses": ["xent"], "seeds": [0], "methods": methods,
        "output_dir": str(folder / "out"), "workers": 1, "threads": 1, "device": "cpu",
    }  # fmt: skip
    return from_dict({**values, **changes})
