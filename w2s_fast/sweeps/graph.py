"""The stages of all cells as one graph: equal ones stand there once, each after what it needs.

Two stages are equal when everything that their results depend on is: settings, data, and the stages
before them. That is known before anything is computed, so no two processes ever wait for each other
with the same work in hand, and a sweep can say beforehand how much of it is shared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from w2s_fast.config import RunConfig
from w2s_fast.pipeline.context import load_data
from w2s_fast.pipeline.execute import Order
from w2s_fast.pipeline.jobs import (
    Job,
    config_slice,
    data_digests,
    folder_digests,
    input_digests,
    plan,
)
from w2s_fast.store import Artefact, content_hash, tree_hash
from w2s_fast.sweeps.grid import Cell
from w2s_fast.tasks import TaskConfig


@dataclass(frozen=True, eq=False)
class Node:
    """A stage, as the first cell that needs it describes it.

    Attributes:
        key: Digest of everything the result depends on.
        cell: That cell.
        job: Its job there.
        inputs: Key of each job it needs, by name there.
    """

    key: str
    cell: Cell
    job: Job
    inputs: Mapping[str, str]


class _Data(NamedTuple):
    digests: dict[str, str]
    n_classes: int
    kind: str


@dataclass
class Facts:
    """What keys are made of, read once for all cells: they share tasks and models."""

    data: dict[tuple[TaskConfig, int], _Data] = field(default_factory=dict)
    trees: dict[Path, str] = field(default_factory=dict)

    def settings(self, cfg: RunConfig, job: Job) -> dict[str, Any]:
        """``config_slice`` of a job."""
        return config_slice(cfg, job, self._data(cfg.task, cfg.seeds[0]).n_classes)

    def inputs(self, cfg: RunConfig, job: Job, results: Mapping[str, str]) -> dict[str, str]:
        """``input_digests`` of a job, from the digests of the results it needs."""
        data = {seed: self._data(cfg.task, seed).digests for seed in cfg.seeds}
        return input_digests(cfg, job, results, data, folder_digests(cfg, self._tree))

    def kind(self, cfg: RunConfig) -> str:
        """Kind of the run's task."""
        return self._data(cfg.task, cfg.seeds[0]).kind

    def _data(self, task: TaskConfig, seed: int) -> _Data:
        if (task, seed) not in self.data:
            data = load_data(task, seed)
            self.data[task, seed] = _Data(data_digests(data), len(data.class_names), data.kind)
        return self.data[task, seed]

    def _tree(self, path: Path) -> str:
        if path not in self.trees:
            self.trees[path] = tree_hash(path)
        return self.trees[path]


@dataclass
class Board:
    """What is to be computed, what is, and which cells cannot be finished.

    Attributes:
        nodes: By key; cell after cell, each after what it needs.
        keys: By cell's name, the key of each of its jobs in order; the last is the report.
        facts: What the keys are made of.
        users: Names of the cells that need a node, by key.
        done: Results by key.
        failed: One line for each cell that cannot be finished, by name.
        begun: Keys of nodes that somebody computes or has computed.
    """

    nodes: dict[str, Node]
    keys: dict[str, dict[str, str]]
    facts: Facts
    users: dict[str, list[str]] = field(default_factory=dict)
    done: dict[str, Artefact] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    begun: set[str] = field(default_factory=set)

    @property
    def total(self) -> int:
        """Stages of all cells, equal ones counted in each."""
        return sum(len(keys) for keys in self.keys.values())

    def ready(self) -> Iterator[Node]:
        """Nodes whose inputs are there, that nobody has begun, and that a cell still wants."""
        for node in self.nodes.values():
            if node.key in self.begun or not self.wanted(node):
                continue
            if all(key in self.done for key in node.inputs.values()):
                yield node

    def wanted(self, node: Node) -> bool:
        """Whether a cell that can still be finished needs the node."""
        return any(name not in self.failed for name in self.users[node.key])

    def order(self, node: Node) -> Order:
        """The node's job with its inputs, which must be done."""
        cfg, job = node.cell.cfg, node.job
        results = {name: self.done[key] for name, key in node.inputs.items()}
        return Order(
            job,
            self.facts.settings(cfg, job),
            self.facts.inputs(cfg, job, {name: a.digest for name, a in results.items()}),
            {name: str(a.path) for name, a in results.items()},
        )

    def fail(self, node: Node, why: str) -> list[str]:
        """Give up the cells that need the node; their names."""
        lost = [name for name in self.users[node.key] if name not in self.failed]
        self.failed |= dict.fromkeys(lost, f"{node.job.name}: {why}")
        return lost


def make_board(cells: Sequence[Cell]) -> Board:
    """Return the graph of all cells; loads their data.

    Raises:
        W2SError: Data cannot be read or does not fit.
    """
    board = Board({}, {}, Facts())
    for cell in cells:
        board.keys[cell.name] = {}
        for job in plan(cell.cfg).order:
            _add(board, cell, job)
    return board


def _add(board: Board, cell: Cell, job: Job) -> None:
    known = board.keys[cell.name]
    inputs, facts = {name: known[name] for name in job.needs}, board.facts
    settings, reads = facts.settings(cell.cfg, job), facts.inputs(cell.cfg, job, inputs)
    key = content_hash([job.stage, settings, reads])
    known[job.name] = key
    board.users.setdefault(key, []).append(cell.name)
    if key not in board.nodes:
        board.nodes[key] = Node(key, cell, job, inputs)
