"""Several processes for a test: the test's own file runs as the program of every rank."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from w2s_fast.network import free_port

ROOT = Path(__file__).parents[1]
LONG = bool(os.environ.get("W2S_LONG"))
minutes = pytest.mark.skipif(not LONG, reason="takes minutes: make test-long")


def start(file: str, size: int, *args: str, **env: str) -> list[subprocess.Popen[str]]:
    """``size`` processes of ``python file args``, as a launcher would start them."""
    shared = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        **env,
    }
    return [
        subprocess.Popen(
            [sys.executable, file, *args],
            env=shared | {"RANK": str(r), "LOCAL_RANK": str(r)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for r in range(size)
    ]


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
