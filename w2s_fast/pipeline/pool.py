"""Run jobs in this process or in worker processes, with the same events for the caller."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from w2s_fast.config import RunConfig, at_seed, seeds_of_bases
from w2s_fast.distributed.interpreter import module_command
from w2s_fast.distributed.world import get_world, local_world_size
from w2s_fast.errors import W2SError
from w2s_fast.files import open_no_link
from w2s_fast.models import BUILT_IN
from w2s_fast.pipeline.context import ReadFn
from w2s_fast.pipeline.execute import WorkItem, execute, pack
from w2s_fast.pipeline.jobs import Job
from w2s_fast.store import Artifact

_LARGE_MODEL_THREADS = 4


class JobError(W2SError):
    """A job failed, or its process died; the pool can go on.

    Attributes:
        job: The failed job.
    """

    def __init__(self, message: str, job: Job) -> None:
        super().__init__(message)
        self.job = job


class JobObserver(Protocol):
    """Callbacks for the progress of jobs."""

    def planned(self, seconds: Mapping[str, float | None], workers: int) -> None:
        """All jobs by name, with their expected seconds if known; ``workers`` run at a time."""

    def started(self, job: Job) -> None:
        """A job starts."""

    def stepped(self, job: Job, step: int, steps: int) -> None:
        """A job has finished ``step`` of ``steps``."""

    def finished(self, job: Job, seconds: float | None) -> None:
        """A job is finished; ``seconds`` is None if the store had its result."""

    def noted(self, lines: Sequence[str]) -> None:
        """What a finished job has found."""

    def warned(self, message: str) -> None:
        """A warning for the user."""


def choose_parallelism(cfg: RunConfig, *, cuda: bool) -> tuple[int, int]:
    """Return (workers, threads of each).

    Threads depend on machine and models only, so the number of workers never changes a result.
    Under a launcher, all processes compute one job at a time and share the cores of their host.
    """
    usable = getattr(os, "sched_getaffinity", None)  # Linux only
    cores = len(usable(0)) if usable else os.cpu_count() or 1
    # Built-in models are small and gain nothing from a second thread.
    sources = {at_seed(cfg, seeds[0]).student.source for seeds in seeds_of_bases(cfg)}
    small = {cfg.weak.source, *sources} <= set(BUILT_IN)
    threads = cfg.threads or (1 if small else min(cores, _LARGE_MODEL_THREADS))
    if get_world().size > 1:
        return 1, cfg.threads or max(1, min(threads, cores // local_world_size()))
    return cfg.workers or (1 if cuda else max(1, cores // threads)), threads


class LocalPool:
    """Compute one job at a time, in this process."""

    def __init__(self, cfg: RunConfig, threads: int, observer: JobObserver, read: ReadFn) -> None:
        self._cfg, self._threads, self._observer, self._read = cfg, threads, observer, read
        self._done: list[tuple[Job, Artifact]] = []

    def __enter__(self) -> LocalPool:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    @property
    def free(self) -> bool:
        """Whether another job can be submitted."""
        return not self._done

    def submit(self, work_item: WorkItem) -> None:
        """Compute the job."""
        job = work_item.job
        self._observer.started(job)

        def progress(step: int, steps: int, loss: float) -> None:
            self._observer.stepped(job, step, steps)

        try:
            done = execute(self._cfg, work_item, self._threads, progress, self._read)
        except W2SError as err:
            raise JobError(f"{job.name}: {err}", job) from err
        self._done.append((job, done))

    def wait(self) -> tuple[Job, Artifact]:
        """Return a finished job."""
        return self._done.pop()


@dataclass(eq=False)
class _Worker:
    place: int
    process: subprocess.Popen[str]
    log: Path
    job: Job | None = None


class ProcessPool:
    """Compute one job per place at a time, each in its own process, started when needed.

    Args:
        cfg: Configuration of the run; any one if several runs share a store.
        threads: Number of torch threads per process.
        places: Environment variables of the process at each place.
        observer: Callbacks for the progress of jobs.
    """

    def __init__(
        self,
        cfg: RunConfig,
        threads: int,
        places: Sequence[Mapping[str, str]],
        observer: JobObserver,
    ) -> None:
        self._cfg, self._threads, self._places, self._observer = cfg, threads, places, observer
        self._workers: list[_Worker] = []
        self._numbers = itertools.count()  # of log files; a lost process keeps its own
        self._events: queue.Queue[tuple[_Worker, dict[str, Any] | None]] = queue.Queue()

    def __enter__(self) -> ProcessPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _err: object, _trace: TracebackType | None
    ) -> None:
        for worker in self._workers:
            if kind is not None:
                worker.process.kill()
            assert worker.process.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # what a full pipe still holds, for nobody
                worker.process.stdin.close()
        for worker in self._workers:
            worker.process.wait()

    @property
    def free(self) -> bool:
        """Whether another job can be submitted."""
        return sum(w.job is not None for w in self._workers) < len(self._places)

    def submit(self, work_item: WorkItem, cfg: RunConfig | None = None) -> None:
        """Send the job, of the pool's run or of ``cfg``, to an idle or a new worker."""
        idle = next((w for w in self._workers if w.job is None), None) or self._start()
        idle.job = work_item.job
        self._observer.started(work_item.job)
        threads = self._threads if cfg is None else choose_parallelism(cfg, cuda=False)[1]
        config = pack(cfg or self._cfg)
        message = {"config": config, "work_item": work_item.to_json(), "threads": threads}
        _send(idle.process, message)

    def wait(self) -> tuple[Job, Artifact]:
        """Return the next finished job.

        Raises:
            JobError: A job failed or its process died; leaving the pool stops the others.
        """
        while True:
            worker, message = self._events.get()
            job = worker.job
            if message is None:
                worker.process.wait()
                self._drop(worker)
                if job is not None:
                    raise JobError(_lost_process_message(worker, job), job)
            elif "warning" in message:
                self._observer.warned(message["warning"])
            elif job is None:
                continue
            elif "progress" in message:
                self._observer.stepped(job, *message["progress"])
            elif "done" in message:
                worker.job, done = None, message["done"]
                return job, Artifact.from_json(done)
            elif "error" in message:
                worker.job = None
                raise JobError(f"{job.name}: {message['error']}", job)
            else:
                self._drop(worker)  # after a CUDA error the process is unusable
                text = f"{job.name} failed: {message['crash']}; details in {worker.log}"
                raise JobError(text, job)

    def _drop(self, worker: _Worker) -> None:
        if worker in self._workers:
            self._workers.remove(worker)
            worker.job = None
            worker.process.kill()
            worker.process.wait()

    def _start(self) -> _Worker:
        folder = self._cfg.store_dir / ".logs"
        folder.mkdir(parents=True, exist_ok=True)
        taken = {w.place for w in self._workers}
        place = next(i for i in range(len(self._places)) if i not in taken)
        log = folder / f"worker-{next(self._numbers)}.txt"
        with open(log, "wb", opener=open_no_link) as errors:
            process = subprocess.Popen(
                [*module_command("w2s_fast.pipeline.worker"), str(os.getpid())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                encoding="utf-8",
                env={**_environment(self._threads), **self._places[place]},
            )
        worker = _Worker(place, process, log)
        self._workers.append(worker)
        threading.Thread(target=self._listen, args=(worker,), daemon=True).start()
        return worker

    def _listen(self, worker: _Worker) -> None:
        assert worker.process.stdout is not None
        for line in worker.process.stdout:
            try:
                message = json.loads(line)
            except ValueError:
                break  # the process ended while it wrote
            self._events.put((worker, message))
        self._events.put((worker, None))


def _lost_process_message(worker: _Worker, job: Job) -> str:
    code = worker.process.returncode
    how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
    hint = " (out of memory? try --workers 1)" if code == -9 else ""
    return f"the process of {job.name} {how}{hint}; run again to continue; details in {worker.log}"


def _environment(threads: int) -> dict[str, str]:
    """Return the environment of a worker, with this process's import path."""
    path = os.pathsep.join(p or os.getcwd() for p in sys.path)
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": str(threads)}


def _send(process: subprocess.Popen[str], message: Any) -> None:
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # the process died; ``wait`` raises
        process.stdin.write(json.dumps(message) + "\n")
        process.stdin.flush()


def make_pool(
    cfg: RunConfig, workers: int, threads: int, observer: JobObserver, read: ReadFn
) -> LocalPool | ProcessPool:
    """Return a pool of this many workers; ``read`` is for jobs in this process."""
    if workers == 1:
        return LocalPool(cfg, threads, observer, read)
    return ProcessPool(cfg, threads, [{}] * workers, observer)
