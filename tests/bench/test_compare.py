"""`bench compare` names what got slower, and nothing else, on any machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.compare import compare, main
from bench.harness.row_files import RESULTS, load

TIMES = {"ours": 10.0, "ours_inplace": 5.0, "eager": 40.0, "compile": 20.0, "floor_write": 8.0}


def rows(machine: float = 1.0, cpu: str = "x", **times: float) -> list[dict[str, Any]]:
    """Return a row per provider; ``machine`` scales all times, ``times`` replaces some."""
    return [
        {
            "op": "cross_entropy", "case": "hard", "dtype": "fp32", "n": 8, "v": 100,
            "allocator": "stock", "threads": 2, "provider": provider, "cpu": cpu,
            "cpu_ms": machine * ms, "cpu_ms_p20": 1.01 * machine * ms,
            "cpu_ms_p80": 1.04 * machine * ms,
        }
        for provider, ms in {**TIMES, **times}.items()
    ]  # fmt: skip


def status(folder: Path, new: list[dict[str, Any]], old: list[dict[str, Any]], *args: str) -> int:
    paths = [folder / name for name in ("new.jsonl", "old.jsonl")]
    for path, content in zip(paths, (new, old), strict=True):
        path.write_text("".join(json.dumps(row) + "\n" for row in content))
    return main([str(paths[0]), "--old", str(paths[1]), *args])


@pytest.mark.parametrize(
    "new",
    [
        rows(),
        rows(machine=3.0, cpu="y"),  # another machine: ratios are the same
        rows(ours=10.8),  # within the limit
        rows(ours=8.0),  # faster
        rows(compile=10.0),  # a single baseline got faster
    ],
)
def test_green(tmp_path: Path, capsys: pytest.CaptureFixture[str], new: list[Any]) -> None:
    assert status(tmp_path, new, rows()) == 0
    assert "0 of 2 cases slower" in capsys.readouterr().out


def test_red_names_the_case_and_both_environments(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status(tmp_path, rows(machine=2.0, cpu="y", ours=12.0), rows()) == 1
    text = capsys.readouterr().out
    (line,) = [line for line in text.splitlines() if line.startswith("slower")]
    assert "1.20x  cross_entropy hard fp32 8x100 stock 2 threads, ours  (" in line
    assert "/ eager 0.25 -> 0.3" in line and "/ floor_write 1.25 -> 1.5" in line
    assert "* cpu         old  x\n              new  y" in text
    assert "1 of 2 cases slower by more than 10%" in text
    assert status(tmp_path, rows(ours=12.0), rows(), "--limit", "0.3") == 0


def test_noise_is_not_slower(tmp_path: Path) -> None:
    noisy = [{**row, "cpu_ms_p20": 0.9 * row["cpu_ms"]} for row in rows(ours=11.5)]
    assert status(tmp_path, noisy, rows()) == 0


@pytest.mark.parametrize(
    "new",
    [
        [],
        [{**row, "v": 101} for row in rows()],
        [row for row in rows() if row["provider"].startswith("ours")],  # no baseline
    ],
)
def test_nothing_to_compare(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], new: list[Any]
) -> None:
    assert status(tmp_path, new, rows()) == 2
    assert "no case of ours is in both" in capsys.readouterr().err
    assert main([str(tmp_path / "missing.jsonl")]) == 2


def test_committed_rows_are_comparable_with_themselves() -> None:
    committed = load(RESULTS / "cpu")
    comparisons = compare(committed, committed)
    assert len(comparisons) > 80 and all(c.change == 1 for c in comparisons)
    ops = {c.case.split()[0] for c in comparisons}
    assert {"cross_entropy", "linear_cross_entropy", "two_class", "quantile", "trainers"} <= ops
