"""Runs jobs here or in worker processes; the caller sees the same events either way."""

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

from w2s_fast.config import RunConfig
from w2s_fast.distributed.world import get_world, local_world_size
from w2s_fast.errors import W2SError
from w2s_fast.models import BUILT_IN
from w2s_fast.pipeline.execute import Order, execute, pack
from w2s_fast.pipeline.jobs import Job
from w2s_fast.store import Artefact

_LARGE_MODEL_THREADS = 4


class JobError(W2SError):
    """A job failed, or its process died; the pool goes on.

    Attributes:
        job: The job.
    """

    def __init__(self, message: str, job: Job) -> None:
        super().__init__(message)
        self.job = job


class Watcher(Protocol):
    """Is told what happens to each job."""

    def started(self, job: Job) -> None:
        """A job begins."""

    def stepped(self, job: Job, step: int, steps: int) -> None:
        """A job has done ``step`` of ``steps``."""

    def finished(self, job: Job, seconds: float | None) -> None:
        """A job is done; ``seconds`` is None when it was stored already."""

    def warned(self, message: str) -> None:
        """Something the user should know."""


def choose_sizes(cfg: RunConfig, *, cuda: bool) -> tuple[int, int]:
    """Return (workers, threads of each).

    Threads depend on machine and models only, so the number of workers never changes a result.
    Under a launcher all processes work on one job at a time, and share the cores of their host.
    """
    usable = getattr(os, "sched_getaffinity", None)  # Linux only
    cores = len(usable(0)) if usable else os.cpu_count() or 1
    # built-in models are small: they gain nothing from a second thread
    small = cfg.weak.source in BUILT_IN and cfg.student.source in BUILT_IN
    threads = cfg.threads or (1 if small else min(cores, _LARGE_MODEL_THREADS))
    if get_world().size > 1:
        return 1, cfg.threads or max(1, min(threads, cores // local_world_size()))
    return cfg.workers or (1 if cuda else max(1, cores // threads)), threads


class LocalPool:
    """One job at a time, in this process."""

    def __init__(self, cfg: RunConfig, threads: int, watcher: Watcher) -> None:
        self._cfg, self._threads, self._watcher = cfg, threads, watcher
        self._done: list[tuple[Job, Artefact]] = []

    def __enter__(self) -> LocalPool:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    @property
    def free(self) -> bool:
        """Whether a job can be submitted."""
        return not self._done

    def submit(self, order: Order) -> None:
        """Compute the job now."""
        job = order.job
        self._watcher.started(job)

        def progress(step: int, steps: int, loss: float) -> None:
            self._watcher.stepped(job, step, steps)

        self._done.append((job, execute(self._cfg, order, self._threads, progress)))

    def wait(self) -> tuple[Job, Artefact]:
        """Return a finished job."""
        return self._done.pop()


@dataclass(eq=False)
class _Worker:
    place: int
    process: subprocess.Popen[str]
    log: Path
    job: Job | None = None


class ProcessPool:
    """As many jobs at a time as there are places, each in its own process, started when needed.

    Args:
        cfg: The run; of several runs with one store, any.
        threads: Of each process.
        places: Environment variables of the process at each place.
        watcher: Is told what happens.
    """

    def __init__(
        self, cfg: RunConfig, threads: int, places: Sequence[Mapping[str, str]], watcher: Watcher
    ) -> None:
        self._cfg, self._threads, self._places, self._watcher = cfg, threads, places, watcher
        self._workers: list[_Worker] = []
        self._numbers = itertools.count()  # of the logs: that of a lost process stays
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
            worker.process.stdin.close()
        for worker in self._workers:
            worker.process.wait()

    @property
    def free(self) -> bool:
        """Whether a job can be submitted."""
        return sum(w.job is not None for w in self._workers) < len(self._places)

    def submit(self, order: Order, cfg: RunConfig | None = None) -> None:
        """Hand the job, of the pool's run or of ``cfg``, to an idle worker, or to a new one."""
        idle = next((w for w in self._workers if w.job is None), None) or self._start()
        idle.job = order.job
        self._watcher.started(order.job)
        threads = self._threads if cfg is None else choose_sizes(cfg, cuda=False)[1]
        config = pack(cfg or self._cfg)
        message = {"config": config, "order": order.to_json(), "threads": threads}
        _write(idle.process, message)

    def wait(self) -> tuple[Job, Artefact]:
        """Return the next finished job.

        Raises:
            JobError: A job failed or its process died; the others are stopped on exit.
        """
        while True:
            worker, message = self._events.get()
            job = worker.job
            if message is None:
                worker.process.wait()
                self._drop(worker)
                if job is not None:
                    raise JobError(_obituary(worker, job), job)
            elif "warning" in message:
                self._watcher.warned(message["warning"])
            elif job is None:
                continue
            elif "progress" in message:
                self._watcher.stepped(job, *message["progress"])
            elif "done" in message:
                worker.job, done = None, message["done"]
                return job, Artefact(Path(done["path"]), done["digest"], done["info"])
            elif "error" in message:
                worker.job = None
                raise JobError(message["error"], job)
            else:
                self._drop(worker)  # after an error of CUDA nothing works there any more
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
        with log.open("w") as errors:
            process = subprocess.Popen(
                [sys.executable, "-m", "w2s_fast.pipeline.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**_environment(self._threads), **self._places[place]},
            )
        worker = _Worker(place, process, log)
        self._workers.append(worker)
        threading.Thread(target=self._listen, args=(worker,), daemon=True).start()
        return worker

    def _listen(self, worker: _Worker) -> None:
        assert worker.process.stdout is not None
        for line in worker.process.stdout:
            self._events.put((worker, json.loads(line)))
        self._events.put((worker, None))


def _obituary(worker: _Worker, job: Job) -> str:
    code = worker.process.returncode
    how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
    hint = " (out of memory? try --workers 1)" if code == -9 else ""
    return f"the process of {job.name} {how}{hint}; run again to continue; details in {worker.log}"


def _environment(threads: int) -> dict[str, str]:
    """Return the environment of a worker: this process's import path and its own thread count."""
    path = os.pathsep.join(p or os.getcwd() for p in sys.path)
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": str(threads)}


def _write(process: subprocess.Popen[str], message: Any) -> None:
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it died; `wait` tells of it
        process.stdin.write(json.dumps(message) + "\n")
        process.stdin.flush()


def make_pool(
    cfg: RunConfig, workers: int, threads: int, watcher: Watcher
) -> LocalPool | ProcessPool:
    """Return the pool for this many workers."""
    if workers == 1:
        return LocalPool(cfg, threads, watcher)
    return ProcessPool(cfg, threads, [{}] * workers, watcher)
