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


def _run(program: str, cases: int, folder: Path) -> None:
    binary = sanitizers.build(program, folder)
    done = subprocess.run(
        [binary, str(cases), "1"], capture_output=True, text=True, timeout=250, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout == f"{cases} cases\n"


def test_memory_and_undefined_behaviour(tmp_path: Path) -> None:
    _run("memory", 20_000, tmp_path)


def test_threads(tmp_path: Path) -> None:
    _run("threads", 60, tmp_path)


@pytest.mark.parametrize(
    ("program", "old", "new", "report"),
    [
        ("memory", "double total = 0;", "double total = c.weight ? c.weight[c.n] : 0;", "Address"),
        ("threads", "if (row >= 0) bad = row;", "c.index[0] = row;", "ThreadSanitizer"),
    ],
)  # fmt: skip
def test_a_planted_fault_is_seen(
    program: str, old: str, new: str, report: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read behind the weights, and a word that all threads write."""
    for name in ("csrc", "tests/native"):
        shutil.copytree(sanitizers.ROOT / name, tmp_path / name)
    source = tmp_path / "csrc" / "cpu" / "run.cpp"
    text = source.read_text()
    assert old in text
    source.write_text(text.replace(old, new, 1))
    monkeypatch.setattr(sanitizers, "ROOT", tmp_path)
    with pytest.raises(AssertionError, match=report):
        _run(program, 500, tmp_path)
