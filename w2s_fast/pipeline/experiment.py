"""Runs the whole experiment: plans the jobs, takes what is stored, computes the rest, reports."""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from w2s_fast.config import RunConfig, validate
from w2s_fast.distributed.heartbeat import monitor_processes
from w2s_fast.distributed.world import get_world, init_distributed
from w2s_fast.pipeline.artifacts import LABELS, REPORT
from w2s_fast.pipeline.context import load_data
from w2s_fast.pipeline.execute import Order, execute, find
from w2s_fast.pipeline.jobs import (
    Job,
    config_slice,
    data_digests,
    folder_digests,
    input_digests,
    plan,
)
from w2s_fast.pipeline.pool import Watcher, choose_sizes, make_pool
from w2s_fast.pipeline.preflight import check_alike
from w2s_fast.pipeline.provenance import provenance
from w2s_fast.pipeline.stages.build_model import device
from w2s_fast.pipeline.stages.transcripts import check_writer
from w2s_fast.pipeline.students import check_kind
from w2s_fast.report import RESULTS
from w2s_fast.report.page import write_report
from w2s_fast.report.run_progress import show_run
from w2s_fast.store import Artefact, Store, exclusive, hear_warnings, write_errors, write_json
from w2s_fast.training.deepspeed.setup import check_offload


def run(cfg: RunConfig, *, quiet: bool = True) -> dict[str, Any]:
    """Run the experiment and write results.json, plot and page into ``cfg.output_dir``.

    Finished stages are taken from ``cfg.store_dir``; a killed run continues where it was.

    Args:
        cfg: The run.
        quiet: Show no progress.

    Returns:
        What results.json holds: ``runs``, ``summary``, ``controls``, ``provenance``.

    Raises:
        W2SError: Bad input, a full disk, or another run in the same folder; one line.
    """
    with session(cfg, quiet) as running:
        jobs = plan(cfg).order
        running.compute(jobs[:-1])
        found = _report_stage(running, jobs[-1])
        facts = provenance(cfg, running.results, running.cached)
        results = running.world.broadcast_object({**found, "provenance": facts})
        if running.world.is_main_process:
            with write_errors("the report", Path(cfg.output_dir).absolute()):
                write_json(Path(cfg.output_dir) / RESULTS, results)
                write_report(Path(cfg.output_dir), results)
    return results


def label(cfg: RunConfig, *, quiet: bool = True) -> dict[int, Path]:
    """Run only what weak labels need; return the Parquet file (columns id, probs) by seed."""
    with session(cfg, quiet) as running:
        running.compute(plan(cfg, labels_only=True).order)
        return {s: running.results[f"labels/{s}"].path / LABELS for s in cfg.seeds}


@contextlib.contextmanager
def session(cfg: RunConfig, quiet: bool) -> Iterator[Session]:
    """Check the configuration, meet the other processes, take the output folder, load the data."""
    validate(cfg)
    with contextlib.ExitStack() as stack:
        timeout_s = max(cfg.weak_train.timeout_s, cfg.student_train.timeout_s)
        world = init_distributed(timeout_s)
        stack.enter_context(monitor_processes(world, timeout_s))
        if world.is_main_process:
            stack.enter_context(_folders(cfg))
        stack.enter_context(warnings.catch_warnings())
        watcher = stack.enter_context(show_run(quiet or not world.is_main_process))
        hear_warnings(watcher.warned)
        running = Session(cfg, watcher)
        if world.size > 1:
            check_alike(cfg, running.digests, world)
        check_fit(cfg, running.data[cfg.seeds[0]].kind)
        yield running
        world.barrier()  # the folders are rank 0's until everyone is done with them


def check_fit(cfg: RunConfig, kind: str) -> None:
    """Check what needs the data or a library: methods, transcripts, offload.

    Args:
        cfg: The run.
        kind: Of its task.

    Raises:
        W2SError: Something does not fit; nothing has been computed yet.
    """
    check_kind(cfg, kind)
    check_writer(cfg)
    for train in (cfg.weak_train, cfg.student_train):
        check_offload(train)


@contextlib.contextmanager
def _folders(cfg: RunConfig) -> Iterator[None]:
    """Make the output folder and the store, and keep other runs out of the former."""
    out = Path(cfg.output_dir).absolute()
    with write_errors("results", out):
        out.mkdir(parents=True, exist_ok=True)
    with write_errors("stages", cfg.store_dir.absolute()):
        cfg.store_dir.mkdir(parents=True, exist_ok=True)
        _check_writable(cfg.store_dir)
    taken = f"another run (process {{pid}}) works in {out}; wait for it or choose another --out"
    with contextlib.ExitStack() as stack:
        with write_errors("results", out):
            stack.enter_context(exclusive(out / ".lock", taken))
        yield


def _check_writable(folder: Path) -> None:
    probe = folder / f".probe-{os.getpid()}"
    try:
        probe.touch()
    finally:
        probe.unlink(missing_ok=True)


@dataclass
class Session:
    """The state of one run: what is finished, and what came from the store."""

    cfg: RunConfig
    watcher: Watcher
    results: dict[str, Artefact] = field(default_factory=dict)
    cached: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        cfg = self.cfg
        self.world = get_world()
        self.store = Store(cfg.store_dir)
        self.data = {s: load_data(cfg.task, s) for s in cfg.seeds}
        self.digests = {s: data_digests(d) for s, d in self.data.items()}
        self._folders = folder_digests(cfg)

    def order(self, job: Job) -> Order:
        """Return the job with its inputs, which must be finished."""
        digests = {name: self.results[name].digest for name in job.needs}
        n_classes = len(self.data[self.cfg.seeds[0]].class_names)
        return Order(
            job,
            config_slice(self.cfg, job, n_classes),
            input_digests(self.cfg, job, digests, self.digests, self._folders),
            {name: str(self.results[name].path) for name in job.needs},
        )

    def stored(self, job: Job) -> bool:
        """Take the job's result from the store if it is there."""
        found = find(self.store, self.order(job))
        if found is None:
            return False
        self.results[job.name] = found
        self.cached.add(job.name)
        self.watcher.finished(job, None)
        return True

    def compute(self, jobs: list[Job]) -> None:
        """Finish every job, as many at a time as there are workers."""
        workers, threads = choose_sizes(self.cfg, cuda=device(self.cfg) == "cuda")
        waiting, running = list(jobs), 0
        with make_pool(self.cfg, workers, threads, self.watcher) as pool:
            while waiting or running:
                for job in [j for j in waiting if self.ready(j)]:
                    if self.stored(job):
                        waiting.remove(job)
                        break  # what needed it may be ready now, and stands earlier
                    if pool.free:
                        waiting.remove(job)
                        pool.submit(self.order(job))
                        running += 1
                else:
                    job, artefact = pool.wait()
                    running -= 1
                    self.results[job.name] = artefact
                    self.watcher.finished(job, artefact.info.get("seconds"))

    def ready(self, job: Job) -> bool:
        """Whether everything the job needs is finished."""
        return all(name in self.results for name in job.needs)


def _report_stage(running: Session, job: Job) -> Mapping[str, Any]:
    """Return the scores, computed once per set of predictions."""
    if not running.stored(job):
        running.watcher.started(job)
        artefact = execute(running.cfg, running.order(job), 1, lambda *_: None)
        running.results[job.name] = artefact
        running.watcher.finished(job, artefact.info.get("seconds"))
    return json.loads((running.results[job.name].path / REPORT).read_bytes())
