"""A job ends with the process that started it, and all of it does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from w2s_fast.cli.job import run_job

# A runner that starts a rank, as DeepSpeed's does, and tells the process ids of both.
RUNNER = """
import os, subprocess, sys, time
rank = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"])
print(os.getpid(), rank.pid, flush=True)
time.sleep(120)
"""
LAUNCHER = f"""
import os, sys
from w2s_fast.cli.job import run_job
sys.exit(run_job([sys.executable, "-c", {RUNNER!r}], os.environ, whole_group=sys.argv[1] == "all"))
"""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
@pytest.mark.parametrize("group", ["all", "runner"])
def test_a_job_ends_with_its_launcher(number: signal.Signals, group: str) -> None:
    command = [sys.executable, "-c", LAUNCHER, group]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as launcher:
        assert launcher.stdout is not None
        runner, rank = map(int, launcher.stdout.readline().split())
        try:
            launcher.send_signal(number)
            launcher.wait(20)
            end = time.monotonic() + 20
            ended = [runner, rank] if group == "all" else [runner]
            while any(map(alive, ended)):
                assert time.monotonic() < end, f"{number.name} leaves processes behind"
                time.sleep(0.05)
        finally:
            for pid in filter(alive, (runner, rank)):
                os.kill(pid, signal.SIGKILL)


def test_exit_codes() -> None:
    for code, expected in (("sys.exit(7)", 7), ("os.kill(os.getpid(), 9)", 137), ("", 0)):
        command = [sys.executable, "-c", f"import os, sys; {code}"]
        assert run_job(command, os.environ, whole_group=True) == expected
