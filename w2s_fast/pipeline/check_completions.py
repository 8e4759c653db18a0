"""Check, before anything is computed, that policies can read the completions of their pairs.

A reward model truncates a text that is too long. A policy does not: the log-probability of half a
completion is that of another one, and a long preference would be decided by its first half.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from w2s_fast.config import RunConfig, model_of, roles, train_of
from w2s_fast.errors import W2SError
from w2s_fast.methods import ImplicitConflict, make_steps
from w2s_fast.models import load_tokenizer
from w2s_fast.models.checkpoint_source import is_checkpoint
from w2s_fast.pipeline.students import students
from w2s_fast.pipeline.task_kinds import Policies, task_kind
from w2s_fast.tasks import Inputs, TaskData
from w2s_fast.training.completion_pairs import completion_lengths

# Tokens that a tokenizer may add to those of the bytes of a text, the end token among them.
_MORE_TOKENS = 4


def check_completions(cfg: RunConfig, data: Mapping[int, TaskData]) -> None:
    """Check the lengths of all completions that the policies of a run read.

    A token covers at least a byte, so only texts of many bytes are tokenized. A model whose
    tokenizer the run trains is not checked here; a stage raises the error.

    Args:
        cfg: Configuration of the run.
        data: Task by seed.

    Raises:
        W2SError: Completions are longer than ``max_length``; the message counts them.
    """
    for role in roles(cfg):
        for task in data.values():
            kind = task_kind(task.kind, model_of(cfg, role).preference)
            if not isinstance(kind, Policies) or (tokenizer := _tokenizer(cfg, role)) is None:
                continue
            for split in _splits_read(cfg, role, task):
                _check_split(cfg, role, kind, tokenizer, split, task.splits[split].inputs)


def _splits_read(cfg: RunConfig, role: str, task: TaskData) -> list[str]:
    """Return the splits that models of a role may read."""
    steps = [step for student in students(cfg) for step in make_steps(student.method)]
    unread = set() if role == "weak" else {"weak"}
    if role == "weak" or not any(isinstance(step, ImplicitConflict) for step in steps):
        unread.add("conflict")
    return [name for name in task.splits if name not in unread]


def _check_split(
    cfg: RunConfig, role: str, kind: Policies, tokenizer: Any, split: str, items: Inputs
) -> None:
    limit = min(train_of(cfg, role).max_length, tokenizer.model_max_length)
    _, *both = kind.completions(items)
    size = np.array([[len(text.encode()) for text in side] for side in both]).max(0)
    rows = np.flatnonzero(size + _MORE_TOKENS > limit).tolist()
    if not rows:
        return
    lengths = completion_lengths(tokenizer, *kind.completions(items.take(rows))).max(1)
    if n := int((lengths > limit).sum()):
        block = "weak_train" if role == "weak" else "student_train"
        first = items.ids[rows[int(np.argmax(lengths > limit))]]
        raise W2SError(
            f"{block}.max_length={limit}: {n} of {len(items)} pairs of the {split} split have "
            f"completions that leave no room for their prompts, item {first!r} for instance, and a "
            f"policy cuts no completion; set {block}.max_length={lengths.max()} or more, or leave "
            "these pairs out of the file"
        )


def _tokenizer(cfg: RunConfig, role: str) -> Any:
    """Return the tokenizer of a policy; None if the run trains it."""
    models = (model_of(cfg, r) for r in (role, "student", "weak"))
    folder = next((model for model in models if is_checkpoint(Path(model.source))), None)
    return None if folder is None else load_tokenizer(folder)
