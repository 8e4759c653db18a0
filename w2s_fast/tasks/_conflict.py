"""Pairs of a conflicting objective: rows of a second file that students may learn beside a task's.

Source: Yang et al. 2024 (arXiv 2406.11431), implicit conflict: helpful pairs beside harmless ones.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

from w2s_fast.errors import DataWarning, W2SError
from w2s_fast.tasks._base import TaskData
from w2s_fast.tasks._config import TaskConfig
from w2s_fast.tasks._examples import as_examples
from w2s_fast.tasks._split import squeeze
from w2s_fast.tasks.datasets.pairs import read_pairs


def add_conflict(data: TaskData, cfg: TaskConfig, seed: int) -> TaskData:
    """Return a task with the pairs of ``cfg.conflict_path``, if it names a file.

    Pairs with the prompt of a test item are left out, with a warning that counts them.

    Raises:
        W2SError: The task is of another kind, the file does not fit, or no pair is left.
    """
    if cfg.conflict_path is None:
        return data
    if data.kind != "preference":
        raise W2SError(
            f"task.conflict_path={cfg.conflict_path!r}: {cfg.name!r} is of kind {data.kind!r}; "
            "expected a task of kind 'preference', such as pairs or hh_rlhf"
        )
    items = read_pairs(Path(cfg.conflict_path), cfg, seed)
    tested = {squeeze(prompt) for prompt in data.test.prompts or ()} - {""}
    kept = [item for item in items if squeeze(item.prompt or "") not in tested]
    if not kept:
        raise W2SError(
            f"{cfg.conflict_path} (task.conflict_path) has {len(items)} pairs, all with the prompt "
            "of a test item; expected pairs of other prompts"
        )
    if dropped := len(items) - len(kept):
        warnings.warn(
            f"{cfg.conflict_path} (task.conflict_path): {dropped} of {len(items)} pairs have the "
            "prompt of a test item and are left out",
            DataWarning,
            stacklevel=2,
        )
    pairs = as_examples(kept)
    return replace(data, conflict=replace(pairs, ids=tuple(f"conflict-{i}" for i in pairs.ids)))
