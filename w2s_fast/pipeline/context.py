"""What a stage may see: its settings, its inputs, and no true label it did not declare.

Inputs of every split are there for all. True labels are handed out by ``Context.gold`` alone, which
refuses a split that the stage has no right to; so that a student learns from weak labels only is a
property of this file, not of the care of whoever writes a method.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from w2s_fast.config import RunConfig
from w2s_fast.distributed.world import World, get_world
from w2s_fast.errors import W2SError
from w2s_fast.pipeline.jobs import Job
from w2s_fast.tasks import Examples, Inputs, TaskConfig, TaskData, get_task

Progress = Callable[[int, int, float], None]
PRETRAIN_SEED = 0
# Splits whose true labels a stage works on; a job's own ``gold`` adds the transfer set.
_GOLD = {
    "weak": ("weak",),
    "ceiling": ("transfer",),
    "report": ("weak", "transfer", "test"),
}


_NO_ROWS = Examples((), (), None, (), np.empty(0, dtype=np.int64))


@dataclass(frozen=True)
class Context:
    """What a stage works on.

    Attributes:
        cfg: The run.
        job: The job.
        folders: Folder of each finished job it needs, by name.
        progress: Called with (step, steps, loss).
    """

    cfg: RunConfig
    job: Job
    folders: Mapping[str, Path]
    progress: Progress

    @property
    def world(self) -> World:
        """This process among those that compute the stage together."""
        return get_world()

    def write(self, write: Callable[[], Any]) -> None:
        """Let rank 0 write; an error there is one everywhere."""
        error = ""
        if self.world.is_main_process:
            try:
                write()
            except OSError as e:
                if self.world.size == 1:
                    raise
                error = f"{e}"
        if error := self.world.broadcast_object(error):
            raise W2SError(f"rank 0 could not write: {error}")

    def input(self, name: str) -> Path:
        """Folder of what goes in under this name."""
        return self.folders[dict(self.job.inputs)[name]]

    @property
    def seed(self) -> int:
        """Seed of the job; jobs shared by all seeds use a fixed one, other members their own."""
        if self.job.seed is None:
            return PRETRAIN_SEED
        member = self.job.setting("member", 0)
        if not member:
            return self.job.seed
        digest = hashlib.sha256(f"{self.job.seed}/{member}".encode()).digest()
        return int.from_bytes(digest[:4], "little") >> 1

    @property
    def task(self) -> TaskData:
        """Facts about the task, without its rows: those come from ``inputs`` and ``gold``."""
        return replace(self._data, weak=_NO_ROWS, transfer=_NO_ROWS, test=_NO_ROWS)

    @property
    def n_classes(self) -> int:
        """C."""
        return len(self._data.class_names)

    def inputs(self, split: str) -> Inputs:
        """The texts of a split, without labels."""
        examples: Examples = getattr(self._data, split)
        return examples.inputs

    def gold(self, split: str) -> Examples:
        """A split with its true labels.

        Raises:
            W2SError: The stage has no right to them.
        """
        allowed = (*_GOLD.get(self.job.stage, ()), *(("transfer",) if self.job.gold else ()))
        if split not in allowed:
            raise W2SError(
                f"stage {self.job.name!r} asked for the true labels of the {split} set; a method "
                "may use them only through a node that says so, like plan.gold_balance()"
            )
        return getattr(self._data, split)

    @property
    def _data(self) -> TaskData:
        return load_data(self.cfg.task, self.job.seed or 0)


@functools.lru_cache(maxsize=8)
def load_data(task: TaskConfig, seed: int) -> TaskData:
    """Return the splits of one seed; kept, as several jobs of a process use them."""
    return get_task(task.name).load(task, seed)
