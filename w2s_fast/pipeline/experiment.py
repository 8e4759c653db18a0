"""Run an experiment: plan the jobs, take finished ones from the store, compute the rest, report."""

from __future__ import annotations

import contextlib
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from w2s_fast.config import RunConfig, at_seed, run_seeds, validate
from w2s_fast.distributed.heartbeat import monitor_processes
from w2s_fast.distributed.world import get_world, init_distributed
from w2s_fast.errors import W2SError
from w2s_fast.files import explain_write_errors, file_lock, remove_temporaries, write_json
from w2s_fast.pipeline.artifacts import LABELS
from w2s_fast.pipeline.bases import failed_bases, finished_bases
from w2s_fast.pipeline.check_completions import check_completions
from w2s_fast.pipeline.check_fit import check_fit
from w2s_fast.pipeline.check_supervisors import check_supervisors
from w2s_fast.pipeline.context import load_data
from w2s_fast.pipeline.execute import WorkItem, execute, find
from w2s_fast.pipeline.job_identity import (
    Folders,
    config_slice,
    data_digests,
    data_of_job,
    input_digests,
)
from w2s_fast.pipeline.jobs import Job, JobPlan, plan_jobs
from w2s_fast.pipeline.label_files import write_label_files
from w2s_fast.pipeline.pool import (
    JobError,
    JobObserver,
    LocalPool,
    ProcessPool,
    choose_parallelism,
    make_pool,
)
from w2s_fast.pipeline.preflight import check_processes_agree, check_shared_store
from w2s_fast.pipeline.provenance import class_counts, provenance
from w2s_fast.pipeline.stage_times import StageTimes
from w2s_fast.pipeline.stages.build_model import device
from w2s_fast.pipeline.stages.report import Report, read_report
from w2s_fast.pipeline.stages.supervisor_card import read_card
from w2s_fast.report import RESULTS
from w2s_fast.report.card_rows import card_lines
from w2s_fast.report.page import write_report
from w2s_fast.report.run_progress import show_run
from w2s_fast.store import Artifact, Store, redirect_store_warnings
from w2s_fast.tasks import TaskData, reading_once


def run(cfg: RunConfig, *, quiet: bool = True) -> dict[str, Any]:
    """Run the experiment and write results.json, plot and page into ``cfg.output_dir``.

    Finished stages come from ``cfg.store_dir``, so a killed run continues where it stopped.

    Args:
        cfg: Configuration of the run.
        quiet: Show no progress.

    Returns:
        The content of results.json: ``design``, ``differences``, ``runs``, ``summary``,
        ``supervisors``, ``trust``, ``controls``, ``gold``, ``failed`` (a reason for each of
        ``student_bases`` that has no results), ``provenance``.

    Raises:
        W2SError: Bad input, a full disk, or another run in the same folder.
    """
    with open_session(cfg, quiet) as session:
        jobs = plan_jobs(cfg)
        session.compute(jobs.jobs[:-1])
        report = _report_stage(session, session.report_job(jobs))
        counts = {s: class_counts(data) for s, data in session.data.items()}
        facts = provenance(cfg, session.results, session.cached, counts, session.digests)
        results = session.world.broadcast_object(
            {
                **report.scores,
                "failed": failed_bases(cfg, jobs, session.failed),
                "provenance": facts,
            }
        )
        if session.world.is_main_process:
            with explain_write_errors("the report", Path(cfg.output_dir).absolute()):
                report.write_parts(Path(cfg.output_dir))
                write_json(Path(cfg.output_dir) / RESULTS, results)
                write_report(Path(cfg.output_dir), results, report.items)
    return results


def label(cfg: RunConfig, *, quiet: bool = True) -> dict[int, Path]:
    """Compute only the weak labels, and write them into ``cfg.output_dir``.

    Returns:
        By seed, the folder of Parquet files; ``label_files`` says which columns they have.

    Raises:
        W2SError: As ``run``.
    """
    folders = {s: Path(cfg.output_dir).absolute() / LABELS / str(s) for s in run_seeds(cfg)}
    with open_session(cfg, quiet) as session:
        jobs = plan_jobs(cfg, labels_only=True)
        session.compute(jobs.jobs)
        if session.world.is_main_process:
            for seed, folder in folders.items():
                stored = session.results[jobs.supervisors[seed].labels].path / LABELS
                with explain_write_errors("the labels", Path(cfg.output_dir).absolute()):
                    write_label_files(stored, session.data[seed], folder)
    return folders


