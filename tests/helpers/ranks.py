"""Several processes for a test: the test's own file runs as the program of every rank."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from typing import Any

import pytest
import torch

from helpers.paths import PYTHONPATH, TESTS
from w2s_fast.distributed.network import free_port

LONG = bool(os.environ.get("W2S_LONG"))
minutes = pytest.mark.skipif(not LONG, reason="takes minutes: make test-long")
# Between them the tests of runs see every stage, each one or two; those of trainings see all.
ZERO_STAGES = ((0, 1, 2, 3),) * 3 if LONG else ((0, 3), (1,), (2,))
# Forks share the seed of Python's hashes. Real ranks do not, and iterate over sets each in its own
# order: neighbours come from two servers.
SERVERS = 2


class Rank:
    """A forked rank, with what tests use of ``subprocess.Popen``."""

    def __init__(self, pid: int, out: int, end: int) -> None:
        self.pid, self._end = pid, end
        self.returncode: int | None = None
        self.stdout = io.TextIOWrapper(io.FileIO(out))

    def wait(self, timeout: float | None = None) -> int:
        """Exit code, minus the number of the signal that ended it."""
        if self.returncode is None:
            if not select.select([self._end], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("rank", timeout or 0)
            self.returncode = int(os.read(self._end, 16) or b"-1")
            os.close(self._end)
        return self.returncode

    def poll(self) -> int | None:
        """The exit code, or None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.wait(0)
        return None

    def send_signal(self, number: int) -> None:
        """To a rank that still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it whatever it does."""
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        """What it still prints until it ends."""
        end = None if timeout is None else time.monotonic() + timeout
        parts = []
        while True:
            left = None if end is None else max(0.0, end - time.monotonic())
            if not select.select([self.stdout.fileno()], [], [], left)[0]:
                raise subprocess.TimeoutExpired("rank", timeout or 0)
            part = os.read(self.stdout.fileno(), 1 << 16)
            if not part:
                break
            parts.append(part)
        self.wait(None if end is None else max(1.0, end - time.monotonic()))
        return b"".join(parts).decode(errors="replace"), None


@functools.cache
def _server(number: int) -> socket.socket:
    mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    subprocess.Popen(
        [sys.executable, str(TESTS / "helpers" / "rank_server.py"), str(its.fileno())],
        env=_shared() | {"PYTHONHASHSEED": str(1000 + number), "OPENBLAS_NUM_THREADS": "1"},
        pass_fds=[its.fileno()],
        stdin=subprocess.DEVNULL,
    )
    its.close()
    return mine


@functools.cache
def _ready_server(number: int) -> socket.socket:
    """A server that has imported; ranks of one launch must not wait for each other's imports."""
    server = _server(number)
    assert server.recv(1), "the server of ranks has ended; its message is above"
    return server


def _shared() -> dict[str, str]:
    return os.environ | {
        "PYTHONPATH": PYTHONPATH,
        "OMP_NUM_THREADS": "1",
    }


def _fork(number: int, file: str, args: tuple[str, ...], env: dict[str, str]) -> Rank:
    job = {"file": file, "args": args, "env": env, "cwd": os.getcwd()}
    out, end = os.pipe(), os.pipe()
    server = _ready_server(number % SERVERS)
    socket.send_fds(server, [json.dumps(job).encode()], [out[1], end[1]])
    os.close(out[1])
    os.close(end[1])
    pid = server.recv(4, socket.MSG_WAITALL)
    assert len(pid) == 4, "the server of ranks has ended; its message is above"
    return Rank(int.from_bytes(pid, "little"), out[0], end[0])


def start(file: str, size: int, *args: str, fresh: bool = False, **env: str) -> list[Any]:
    """``size`` processes of ``python file args``, as a launcher would start them.

    ``fresh`` starts an interpreter for each, with its shutdown, where a test is about that.
    """
    shared = _shared() | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        **env,
    }
    of_rank = [shared | {"RANK": str(r), "LOCAL_RANK": str(r)} for r in range(size)]
    # A process that has seen a GPU must not be forked.
    if not fresh and sys.platform == "linux" and not torch.cuda.is_available():
        servers = range(min(size, SERVERS))
        for number in servers:
            _server(number)  # they import side by side
        for number in servers:
            _ready_server(number)
        return [_fork(r, file, args, mine) for r, mine in enumerate(of_rank)]
    return [_process([sys.executable, file, *args], mine) for mine in of_rank]


def program(module: str, *args: str, **env: str) -> Any:
    """One process of ``python -m module args`` (or of a file) that no launcher started."""
    if sys.platform == "linux" and not torch.cuda.is_available():
        return _fork(0, module, args, _shared() | env)
    call = [module] if module.endswith(".py") else ["-m", module]
    return _process([sys.executable, *call, *args], _shared() | env)


def _process(command: list[str], env: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def run(file: str, size: int, job: Any, timeout: float = 280, **env: str) -> list[str]:
    """Run ``job`` (JSON, the program's one argument) and return every rank's output."""
    ranks = start(file, size, json.dumps(job), **env)
    try:
        outputs = [p.communicate(timeout=timeout)[0] for p in ranks]
    finally:
        for p in ranks:
            p.kill()
    codes = [p.returncode for p in ranks]
    assert not any(codes), f"exit codes {codes}\n" + "\n----\n".join(o[-4000:] for o in outputs)
    return outputs
