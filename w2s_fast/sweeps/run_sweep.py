"""Run a sweep: compute every job of its graph once, on all devices, then write the results."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from w2s_fast.config import to_dict, to_yaml, validate
from w2s_fast.files import (
    explain_write_errors,
    file_lock,
    remove_temporaries,
    write_bytes,
    write_json,
)
from w2s_fast.pipeline.check_fit import check_fit
from w2s_fast.pipeline.execute import find
from w2s_fast.pipeline.pool import JobError, ProcessPool, choose_parallelism
from w2s_fast.pipeline.provenance import git_state, machine, provenance, versions
from w2s_fast.pipeline.stages.report import read_report
from w2s_fast.report import RESULTS
from w2s_fast.report.outcomes import Outcomes
from w2s_fast.store import Artifact, Store, redirect_store_warnings
from w2s_fast.sweeps.devices import device_of, worker_environments
from w2s_fast.sweeps.graph import JobGraph, JobNode, make_graph
from w2s_fast.sweeps.grid import CELLS, Cell, make_cells
from w2s_fast.sweeps.statistics import comparisons, medians
from w2s_fast.sweeps.sweep_config import SweepConfig
from w2s_fast.sweeps.sweep_files import write_results
from w2s_fast.sweeps.sweep_progress import SweepProgress, show_sweep

RUN_CONFIG = "run.yaml"


def sweep(cfg: SweepConfig, *, quiet: bool = True) -> dict[str, Any]:
    """Compute every cell and write sweep.json, sweep.csv, sweep.png and sweep.svg.

    Equal stages are computed once; a stage starts when its inputs are done and a device is free.
    Finished stages are read from the cache, so a killed sweep continues where it stopped. If a
    stage fails, only the cells that need it fail.

    Args:
        cfg: The sweep.
        quiet: Show no progress.

    Returns:
        The contents of sweep.json: ``cells`` (names, ``runs``, ``summary``), ``failed`` (one line
        per cell), ``medians``, ``comparisons``, ``stages``, ``config``, ``provenance``.

    Raises:
        W2SError: Bad input, a full disk, or another sweep in the same folder.
    """
    cells, graph = prepare(cfg)
    with _output_folder(cfg), show_sweep(quiet, len(graph.nodes)) as progress:
        running = _Sweep(cfg, {cell.name: cell for cell in cells}, graph, progress)
        finished = running.compute()
        entries = [finished[cell.name] for cell in cells if cell.name in finished]
        results = {
            "config": to_dict(cfg),
            "cells": entries,
            "failed": {c.name: graph.failed[c.name] for c in cells if c.name in graph.failed},
            "medians": medians(entries),
            "comparisons": comparisons(entries, running.outcomes),
            "stages": {"distinct": len(graph.nodes), "total": graph.total},
            "provenance": _provenance(),
        }
        with explain_write_errors("the results", Path(cfg.output_dir).absolute()):
            write_results(Path(cfg.output_dir), results)
    return results


def _provenance() -> dict[str, Any]:
    """Return what all cells share; their stages are in the results.json of each."""
    return {
        "utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "machine": machine(),
        "git": git_state(),
    }


def prepare(cfg: SweepConfig) -> tuple[list[Cell], JobGraph]:
    """Read all data, check every setting, and return the cells and their graph.

    Raises:
        W2SError: A setting is invalid; nothing has been computed yet.
    """
    cells = make_cells(cfg, device_of(cfg.devices))
    for cell in cells:
        validate(cell.cfg)
    graph = make_graph(cells)
    for cell in cells:
        check_fit(cell.cfg, *graph.key_inputs.kind(cell.cfg))
    return cells, graph


@contextlib.contextmanager
def _output_folder(cfg: SweepConfig) -> Iterator[None]:
    """Create the output folder and lock it against other sweeps."""
    out = Path(cfg.output_dir).absolute()
    taken = f"another sweep (process {{pid}}) works in {out}; wait for it or choose another --out"
    with contextlib.ExitStack() as stack:
        with explain_write_errors("results", out):
            (out / CELLS).mkdir(parents=True, exist_ok=True)
            stack.enter_context(file_lock(out / ".lock", taken))
            for folder in (out, *(out / CELLS).iterdir()):
                remove_temporaries(folder)
        stack.enter_context(warnings.catch_warnings())
        yield


@dataclass
class _Sweep:
    cfg: SweepConfig
    cells: dict[str, Cell]
    graph: JobGraph
    progress: SweepProgress

    def __post_init__(self) -> None:
        any_cell = next(iter(self.cells.values()))
        self.store = Store(any_cell.cfg.store_dir)
        self.stored: set[str] = set()
        self.running: dict[int, JobNode] = {}
        self.finished: dict[str, dict[str, Any]] = {}
        self.outcomes: dict[str, Mapping[int, Outcomes]] = {}
        redirect_store_warnings(self.progress.warned)
        with explain_write_errors("stages", self.store.root):
            self.store.root.mkdir(parents=True, exist_ok=True)
        self.store.warn_of_other_formats()
        for cell in self.cells.values():
            folder = Path(cell.cfg.output_dir)
            with explain_write_errors("results", folder.absolute()):
                folder.mkdir(exist_ok=True)
                (folder / RESULTS).unlink(missing_ok=True)  # or it would remain if this sweep fails
                write_bytes(folder / RUN_CONFIG, to_yaml(cell.cfg).encode())

    def compute(self) -> dict[str, dict[str, Any]]:
        """Compute every job that can be; return the entries of the finished cells by name."""
        any_cfg = next(iter(self.cells.values())).cfg
        workers = worker_environments(self.cfg.devices, list(self.cells.values()))
        threads = max(choose_parallelism(c.cfg, cuda=False)[1] for c in self.cells.values())
        waiting: dict[str, JobNode] = {}  # ready, but not in the cache
        with ProcessPool(any_cfg, threads, workers, self.progress) as pool:
            while True:
                self._collect_ready(waiting)
                while pool.free and (node := self._next_needed(waiting)):
                    work_item = self.graph.work_item(node)
                    self.running[id(work_item.job)] = node
                    pool.submit(work_item, node.cell.cfg)
                if not self.running:
                    return self.finished
                self._wait_for_job(pool)

    def _collect_ready(self, waiting: dict[str, JobNode]) -> None:
        """Finish ready jobs that are stored, until all ready jobs have to be computed."""
        while ready := list(self.graph.ready()):
            for node in ready:
                self.graph.started.add(node.key)
                artifact = find(self.store, self.graph.work_item(node))
                if artifact is None:
                    waiting[node.key] = node
                else:
                    self.stored.add(node.key)
                    self._finish(node, artifact)

    def _next_needed(self, waiting: dict[str, JobNode]) -> JobNode | None:
        """Remove and return the first waiting node that a cell still needs."""
        while waiting:
            node = waiting.pop(next(iter(waiting)))
            if self.graph.is_needed(node):
                return node
        return None

    def _wait_for_job(self, pool: ProcessPool) -> None:
        try:
            job, artifact = pool.wait()
        except JobError as err:
            node = self.running.pop(id(err.job))
            reason = " ".join(str(err).split())
            for name in self.graph.fail(node, reason):
                self.progress.cell_ended(name, self.graph.failed[name], succeeded=False)
        else:
            self._finish(self.running.pop(id(job)), artifact)

    def _finish(self, node: JobNode, artifact: Artifact) -> None:
        self.graph.done[node.key] = artifact
        self.progress.stage_finished()
        if node.job.stage == "report":
            self._write_cell(node.cell, artifact)

    def _write_cell(self, cell: Cell, artifact: Artifact) -> None:
        """Write the results of a finished cell."""
        keys = self.graph.keys[cell.name]
        done = {name: self.graph.done[key] for name, key in keys.items()}
        owned = {n for n, k in keys.items() if self.graph.nodes[k].cell.name == cell.name}
        computed = {name for name in owned if keys[name] not in self.stored}
        report = read_report(artifact.path)
        facts = provenance(
            cell.cfg,
            done,
            set(keys) - computed,
            self.graph.key_inputs.counts(cell.cfg),
            self.graph.key_inputs.digests(cell.cfg),
        )
        report.write_parts(Path(cell.cfg.output_dir))
        write_json(Path(cell.cfg.output_dir) / RESULTS, {**report.scores, "provenance": facts})
        self.outcomes[cell.name] = report.outcomes
        self.finished[cell.name] = {
            "name": cell.name,
            "task": cell.task,
            "weak": cell.weak,
            "student": cell.student,
            "same": cell.same,
            "results": f"{CELLS}/{cell.name}/{RESULTS}",
            **{part: report.scores[part] for part in ("runs", "summary", "gold")},
        }
        seconds = sum(done[name].info.get("seconds") or 0.0 for name in computed)
        text = f"{seconds:.1f} s in {len(computed)} of {len(keys)} stages" if computed else "stored"
        self.progress.cell_ended(cell.name, text, succeeded=True)
