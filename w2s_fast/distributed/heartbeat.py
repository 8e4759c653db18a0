"""Who is still there: a beat from every process, and one clear line when one of them stops.

Libraries notice a lost process late (after their own timeout) and without a name. Here every
process counts up in a store that rank 0 keeps, from a thread of its own; rank 0 watches the
counts. A process that died, hangs, or lost its network stops counting; one that fails says so. Then
every process says which rank on which host it was and ends with ``EXIT_CODE``, so that launchers
clean up and no one waits in a collective for a peer that will never come. A process that hangs
cannot end itself: a guard, a small process beside each, listens to its beat and kills it.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from w2s_fast.distributed.world import World

EXIT_CODE = 75  # EX_TEMPFAIL: run the same command again
_FASTEST_S = 0.2  # between two beats of one process
_ALL_PER_S = 500  # beats that rank 0's store takes from everyone together
# Ends with its process; kills it when it has not been heard of for too long.
_GUARD = """
import os, select, signal, sys
parent, silence_s = os.getppid(), float(sys.argv[1])
while select.select([0], [], [], silence_s)[0]:
    if not os.read(0, 4096):
        sys.exit()
if os.getppid() == parent:
    os.kill(parent, signal.SIGKILL)
"""
_LISTEN = 4  # beats to wait before a process counts as silent, once something went wrong
_VERDICT = "verdict"


class LostError(RuntimeError):
    """Another process of the job is gone; the message says which."""


class Heartbeat:
    """This process's beat, and on rank 0 the watch over all.

    Args:
        world: this process.
        silence_s: how long a process may be silent.
    """

    def __init__(self, world: World, silence_s: float) -> None:
        self._world, self._silence_s = world, silence_s
        self._every_s = min(max(_FASTEST_S, world.size / _ALL_PER_S), silence_s / 4)
        self._stop, self._ignores_verdicts = threading.Event(), False
        self._hosts: list[str] = world.all_gather_object(socket.gethostname())
        self._store = self._connect()
        self._thread = threading.Thread(target=self._run, name="w2s-heartbeat", daemon=True)
        self._guard = subprocess.Popen(
            [sys.executable, "-S", "-c", _GUARD, str(silence_s)], stdin=subprocess.PIPE
        )

    def start(self) -> None:
        """Begin to beat, once everyone is here."""
        self._store.add(_beat(self._world.rank), 1)
        self._world.barrier()
        self._thread.start()

    def stop(self) -> None:
        """End in peace: all processes must call it."""
        self._world.barrier()  # nobody may be missed while others still watch
        self._stop.set()
        self._thread.join()
        assert self._guard.stdin is not None
        self._guard.stdin.close()
        self._guard.wait()
        self._world.barrier()  # rank 0's store outlives the last look at it

    def ignore_verdicts(self) -> None:
        """Ignore verdicts: this process is about to end by itself. It beats until then."""
        self._ignores_verdicts = True

    def report_failure(self, message: str) -> None:
        """Tell the others that this process gives up, and why."""
        with contextlib.suppress(RuntimeError):
            self._store.set(_VERDICT, f"{self._name(self._world.rank)}: {message}")

    def silent_ranks(self) -> list[int]:
        """Ranks that do not beat while this call waits; rank 0 if nobody answers any more."""
        try:
            before = self._counts()
            time.sleep(_LISTEN * self._every_s)
            both = enumerate(zip(before, self._counts(), strict=True))
            return [r for r, (a, b) in both if a == b and r != self._world.rank]
        except RuntimeError:
            return [] if self._world.is_main_process else [0]

    def keep_beating(self) -> None:
        """Beat on while the others listen who is silent."""
        time.sleep(_LISTEN * self._every_s)

    def names(self, ranks: list[int]) -> str:
        """``rank 1 on node-b, rank 2 on node-b``."""
        return ", ".join(map(self._name, ranks))

    def lost_processes(self) -> str:
        """Who was lost, if that is known by now."""
        try:
            return self._verdict() or self.names(self.silent_ranks())
        except RuntimeError:
            return self._name(0)

    def _verdict(self) -> str:
        return self._store.get(_VERDICT).decode() if self._store.check([_VERDICT]) else ""

    def _connect(self) -> Any:
        from torch.distributed import TCPStore

        host, timeout = os.environ["MASTER_ADDR"], timedelta(seconds=self._silence_s)
        port, store = 0, None
        if self._world.is_main_process:
            store = TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=timeout)
            port = store.port
        port = self._world.broadcast_object(port)
        return store or TCPStore(
            host, port, is_master=False, wait_for_workers=False, timeout=timeout
        )

    def _run(self) -> None:
        heard = [(0, time.monotonic())] * self._world.size
        reached = time.monotonic()
        while not self._stop.wait(self._every_s):
            with contextlib.suppress(OSError):  # the guard is a help, not a condition
                os.write(self._guard.stdin.fileno(), b".")  # type: ignore[union-attr]
            try:
                self._store.add(_beat(self._world.rank), 1)
                if self._world.is_main_process:
                    heard = self._judge(heard)
                verdict = self._verdict()
            except RuntimeError:
                if time.monotonic() - reached > self._silence_s:
                    self._end(f"{self._name(0)} has not been reached for {self._silence_s:g} s")
                continue
            reached = time.monotonic()
            if verdict:
                self._end(verdict)

    def _judge(self, heard: list[tuple[int, float]]) -> list[tuple[int, float]]:
        """Rank 0: note new beats; pass a verdict on who has been silent for too long."""
        now = time.monotonic()
        heard = [
            (count, since if count == old else now)
            for count, (old, since) in zip(self._counts(), heard, strict=True)
        ]
        lost = [r for r, (_, since) in enumerate(heard) if now - since > self._silence_s]
        if lost and not self._store.check([_VERDICT]):
            self._store.set(_VERDICT, f"{self.names(lost)}: silent for {self._silence_s:g} s")
        return heard

    def _counts(self) -> list[int]:
        return [self._store.add(_beat(r), 0) for r in range(self._world.size)]

    def _name(self, rank: int) -> str:
        return f"rank {rank} on {self._hosts[rank]}"

    def _end(self, why: str) -> None:
        if self._stop.is_set() or self._ignores_verdicts:
            return
        print_stderr(f"lost {why}; this job ends, run the same command again to continue")
        if self._world.is_main_process:
            self.keep_beating()  # the others have yet to read it, in this process's store
        os._exit(EXIT_CODE)


def print_stderr(message: str) -> None:
    """One line on standard error, past everything that buffers."""
    os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"w2s-fast: {message}\n".encode())


@contextlib.contextmanager
def monitor_processes(world: World, silence_s: float) -> Iterator[None]:
    """Beat inside the block. An error there is told to the others before it goes on.

    Args:
        world: this process; alone there is nobody to watch.
        silence_s: how long a process may be silent.
    """
    if world.size == 1:
        yield
        return
    beat = Heartbeat(world, silence_s)
    beat.start()
    try:
        yield
    except BaseException as e:
        beat.ignore_verdicts()
        text = " ".join(f"{e}".split()) or type(e).__name__
        # Libraries fail with RuntimeError and words of their own when a peer is gone. The beats
        # know whether one is, and which.
        lost = beat.lost_processes() if isinstance(e, RuntimeError) else ""
        if not lost:
            beat.report_failure(text[:300])
        beat.keep_beating()  # or the others would only see the connection break
        if lost:
            raise LostError(f"lost {lost} ({text[:160]})") from e
        raise
    beat.stop()


def _beat(rank: int) -> str:
    return f"beat/{rank}"