@contextlib.contextmanager
def open_session(cfg: RunConfig, quiet: bool, *, computes: bool = True) -> Iterator[Session]:
    """Check the configuration, connect the processes, lock the output folder, load the data.

    Args:
        cfg: Configuration of the run.
        quiet: Show no progress.
        computes: False: stages are only read, so nothing is written and trainings are not checked.
    """
    validate(cfg)
    with contextlib.ExitStack() as stack:
        timeout_s = max(cfg.weak_train.timeout_s, cfg.student_train.timeout_s)
        world = init_distributed(timeout_s)
        stack.enter_context(monitor_processes(world, timeout_s))
        if world.is_main_process and computes:
            stack.enter_context(_output_folder(cfg))
        stack.enter_context(warnings.catch_warnings())
        observer = stack.enter_context(show_run(quiet or not world.is_main_process))
        redirect_store_warnings(observer.warned)
        session = Session(cfg, observer)
        if world.is_main_process:
            session.store.warn_of_other_formats()
        if world.size > 1:
            check_processes_agree(cfg, session.digests, session.checkpoints(), world)
        if computes:
            check_session(session)
        yield session
        world.barrier()  # rank 0 releases the folders after every process is done


def check_session(session: Session) -> None:
    """Raise what stages would raise after others have run.

    Raises:
        W2SError: Settings, models and data do not fit.
    """
    cfg = session.cfg
    data = session.data[cfg.seeds[0]]
    check_supervisors(cfg, data)
    check_fit(cfg, data.kind, len(data.class_names))
    check_completions(cfg, session.data)


@contextlib.contextmanager
def _output_folder(cfg: RunConfig) -> Iterator[None]:
    """Create the output folder, and lock it."""
    out = Path(cfg.output_dir).absolute()
    with explain_write_errors("results", out):
        out.mkdir(parents=True, exist_ok=True)
    taken = f"another run (process {{pid}}) works in {out}; wait for it or choose another --out"
    with contextlib.ExitStack() as stack:
        with explain_write_errors("results", out):
            stack.enter_context(file_lock(out / ".lock", taken))
            remove_temporaries(out)
        yield


def _make_store(folder: Path) -> None:
    """Create the store, and check that it can be written."""
    with explain_write_errors("stages", folder.absolute()):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass


