"""Merge the jobs of all cells into one graph, in which equal jobs are one node.

Two jobs are equal if everything that their results depend on is equal: settings, data, and the jobs
they need. This is known before anything is computed, so no two processes compute the same job, and
a sweep can report beforehand how many jobs its cells share.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from w2s_fast.config import RunConfig
from w2s_fast.files import content_hash
from w2s_fast.pipeline.context import load_data
from w2s_fast.pipeline.execute import WorkItem
from w2s_fast.pipeline.job_identity import (
    Folders,
    config_slice,
    data_digests,
    data_of_job,
    input_digests,
)
from w2s_fast.pipeline.jobs import Job, plan_jobs
from w2s_fast.pipeline.provenance import class_counts
from w2s_fast.store import Artifact
from w2s_fast.sweeps.grid import Cell
from w2s_fast.tasks import TaskConfig, reading_once


@dataclass(frozen=True, eq=False)
class JobNode:
    """A job that one or more cells need.

    Attributes:
        key: Digest of everything the result depends on.
        cell: The first cell that needs the job.
        job: The job as that cell names it.
        inputs: Key of each job it needs, by the name in that cell.
    """

    key: str
    cell: Cell
    job: Job
    inputs: Mapping[str, str]


class _DataFacts(NamedTuple):
    digests: dict[str, str]
    n_classes: int
    kind: str
    counts: dict[str, dict[str, int]]


@dataclass
class KeyInputs:
    """Read what job keys depend on, once for all cells: cells share tasks and models."""

    data: dict[tuple[TaskConfig, int], _DataFacts] = field(default_factory=dict)
    folders: Folders = field(default_factory=Folders)

    def settings(self, cfg: RunConfig, job: Job) -> dict[str, Any]:
        """Return ``config_slice`` of a job."""
        return config_slice(cfg, job, self._data(cfg.task, cfg.seeds[0]).n_classes)

    def inputs(self, cfg: RunConfig, job: Job, results: Mapping[str, str]) -> dict[str, str]:
        """Return ``input_digests`` of a job, given the digests of the results it needs."""
        return input_digests(cfg, job, results, self.digests(cfg), self.folders.digests(cfg))

    def digests(self, cfg: RunConfig) -> dict[int, dict[str, str]]:
        """Return ``data_digests`` of the run's task by seed."""
        return {seed: self._data(cfg.task, seed).digests for seed in cfg.seeds}

    def kind(self, cfg: RunConfig) -> tuple[str, int]:
        """Return the kind of the run's task, and its number of classes."""
        facts = self._data(cfg.task, cfg.seeds[0])
        return facts.kind, facts.n_classes

    def counts(self, cfg: RunConfig) -> dict[int, dict[str, dict[str, int]]]:
        """Return ``class_counts`` of the run's task by seed."""
        return {seed: self._data(cfg.task, seed).counts for seed in cfg.seeds}

    def _data(self, task: TaskConfig, seed: int) -> _DataFacts:
        if (task, seed) not in self.data:
            data = load_data(task, seed)
            self.data[task, seed] = _DataFacts(
                data_digests(data), len(data.class_names), data.kind, class_counts(data)
            )
        return self.data[task, seed]


@dataclass
class JobGraph:
    """Track which jobs are to be computed, which are done, and which cells have failed.

    Attributes:
        nodes: Nodes by key, in work_item of the cells, each after the nodes it needs.
        keys: Key of each job of a cell, by names of cell and job; the last job is the report.
        key_inputs: What the keys depend on.
        users: Names of the cells that need a node, by key.
        done: Results by key.
        failed: One line for each cell that cannot be finished, by name.
        started: Keys of nodes that are being computed or are done.
    """

    nodes: dict[str, JobNode]
    keys: dict[str, dict[str, str]]
    key_inputs: KeyInputs
    users: dict[str, list[str]] = field(default_factory=dict)
    done: dict[str, Artifact] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    started: set[str] = field(default_factory=set)

    @property
    def total(self) -> int:
        """Number of jobs of all cells; equal jobs count once per cell."""
        return sum(len(keys) for keys in self.keys.values())

    def ready(self) -> Iterator[JobNode]:
        """Yield needed nodes that are not started and whose inputs are done."""
        for node in self.nodes.values():
            if node.key in self.started or not self.is_needed(node):
                continue
            if all(key in self.done for key in node.inputs.values()):
                yield node

    def is_needed(self, node: JobNode) -> bool:
        """Return whether a cell that can still be finished needs the node."""
        return any(name not in self.failed for name in self.users[node.key])

    def work_item(self, node: JobNode) -> WorkItem:
        """Return the node's job with its inputs, which must be done."""
        cfg, job = node.cell.cfg, node.job
        results = {name: self.done[key] for name, key in node.inputs.items()}
        inputs = self.key_inputs.inputs(cfg, job, {name: a.digest for name, a in results.items()})
        return WorkItem(
            job,
            self.key_inputs.settings(cfg, job),
            inputs,
            {name: str(a.path) for name, a in results.items()},
            data_of_job(cfg, job, self.key_inputs.digests(cfg)),
            self.key_inputs.folders.stamps(cfg, inputs),
        )

    def fail(self, node: JobNode, reason: str) -> list[str]:
        """Mark the cells that need the node as failed, and return their names."""
        names = [name for name in self.users[node.key] if name not in self.failed]
        self.failed |= dict.fromkeys(names, f"{node.job.name}: {reason}")
        return names


def make_graph(cells: Sequence[Cell]) -> JobGraph:
    """Load the data of all cells and return their graph.

    Raises:
        W2SError: Data cannot be read or does not fit.
    """
    graph = JobGraph({}, {}, KeyInputs())
    with reading_once():
        for cell in cells:
            graph.keys[cell.name] = {}
            for job in plan_jobs(cell.cfg).jobs:
                _add_job(graph, cell, job)
    return graph


def _add_job(graph: JobGraph, cell: Cell, job: Job) -> None:
    keys, key_inputs = graph.keys[cell.name], graph.key_inputs
    inputs = {name: keys[name] for name in job.needs}
    settings, digests = key_inputs.settings(cell.cfg, job), key_inputs.inputs(cell.cfg, job, inputs)
    key = content_hash([job.stage, settings, digests])
    keys[job.name] = key
    graph.users.setdefault(key, []).append(cell.name)
    if key not in graph.nodes:
        graph.nodes[key] = JobNode(key, cell, job, inputs)
