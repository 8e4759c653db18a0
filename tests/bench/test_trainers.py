"""Training steps in trainers run at toy size, compute the same loss, and fill their table."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.paths import ROOT

CASES = {
    "sft": {"trainer", "liger", "trl", "ours"},
    "dpo": {"full_logits", "trl", "trl_cached", "ours", "ours_train"},
    "dpo_smollm2": {"trl_cached", "ours", "ours_train"},
    "labels": {"full_logits", "label_rows", "ours"},
}


@pytest.fixture(autouse=True)
def bench_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))


def _measured(out: Path, *args: str) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-m", "bench", "trainers", "--quick", "--out", str(out), *args],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in out.read_text().splitlines()]


@pytest.mark.slow
def test_every_candidate_is_measured(tmp_path: Path) -> None:
    pytest.importorskip("trl")
    rows = _measured(tmp_path / "rows.jsonl", "--dtypes", "fp32", "--allocator", "recycled")
    for case, names in CASES.items():
        assert {r["provider"] for r in rows if r["case"] == case} == names
    for r in rows:
        assert r["op"] == "trainers" and r["quick"] and r["load"] >= 0 and r["length"] == 16
        assert r["n"] == r["batch"] * r["length"] and (r["d"], r["v"]) == (256, 600)
        if r["provider"] == "liger":
            assert "cpu_ms" in r or "liger" in r["skipped"] or "GPU" in r["skipped"]
            continue
        assert r["cpu_ms"] > 0 and r["ratio_to_ours"] > 0
        assert r["loss_err"] < 1e-5 and r["grad_err"] < 1e-4
        # Away from log 2: the reference of the pairs is another model.
        assert abs(r["loss"] - 0.6931) > 1e-2


@pytest.mark.slow
def test_memory_is_measured_under_the_stock_allocator(tmp_path: Path) -> None:
    rows = _measured(
        tmp_path / "rows.jsonl", "--cases", "labels", "--dtypes", "bf16", "--allocator", "stock"
    )
    assert {r["provider"] for r in rows} == CASES["labels"]
    # The embeddings' gradient alone is 600 x 256 x 2 bytes, of all weights some 8 MiB.
    assert all(5 < r["peak_mib"] < 100 for r in rows)


@pytest.mark.parametrize("provider", ["ours", "label_rows"])
def test_a_candidate_that_differs_is_not_timed(provider: str) -> None:
    from bench.cases import trainers
    from bench.cases.trainer_steps import Shape

    shape = Shape("labels", "fp32", 4, 16, 600)
    steps, skipped = trainers.make_steps(("full_logits", "label_rows", "ours"), shape)
    assert not skipped
    about = trainers.compare_losses(steps, trainers.BUDGET["fp32"])
    assert about["full_logits"]["loss_err"] == 0 and about["ours"]["loss_err"] < 1e-5
    column = "weak_probs" if provider == "ours" else "target"
    steps[provider].batch[column] = 1.01 * steps[provider].batch[column]
    with pytest.raises(SystemExit, match=f"^bench: the loss of {provider} differs from"):
        trainers.compare_losses(steps, trainers.BUDGET["fp32"])


def _row(**columns: Any) -> dict[str, Any]:
    return {
        "op": "trainers", "case": "sft", "dtype": "fp32", "n": 1024, "v": 128256, "d": 256,
        "allocator": "stock", "threads": 2, "provider": "ours", "cpu_ms": 2000.0,
        "wall_ms": 1000.0, "peak_mib": 400.0, "batch": 2, "length": 512, "loss_err": 1e-7,
        "grad_err": 2e-6, "load": 1.04, **columns,
    }  # fmt: skip


def test_the_table_shows_the_rows() -> None:
    from bench.report import speed_tables, trainer_table
    from bench.report.measured_rows import MeasuredRows

    slow = {"provider": "trainer", "cpu_ms": 5000.0, "wall_ms": 3000.0, "peak_mib": 1000.0}
    rows = [
        _row(), _row(allocator="recycled", cpu_ms=1000.0, load=2.0), _row(**slow),
        {"op": "trainers", "provider": "liger", "skipped": "no GPU"},
    ]  # fmt: skip
    text = trainer_table.steps(MeasuredRows(rows))
    lines = text.splitlines()
    assert lines[2] == (
        "| SFT, every token | 2 x 512 | fp32 | trainer | 3.00 / - | 5.00 / - | 3.00 / - | 2.50 / - "
        "| 1000 | 2.50 | 1.0e-07 | 2.0e-06 | 1.0 |"
    )
    assert "| ours | 1.00 / 1.00 | 2.00 / 1.00 | 1.00 / 1.00 | 1.00 / 1.00 |" in lines[3]
    assert "- `liger`: no GPU" in lines
    # A provider that is not measured is named only under the table of its own op.
    assert "liger" not in speed_tables.linear(MeasuredRows(rows))
    assert "--record" in trainer_table.steps(MeasuredRows([_row(op="quantile")]))


def test_bad_options_are_one_line() -> None:
    from bench.cases import trainers

    for args in (["--cases", "ppo"], ["--dtypes", "fp8"], ["--allocator", "none"]):
        with pytest.raises(SystemExit, match=r"^bench: unknown .*expected some of.*$"):
            trainers.main(args)