@dataclass
class Session:
    """State of one run: finished jobs, and which of them came from the store."""

    cfg: RunConfig
    observer: JobObserver
    results: dict[str, Artifact] = field(default_factory=dict)
    cached: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        cfg = self.cfg
        self.world = get_world()
        self.store = Store(cfg.store_dir)
        with reading_once():
            self.data = {s: load_data(cfg.task, s) for s in run_seeds(cfg)}
        self.digests = {s: data_digests(d) for s, d in self.data.items()}
        self._folders = Folders()
        self._prepared = False

    def read(self, seed: int) -> TaskData:
        """Return the splits of a seed, which were read at the start."""
        return self.data[seed]

    def settings(self, job: Job) -> dict[str, Any]:
        """Return ``config_slice`` of a job."""
        return config_slice(self.cfg, job, len(self.data[self.cfg.seeds[0]].class_names))

    def checkpoints(self) -> dict[str, str]:
        """Return the digest of each model that is a folder or a file, by its configured path."""
        found: dict[str, str] = {}
        for seed in run_seeds(self.cfg):
            found |= self._folders.by_source(at_seed(self.cfg, seed))
        return found

    def work_item(self, job: Job) -> WorkItem:
        """Return the job with its inputs; the jobs it needs must be finished."""
        digests = {name: self.results[name].digest for name in job.needs}
        cfg = at_seed(self.cfg, job.seed)
        folders = self._folders.digests(cfg)
        inputs = input_digests(self.cfg, job, digests, self.digests, folders)
        return WorkItem(
            job,
            self.settings(job),
            inputs,
            {name: str(self.results[name].path) for name in job.needs},
            data_of_job(self.cfg, job, self.digests),
            self._folders.stamps(cfg, inputs),
        )

    def take_stored(self, job: Job) -> bool:
        """Take the job's result from the store; return whether it is there."""
        artifact = find(self.store, self.work_item(job))
        if artifact is None:
            return False
        self.cached.add(job.name)
        self._finish(job, artifact, None)
        return True

    def _finish(self, job: Job, artifact: Artifact, seconds: float | None) -> None:
        self.results[job.name] = artifact
        self.observer.finished(job, seconds)
        if job.stage == "supervisor_card":
            self.observer.noted(card_lines(read_card(artifact.path)))

    def prepare_store(self) -> None:
        """Make the store ready to be written, at the first call.

        Finished stages are read without it, so a finished run needs no writable store. All
        processes call this together.

        Raises:
            W2SError: It cannot be written, or not all processes see it.
        """
        if self._prepared:
            return
        self.world.call_on_main(lambda: _make_store(self.cfg.store_dir))
        if self.world.size > 1:
            check_shared_store(self.cfg, self.world)
        self._prepared = True

    def compute(self, jobs: list[Job]) -> None:
        """Finish every job, one per worker at a time."""
        workers, threads = choose_parallelism(self.cfg, cuda=device(self.cfg) == "cuda")
        times = StageTimes(self.store.root)
        expected = {job.name: times.expect(job.stage, self.settings(job)) for job in jobs}
        self.observer.planned(expected, workers)
        waiting, running, missed = list(jobs), 0, set[str]()
        with make_pool(self.cfg, workers, threads, self.observer, self.read) as pool:
            while waiting or running:
                for job in [j for j in waiting if self.ready(j)]:
                    # Once when it is ready, and once more before it is computed.
                    if (pool.free or job.name not in missed) and self.take_stored(job):
                        waiting.remove(job)
                        break  # start over: jobs that need it may be ready now
                    missed.add(job.name)
                    if pool.free:
                        waiting.remove(job)
                        self.prepare_store()
                        if self._submit(pool, job):
                            running += 1
                        else:
                            break
                else:
                    if running:
                        self._wait(pool)
                        running -= 1
                waiting = [job for job in waiting if not self._fails(job)]

    def _submit(self, pool: LocalPool | ProcessPool, job: Job) -> bool:
        """Start a job; return whether the pool has it, which it has not if it failed at once."""
        try:
            pool.submit(self.work_item(job))
        except W2SError as err:
            self._fail(job, err)
            return False
        return True

    def _wait(self, pool: LocalPool | ProcessPool) -> None:
        try:
            job, artifact = pool.wait()
        except JobError as err:
            self._fail(err.job, err)
        else:
            self._finish(job, artifact, artifact.info.get("seconds"))

    def _fail(self, job: Job, err: W2SError) -> None:
        """Note why a job failed. The run goes on without its base if there are several.

        Processes of a distributed job could not agree on it: there the run ends.
        """
        if not self.cfg.student_bases or self.world.size > 1:
            raise err
        self.failed[job.name] = " ".join(str(err).split())
        self.observer.warned(f"{job.name} failed: {self.failed[job.name]}")

    def _fails(self, job: Job) -> bool:
        """Return whether the job needs a failed one; it then counts as failed too."""
        reason = next((self.failed[name] for name in job.needs if name in self.failed), None)
        if reason is not None:
            self.failed[job.name] = reason
        return reason is not None

    def report_job(self, jobs: JobPlan) -> Job:
        """Return the last job, with the results of the bases that have all of theirs.

        Raises:
            W2SError: No base has.
        """
        report = jobs.jobs[-1]
        if not self.failed:
            return report
        seeds = {s for own in finished_bases(self.cfg, jobs, self.results).values() for s in own}
        if not seeds:
            raise W2SError(f"every base failed: {next(iter(self.failed.values()))}")
        kept = {job.name for job in jobs.jobs if job.seed in seeds}
        return replace(report, inputs=tuple(pair for pair in report.inputs if pair[1] in kept))

    def ready(self, job: Job) -> bool:
        """Return whether all jobs that the job needs are finished."""
        return all(name in self.results for name in job.needs)


def _report_stage(session: Session, job: Job) -> Report:
    """Return what the report has, from the store if these predictions were scored before."""
    if not session.take_stored(job):
        session.prepare_store()
        session.observer.started(job)
        item = session.work_item(job)
        artifact = execute(session.cfg, item, 1, lambda *_: None, session.read)
        session.results[job.name] = artifact
        session.observer.finished(job, artifact.info.get("seconds"))
    return read_report(session.results[job.name].path)
