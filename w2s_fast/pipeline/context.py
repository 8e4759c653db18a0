"""What a stage can read: its settings, its inputs, and only the true labels it declares.

Every stage can read the texts of every split. ``Context.gold`` is the only source of true labels
and raises for a split that the stage may not use. ``methods.check_gold`` has checked which stages a
student depends on.
"""

from __future__ import annotations

import functools
import hashlib
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from w2s_fast.config import RunConfig, model_of
from w2s_fast.distributed.world import World, get_world
from w2s_fast.errors import DataWarning, W2SError
from w2s_fast.pipeline.job_identity import data_digest
from w2s_fast.pipeline.jobs import Job
from w2s_fast.pipeline.task_kinds import TaskKind, task_kind
from w2s_fast.tasks import Examples, Inputs, TaskConfig, TaskData, check_texts, get_task
from w2s_fast.tasks._conflict import add_conflict

ProgressFn = Callable[[int, int, float], None]
ReadFn = Callable[[int], TaskData]
PRETRAIN_SEED = 0
# Splits whose true labels a stage may read. A job with ``gold`` may also read the transfer set, one
# that shows examples in prompts the weak split; ``weak_gold`` is for reports and gives no access.
_GOLD = {
    "weak": ("weak",),
    "calibration": ("weak",),
    "generated_votes": ("weak",),
    "gate": ("weak",),
    "boosting": ("weak",),
    "trust": ("weak",),
    "ceiling": ("transfer",),
    "supervisor_card": ("transfer", "test"),  # no stage of a student depends on it
    "report": ("weak", "transfer", "test", "ood"),
}


_NO_ROWS = Examples((), (), None, (), np.empty(0, dtype=np.int64))


@dataclass(frozen=True)
class Context:
    """Everything that a stage depends on.

    Attributes:
        cfg: Configuration of the run.
        job: Job to compute.
        folders: Folders of the finished jobs it needs, by name.
        progress: Called with (step, steps, loss).
        read: Returns the splits of a seed, as the run has read them.
    """

    cfg: RunConfig
    job: Job
    folders: Mapping[str, Path]
    progress: ProgressFn
    read: ReadFn

    @property
    def world(self) -> World:
        """The processes that compute the stage together."""
        return get_world()

    def write(self, write: Callable[[], Any]) -> None:
        """Call ``write`` on rank 0; an error there raises on every process."""

        def on_main() -> None:
            try:
                write()
            except OSError as e:
                if self.world.size == 1:
                    raise
                raise W2SError(f"rank 0 could not write: {e}") from e

        self.world.call_on_main(on_main)

    def input(self, name: str) -> Path:
        """Return the folder of an input by the name it has in this job."""
        return self.folders[dict(self.job.inputs)[name]]

    @property
    def seed(self) -> int:
        """Seed of the job; distinct per ensemble member, and of its own for a pretraining."""
        if self.job.seed is None:
            return self.job.setting("seed", PRETRAIN_SEED)
        member = self.job.setting("member", 0)
        if not member:
            return self.job.seed
        digest = hashlib.sha256(f"{self.job.seed}/{member}".encode()).digest()
        return int.from_bytes(digest[:4], "little") >> 1

    @property
    def task(self) -> TaskData:
        """The task without rows, which ``inputs`` and ``gold`` return."""
        return replace(self._data, weak=_NO_ROWS, transfer=_NO_ROWS, test=_NO_ROWS, ood=None)

    @property
    def kind(self) -> TaskKind:
        """How the model of the job encodes, learns and predicts."""
        role = self.job.setting("role")
        preference = "" if role is None else model_of(self.cfg, role).preference
        return task_kind(self.task.kind, preference)

    @property
    def has_ood(self) -> bool:
        """Whether the task has out-of-distribution test items."""
        return self._data.ood is not None

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return len(self._data.class_names)

    def inputs(self, split: str) -> Inputs:
        """Return the texts of a split, without labels."""
        return self._data.splits[split].inputs

    def gold(self, split: str) -> Examples:
        """Return a split with its true labels.

        Raises:
            W2SError: The stage may not read them.
        """
        job = self.job
        named = [
            ("transfer", job.gold),
            ("conflict", job.setting("conflict_rows")),
            ("weak", job.setting("shots")),
        ]
        allowed = (*_GOLD.get(job.stage, ()), *(name for name, uses in named if uses))
        if split not in allowed:
            raise W2SError(
                f"stage {self.job.name!r} asked for the true labels of the {split} set; a method "
                "may use them only through a node that says so, like plan.gold_balance()"
            )
        return self._data.splits[split]

    @property
    def _data(self) -> TaskData:
        return self.read(self.job.seed or 0)


def load_data(task: TaskConfig, seed: int) -> TaskData:
    """Read the splits of one seed.

    Raises:
        W2SError: The configuration or the data does not fit.
    """
    data = get_task(task.name).load(task, seed)
    data = add_conflict(data, task, seed)
    check_texts(data)
    if task.subgroup is not None and data.test.subgroups is None:
        raise W2SError(
            f"task.subgroup={task.subgroup!r}: task {task.name!r} does not read such a column; use "
            "task local"
        )
    if task.votes is not None and data.transfer.votes is None:
        raise W2SError(
            f"task.votes={task.votes!r}: task {task.name!r} does not read such a column; use task "
            "local"
        )
    if task.ood.n and data.ood is None:
        raise W2SError(
            f"task.ood.n={task.ood.n}: task {task.name!r} has no out-of-distribution items; use "
            "task agreement, or set it to 0"
        )
    return data


def reader(task: TaskConfig, digests: Mapping[str, str]) -> ReadFn:
    """Return a ``Context.read`` for a process that has to read the data itself.

    Args:
        task: The task.
        digests: ``data_digest`` of what the run has read, by seed.
    """
    return lambda seed: read_again(task, seed, digests[str(seed)])


@functools.lru_cache(maxsize=8)  # several jobs of a process use them
def read_again(task: TaskConfig, seed: int, digest: str) -> TaskData:
    """Return the splits of one seed, whose content must still be that of ``digest``.

    Raises:
        W2SError: It is not.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)  # the first reading has shown them
        data = load_data(task, seed)
    if data_digest(data) != digest:
        paths = task.path, task.test_path, task.conflict_path
        files = " and ".join(path for path in paths if path)
        raise W2SError(
            f"task {task.name!r}{files and f' ({files})'}: the data changed while the run was "
            "reading them, or differ from process to process; expected the same splits for the "
            "same seed, so run the same command again once they are complete"
        )
    return data
