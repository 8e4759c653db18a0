"""Runs a sweep: every stage of every cell once, on all devices, then one table and one plot."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from w2s_fast.config import to_dict, to_yaml, validate
from w2s_fast.pipeline.artifacts import SCORES
from w2s_fast.pipeline.execute import find
from w2s_fast.pipeline.experiment import check_fit
from w2s_fast.pipeline.pool import JobError, ProcessPool, choose_sizes
from w2s_fast.pipeline.provenance import git_state, machine, provenance, versions
from w2s_fast.report import RESULTS
from w2s_fast.store import (
    Artefact,
    Store,
    exclusive,
    hear_warnings,
    write_bytes,
    write_errors,
    write_json,
)
from w2s_fast.sweeps.config import SweepConfig
from w2s_fast.sweeps.devices import device_of, places
from w2s_fast.sweeps.graph import Board, Node, make_board
from w2s_fast.sweeps.grid import CELLS, Cell, make_cells
from w2s_fast.sweeps.progress import Quiet, show
from w2s_fast.sweeps.results import write_results
from w2s_fast.sweeps.statistics import comparisons, medians

RUN = "run.yaml"


def sweep(cfg: SweepConfig, *, quiet: bool = True) -> dict[str, Any]:
    """Compute every cell and write sweep.json, sweep.csv, sweep.png and sweep.svg.

    Equal stages are computed once; a stage whose inputs are there waits only for a free device.
    Finished stages are taken from the cache, so a killed sweep continues where it was. A stage that
    fails costs the cells that need it, and no others.

    Args:
        cfg: The sweep.
        quiet: Show no progress.

    Returns:
        What sweep.json holds: ``cells`` (labels, ``runs``, ``summary``), ``failed`` (one line a
        cell), ``medians``, ``comparisons``, ``stages``, ``config``, ``provenance``.

    Raises:
        W2SError: Bad input, a full disk, or another sweep in the same folder; one line.
    """
    cells, board = prepare(cfg)
    with _folder(cfg), show(quiet, len(board.nodes)) as watcher:
        found = _Sweep(cfg, {cell.name: cell for cell in cells}, board, watcher).compute()
        entries = [found[cell.name] for cell in cells if cell.name in found]
        results = {
            "config": to_dict(cfg),
            "cells": entries,
            "failed": {c.name: board.failed[c.name] for c in cells if c.name in board.failed},
            "medians": medians(entries),
            "comparisons": comparisons(entries),
            "stages": {"distinct": len(board.nodes), "total": board.total},
            "provenance": _provenance(),
        }
        with write_errors("the results", Path(cfg.output_dir).absolute()):
            write_results(Path(cfg.output_dir), results)
    return results


def _provenance() -> dict[str, Any]:
    """What is the same for all cells; each has its stages in its own results.json."""
    return {
        "utc": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": versions(),
        "machine": machine(),
        "git": git_state(),
    }


def prepare(cfg: SweepConfig) -> tuple[list[Cell], Board]:
    """Return the cells and their stages; every setting is checked and all data was read.

    Raises:
        W2SError: Something does not fit; nothing has been computed yet.
    """
    cells = make_cells(cfg, device_of(cfg.devices))
    for cell in cells:
        validate(cell.cfg)
    board = make_board(cells)
    for cell in cells:
        check_fit(cell.cfg, board.facts.kind(cell.cfg))
    return cells, board


@contextlib.contextmanager
def _folder(cfg: SweepConfig) -> Iterator[None]:
    """Make the output folder and keep other sweeps out of it."""
    out = Path(cfg.output_dir).absolute()
    taken = f"another sweep (process {{pid}}) works in {out}; wait for it or choose another --out"
    with contextlib.ExitStack() as stack:
        with write_errors("results", out):
            (out / CELLS).mkdir(parents=True, exist_ok=True)
            stack.enter_context(exclusive(out / ".lock", taken))
        stack.enter_context(warnings.catch_warnings())
        yield


@dataclass
class _Sweep:
    cfg: SweepConfig
    cells: dict[str, Cell]
    board: Board
    watcher: Quiet

    def __post_init__(self) -> None:
        any_cell = next(iter(self.cells.values()))
        self.store = Store(any_cell.cfg.store_dir)
        self.stored: set[str] = set()
        self.running: dict[int, Node] = {}
        self.found: dict[str, dict[str, Any]] = {}
        hear_warnings(self.watcher.warned)
        with write_errors("stages", self.store.root):
            self.store.root.mkdir(parents=True, exist_ok=True)
        for cell in self.cells.values():
            folder = Path(cell.cfg.output_dir)
            with write_errors("results", folder.absolute()):
                folder.mkdir(exist_ok=True)
                (folder / RESULTS).unlink(missing_ok=True)  # it would outlive a failure
                write_bytes(folder / RUN, to_yaml(cell.cfg).encode())

    def compute(self) -> dict[str, dict[str, Any]]:
        """Finish every stage that can be; return the entries of the finished cells by name."""
        any_cfg = next(iter(self.cells.values())).cfg
        everywhere = places(self.cfg.devices, list(self.cells.values()))
        threads = max(choose_sizes(c.cfg, cuda=False)[1] for c in self.cells.values())
        waiting: dict[str, Node] = {}  # not in the cache
        with ProcessPool(any_cfg, threads, everywhere, self.watcher) as pool:
            while True:
                self._look(waiting)
                while pool.free and (node := self._next(waiting)):
                    order = self.board.order(node)
                    self.running[id(order.job)] = node
                    pool.submit(order, node.cell.cfg)
                if not self.running:
                    return self.found
                self._wait(pool)

    def _look(self, waiting: dict[str, Node]) -> None:
        """Take what is stored, and what is ready then, and so on; the rest has to be computed."""
        while fresh := list(self.board.ready()):
            for node in fresh:
                self.board.begun.add(node.key)
                artefact = find(self.store, self.board.order(node))
                if artefact is None:
                    waiting[node.key] = node
                else:
                    self.stored.add(node.key)
                    self._finish(node, artefact)

    def _next(self, waiting: dict[str, Node]) -> Node | None:
        """The first of the waiting nodes that a cell still wants."""
        while waiting:
            node = waiting.pop(next(iter(waiting)))
            if self.board.wanted(node):
                return node
        return None

    def _wait(self, pool: ProcessPool) -> None:
        try:
            job, artefact = pool.wait()
        except JobError as err:
            node = self.running.pop(id(err.job))
            why = " ".join(str(err).split())
            for name in self.board.fail(node, why):
                self.watcher.ended(name, self.board.failed[name], good=False)
        else:
            self._finish(self.running.pop(id(job)), artefact)

    def _finish(self, node: Node, artefact: Artefact) -> None:
        self.board.done[node.key] = artefact
        self.watcher.advanced()
        if node.job.stage == "report":
            self._report(node.cell, artefact)

    def _report(self, cell: Cell, artefact: Artefact) -> None:
        """Write the results of a finished cell."""
        keys = self.board.keys[cell.name]
        done = {name: self.board.done[key] for name, key in keys.items()}
        owned = {n for n, k in keys.items() if self.board.nodes[k].cell.name == cell.name}
        fresh = {name for name in owned if keys[name] not in self.stored}
        scores = json.loads((artefact.path / SCORES).read_bytes())
        facts = provenance(cell.cfg, done, set(keys) - fresh)
        write_json(Path(cell.cfg.output_dir) / RESULTS, {**scores, "provenance": facts})
        self.found[cell.name] = {
            "name": cell.name,
            "task": cell.task,
            "weak": cell.weak,
            "student": cell.student,
            "same": cell.same,
            "results": f"{CELLS}/{cell.name}/{RESULTS}",
            **{part: scores[part] for part in ("runs", "summary", "gold")},
        }
        seconds = sum(done[name].info.get("seconds") or 0.0 for name in fresh)
        text = f"{seconds:.1f} s in {len(fresh)} of {len(keys)} stages" if fresh else "stored"
        self.watcher.ended(cell.name, text, good=True)
