"""Heartbeats between the processes of a job, and one clear error message when a process is lost.

Libraries notice a lost process late (after their own timeout) and do not name it. Here a thread of
every process increments a counter in a store on rank 0, and rank 0 watches the counters. A process
that died, hangs, or lost its network stops counting; one that fails reports its error. Every other
process then prints which rank on which host was lost and exits with ``EXIT_CODE``, so that
launchers clean up and no process waits in a collective call for a lost peer. A process that hangs
cannot exit by itself: a guard, a small subprocess of each process, reads its heartbeat from a pipe
and kills it when the heartbeat stops. If rank 0 hangs without being killed, as on a host that
freezes, its store does not answer, and the others exit for that.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from datetime import timedelta
from typing import Any, TypeVar

from w2s_fast.distributed.world import World

EXIT_CODE = 75  # EX_TEMPFAIL: run the same command again
_MIN_INTERVAL_S = 0.2  # between two beats of one process
_MAX_BEATS_PER_S = 500  # load of rank 0's store, all processes together
# Exits with its parent; kills the parent when it has been silent for too long.
_GUARD = """
import os, select, signal, sys
parent, timeout_s = os.getppid(), float(sys.argv[1])
while select.select([0], [], [], timeout_s)[0]:
    if not os.read(0, 4096):
        sys.exit()
if os.getppid() == parent:
    os.kill(parent, signal.SIGKILL)
