"""A command that ends with this process, however this process ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence

# Reads from this process: one byte at the end of the job, or nothing if this process is gone.
_GUARD = """
import os, signal, sys
if not os.read(0, 1):
    os.kill(int(sys.argv[1]), signal.SIGTERM)
"""


def run_job(command: Sequence[str], env: Mapping[str, str], *, whole_group: bool) -> int:
    """Run a command, and return its exit code as a shell does.

    Ctrl-C and SIGTERM are passed on. If this process is killed, the command gets a SIGTERM.

    Args:
        command: The command.
        env: Its environment.
        whole_group: Signals go to the command and all that it starts; else to the command alone,
            which has to end what it started.
    """
    child = subprocess.Popen(command, env=env, start_new_session=whole_group)
    target = -child.pid if whole_group else child.pid
    guard = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _GUARD, str(target)],
        stdin=subprocess.PIPE,
        start_new_session=True,
    )

    def stop(number: int, _frame: object) -> None:
        if child.returncode is None:
            os.kill(target, number)

    before = {n: signal.signal(n, stop) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        code = child.wait()
        guard.communicate(b".")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code
