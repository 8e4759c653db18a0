"""The compiled core under sanitizers: no stray access, no undefined behaviour, no race."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tools import sanitizers

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++ with its sanitizers"),
]


# A read behind the weights, and a word that all threads write: in run.cpp, and what reports them.
FAULTS = {
    "memory": ("double total = 0;", "double total = c.weight ? c.weight[c.n] : 0;", "Address"),
    "threads": ("if (row >= 0) bad = row;", "c.index[0] = row;", "ThreadSanitizer"),
}


def _run(binary: Path, cases: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [binary, str(cases), "1"], capture_output=True, text=True, timeout=250, check=False
    )


@pytest.mark.parametrize(("program", "cases"), [("memory", 20_000), ("threads", 60)])
def test_nothing_is_reported_but_a_planted_fault(
    program: str, cases: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one test: compiling takes most of the time, and only one source differs."""
    done = _run(sanitizers.build(program, tmp_path), cases)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout == f"{cases} cases\n"

    old, new, report = FAULTS[program]
    for name in ("csrc", "tests/native"):
        shutil.copytree(sanitizers.ROOT / name, tmp_path / name)
    source = tmp_path / "csrc" / "cpu" / "run.cpp"
    text = source.read_text()
    assert old in text
    source.write_text(text.replace(old, new, 1))
    monkeypatch.setattr(sanitizers, "ROOT", tmp_path)
    done = _run(sanitizers.build(program, tmp_path, only=source.name), 500)
    assert done.returncode != 0 and report in done.stderr, done.stderr[-4000:]