"""
_LISTEN_BEATS = 4  # beats without progress after which a process counts as silent, after an error
_ANSWER_FRACTION = 1 / 3  # of the timeout, in which the store has to answer; the guard waits longer
_VERDICT = "verdict"  # key of the store: which process was lost, and why
T = TypeVar("T")


class LostError(RuntimeError):
    """Another process of the job was lost; the message names it."""


class Heartbeat:
    """Heartbeat of this process, and on rank 0 the supervision of all.

    Args:
        world: this process.
        timeout_s: silence after which a process counts as lost.
    """

    def __init__(self, world: World, timeout_s: float) -> None:
        self._world, self._timeout_s = world, timeout_s
        interval_s = max(_MIN_INTERVAL_S, world.size / _MAX_BEATS_PER_S)
        self._interval_s = min(interval_s, timeout_s / 4)
        self._stop, self._ignores_verdicts = threading.Event(), False
        self._last_beats: list[tuple[int, float]] = []  # (count, time) by rank, on rank 0
        self._hosts: list[str] = world.all_gather_object(socket.gethostname())
        self._store = self._connect()
        self._thread = threading.Thread(target=self._run, name="w2s-heartbeat", daemon=True)
        self._guard = subprocess.Popen(  # -I: nothing is imported from the working folder
            [sys.executable, "-I", "-S", "-c", _GUARD, str(timeout_s)], stdin=subprocess.PIPE
        )

    def start(self) -> None:
        """Start the heartbeat; a collective call."""
        self._store.add(_counter(self._world.rank), 1)
        self._world.barrier()
        self._thread.start()

    def stop(self) -> None:
        """Stop the heartbeat; a collective call."""
        self._world.barrier()  # no process may stop while another still supervises it
        self._stop.set()
        self._thread.join()
        assert self._guard.stdin is not None
        self._guard.stdin.close()
        self._guard.wait()
        self._world.barrier()  # rank 0 keeps the store until the last process has read it

    def ignore_verdicts(self) -> None:
        """Ignore verdicts from now on: this process is about to exit, and beats until then."""
        self._ignores_verdicts = True

    def report(self, verdict: str) -> None:
        """Tell the other processes what was lost, and why, unless they know already."""
        with contextlib.suppress(RuntimeError):
            self._ask(lambda: self._set_verdict(verdict))

    @property
    def name(self) -> str:
        """Rank and host of this process."""
        return self._name(self._world.rank)

    def silent_ranks(self) -> list[int]:
        """Return the ranks that do not beat during this call; [0] if the store is unreachable."""
        try:
            before = self._ask(self._counts)
            time.sleep(_LISTEN_BEATS * self._interval_s)
            pairs = enumerate(zip(before, self._ask(self._counts), strict=True))
            return [r for r, (a, b) in pairs if a == b and r != self._world.rank]
        except RuntimeError:
            return [] if self._world.is_main_process else [0]

    def wait_for_others(self) -> None:
        """Wait until the other processes can name what was lost.

        They read the verdict from rank 0's store, which ends with rank 0: it waits until no other
        process beats, half of the timeout at most.
        """
        if not self._world.is_main_process:
            time.sleep(_LISTEN_BEATS * self._interval_s)
            return
        end = time.monotonic() + self._timeout_s / 2
        while time.monotonic() < end and len(self.silent_ranks()) < self._world.size - 1:
            pass  # `silent_ranks` listens for a few beats

    def names(self, ranks: list[int]) -> str:
        """Return ``rank 1 on node-b, rank 2 on node-b``."""
        return ", ".join(map(self._name, ranks))

    def lost_processes(self) -> str:
        """Name the lost processes, if any are known by now."""
        try:
            return self._ask(self._verdict) or self.names(self.silent_ranks())
        except RuntimeError:
            return self._name(0)

    def _ask(self, call: Callable[[], T]) -> T:
        """Return what a call to rank 0's store returns.

        The store's client waits for an answer without a limit, as long as the connection is open.

        Raises:
            RuntimeError: The connection is lost, or no answer comes.
        """
        answer: Future[T] = Future()

        def wait() -> None:
            try:
                answer.set_result(call())
            except RuntimeError as e:
                answer.set_exception(e)

        threading.Thread(target=wait, name="w2s-heartbeat-store", daemon=True).start()
        try:
            return answer.result(_ANSWER_FRACTION * self._timeout_s)
        except TimeoutError:
            raise RuntimeError(f"the store of {self._name(0)} does not answer") from None

    def _set_verdict(self, verdict: str) -> None:
        if not self._store.check([_VERDICT]):
            self._store.set(_VERDICT, verdict)

    def _verdict(self) -> str:
        return self._store.get(_VERDICT).decode() if self._store.check([_VERDICT]) else ""

    def _connect(self) -> Any:
        from torch.distributed import TCPStore

        host, timeout = os.environ["MASTER_ADDR"], timedelta(seconds=self._timeout_s)
        port, store = 0, None
        if self._world.is_main_process:
            store = TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=timeout)
            port = store.port
        port = self._world.broadcast_object(port)
        return store or TCPStore(
            host, port, is_master=False, wait_for_workers=False, timeout=timeout
        )

    def _run(self) -> None:
        self._last_beats = [(0, time.monotonic())] * self._world.size
        last_reached = time.monotonic()
        while not self._stop.wait(self._interval_s):
            with contextlib.suppress(OSError):  # the guard may be gone
                os.write(self._guard.stdin.fileno(), b".")  # type: ignore[union-attr]
            try:
                verdict = self._ask(self._beat)
            except RuntimeError:
                if time.monotonic() - last_reached > self._timeout_s:
                    self._exit(f"{self._name(0)} has not been reached for {self._timeout_s:g} s")
                continue
            last_reached = time.monotonic()
            if verdict:
                self._exit(verdict)

    def _beat(self) -> str:
        """Count one beat, and on rank 0 look at those of the others; return the verdict."""
        self._store.add(_counter(self._world.rank), 1)
        if self._world.is_main_process:
            self._supervise()
        return self._verdict()

    def _supervise(self) -> None:
        """Look at the last beat of each rank, and set the verdict on silent ranks."""
        now = time.monotonic()
        self._last_beats = [
            (count, since if count == old else now)
            for count, (old, since) in zip(self._counts(), self._last_beats, strict=True)
        ]
        lost = [r for r, (_, since) in enumerate(self._last_beats) if now - since > self._timeout_s]
        if lost:
            self._set_verdict(f"{self.names(lost)}: silent for {self._timeout_s:g} s")

    def _counts(self) -> list[int]:
        return [self._store.add(_counter(r), 0) for r in range(self._world.size)]

    def _name(self, rank: int) -> str:
        return f"rank {rank} on {self._hosts[rank]}"

    def _exit(self, reason: str) -> None:
        if self._stop.is_set() or self._ignores_verdicts:
            return
        print_stderr(f"lost {reason}; this job ends, run the same command again to continue")
        if self._world.is_main_process:
            self.wait_for_others()
        os._exit(EXIT_CODE)


def print_stderr(message: str) -> None:
    """Write one line to standard error, unbuffered."""
    os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"w2s-fast: {message}\n".encode())


@contextlib.contextmanager
def monitor_processes(world: World, timeout_s: float) -> Iterator[None]:
    """Send heartbeats inside the block; report an error in it to the other processes.

    Args:
        world: this process; a single process needs no heartbeat.
        timeout_s: silence after which a process counts as lost.

    Raises:
        LostError: in place of a RuntimeError, if another process was lost.
    """
    if world.size == 1:
        yield
        return
    heartbeat = Heartbeat(world, timeout_s)
    heartbeat.start()
    try:
        yield
    except BaseException as e:
        heartbeat.ignore_verdicts()
        text = " ".join(f"{e}".split()) or type(e).__name__
        # Libraries raise a RuntimeError that does not name the peer that is gone; heartbeats do.
        lost = heartbeat.lost_processes() if isinstance(e, RuntimeError) else ""
        cause = f"{lost} ({text[:160]})" if lost else f"{heartbeat.name}: {text[:300]}"
        heartbeat.report(cause)
        heartbeat.wait_for_others()  # or they would only see the connection break
        if lost:
            raise LostError(f"lost {lost} ({text[:160]})") from e
        raise
    heartbeat.stop()


def _counter(rank: int) -> str:
    return f"beat/{rank}"
