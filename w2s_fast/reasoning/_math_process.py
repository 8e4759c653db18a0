"""The process that compares answers with math-verify: started once, killed where it hangs."""

from __future__ import annotations

import atexit
import importlib.util
import json
import os
import select
import subprocess
import sys
import threading
import time
from pathlib import Path

from w2s_fast.errors import W2SError

START_S = 120.0
# Above the sum of the worker's own limits; a single long operation in C passes over those.
ANSWER_S = 30.0
_WORKER = Path(__file__).with_name("_math_worker.py")


class MathProcess:
    """A worker process, started at the first comparison and again after it was killed.

    One per Python process; calls from several threads take turns. A forked child starts its own.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0
        atexit.register(self.close)
        os.register_at_fork(after_in_child=self._unlock)

    def compare(self, first: str, second: str) -> str:
        """Return the name of the verdict on two answers; UNDECIDED if the worker hangs or dies.

        Raises:
            W2SError: math-verify is not installed, or does not start.
        """
        with self._lock:
            process = self._running()
            line = json.dumps([first, second]).encode() + b"\n"
            try:
                assert process.stdin is not None
                process.stdin.write(line)
                process.stdin.flush()
            except OSError:
                reply = None
            else:
                reply = _read_line(process, ANSWER_S)
            if reply is None:
                self._stop()
                return "UNDECIDED"
            return reply

    def close(self) -> None:
        """End the worker."""
        with self._lock:
            self._stop()

    def _unlock(self) -> None:
        """Replace the lock, which another thread may have held at the fork."""
        self._lock = threading.Lock()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._owner == os.getpid():
            return self._process
        check_installed()
        process = subprocess.Popen(
            [sys.executable, "-P", str(_WORKER)],  # -P: this folder must not be on its path
            bufsize=0,  # a buffer would be flushed when the pipe of a dead worker is closed
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        self._process, self._owner = process, os.getpid()
        if _read_line(process, START_S) != "ready":
            self._stop()
            raise W2SError(
                "math-verify is installed but does not start; run `python -c 'import math_verify'` "
                "to see why, or compare with rule='number'"
            )
        return process

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


def check_installed() -> None:
    """Raise `W2SError` unless math-verify can be imported."""
    if importlib.util.find_spec("math_verify") is None:
        raise W2SError(
            "rule='math' needs math-verify; pip install 'w2s-fast[reasoning]', or compare with "
            "rule='number' or rule='string'"
        )


def _read_line(process: subprocess.Popen[bytes], seconds: float) -> str | None:
    """Return the next line of the worker, None if it ends or takes longer."""
    assert process.stdout is not None
    descriptor, end = process.stdout.fileno(), time.monotonic() + seconds
    line = b""
    while not line.endswith(b"\n"):
        ready, _, _ = select.select([descriptor], [], [], max(0.0, end - time.monotonic()))
        block = os.read(descriptor, 4096) if ready else b""
        if not block:
            return None
        line += block
    return line.decode().strip()
