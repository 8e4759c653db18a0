"""The GPU suite on a machine without a GPU: plan, resumption, table, and error messages."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import w2s_fast
from bench.gpu import (
    event_timing,
    gpu_environment,
    gpu_providers,
    gpu_table,
    parity,
    sanitizer,
)
from bench.gpu import suite as gpu
from bench.gpu.gpu_cases import CASES
from w2s_fast.testing import OnDevice

SHA = "abc"
TIME = {
    "kind": "time", "part": "quantile", "op": "quantile", "case": "median", "dtype": "fp32",
    "n": 1 << 25, "v": 1, "provider": "ours", "backend": "triton", "ms_p20": 0.1, "ms_p50": 0.2,
    "ms_p80": 0.3, "ratio_to_ours": 1.0, "gbps": 1000.0, "peak_mib": 3.0, "value_err": 1e-8,
}  # fmt: skip


def part(name: str, code: str, seconds: int = 20, measures: bool = False) -> gpu.Part:
    return gpu.Part(name, (sys.executable, "-c", code), seconds, measures)


def test_plan_fits_into_eight_minutes(capsys: pytest.CaptureFixture[str]) -> None:
    plan = gpu.parts()
    assert sum(p.seconds for p in plan) < 480
    assert len({p.name for p in plan}) == len(plan)
    assert {p.name for p in plan} >= set(CASES)
    cases = [c for group in CASES.values() for c in group.cases]
    assert {(c.n, c.d, c.v) for c in cases if c.op == "linear"} == {
        (4096, 4096, 128256), (8192, 1024, 50257)
    }  # fmt: skip
    assert {(c.loss, c.v, c.dtype) for c in cases if c.op == "cross_entropy"} == {
        (loss, v, dtype)
        for loss in ("hard", "dense", "logconf_hard")
        for v in (128256, 50257)
        for dtype in ("bf16", "fp32")
    }
    for path in gpu.TESTS:
        assert (gpu.ROOT / path).is_file()
    assert gpu.main(["--dry-run"]) == 0
    out = capsys.readouterr().out
    assert all(p.name in out for p in plan) and "s at most" in out


def test_the_most_informative_parts_come_first() -> None:
    """A few minutes show parity, races, and the times that have a target beside other libraries."""
    names = [p.name for p in gpu.parts()]
    first = names[: names.index("tests")]
    assert first[:4] == ["build", "parity", "racecheck", "ceilings"]
    rows = [c for name in first if name in CASES for c in CASES[name].cases]
    assert [c.target_ms > 0 for c in rows] == [True] * 6
    assert all(name not in CASES or name in first for name in names if "targets" in name)
    assert sum(p.seconds for p in gpu.parts() if p.name in first) <= 240
    for op in ("cross_entropy", "linear"):
        assert any("liger" in c.providers and "quack" in c.providers for c in rows if c.op == op)


def test_parity_names_the_calls_that_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    right = parity.parity("ref", "cpu")
    assert right["calls"] > 20 and right["failed"] == []
    monkeypatch.setattr(parity, "dense_calls", lambda device: [("dense", dense_fails)])
    monkeypatch.setattr(w2s_fast, "quantile", lambda scores, q: scores.mean())
    wrong = parity.parity("ref", "cpu")
    assert [why.split(":")[0] for why in wrong["failed"]] == ["dense", "quantile"]
    assert "quantile 0" in wrong["failed"][1]
    text = gpu_table.table([right, wrong])
    assert f"ref: {right['calls']} of {right['calls']} calls within" in text
    assert wrong["failed"][1] in text


def dense_fails() -> None:
    raise RuntimeError("no kernel image")


def test_sanitizer_knows_two_tools(capsys: pytest.CaptureFixture[str]) -> None:
    assert sanitizer.main(["initcheck"]) == 2
    assert "memcheck, racecheck, not 'initcheck'" in capsys.readouterr().err


def test_without_a_device_it_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main(["--out", str(tmp_path / "rows.jsonl")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "no CUDA device" in error
    assert not (tmp_path / "rows.jsonl").exists()
    with pytest.raises(SystemExit, match="unknown part 'quantil'"):
        gpu.main(["--dry-run", "--parts", "quantil"])


def test_finished_parts_are_skipped_and_failures_are_isolated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run with a crash, a hang and two good parts; a second one runs the missing parts."""
    crash = f"print({json.dumps(json.dumps(TIME))}, flush=True); import os; os.abort()"
    ran = tmp_path / "ran"
    count = f"open({str(ran)!r}, 'a').write('x'); print('27 passed')"
    plan = [
        part("good", count),
        part("crash", crash, measures=True),
        part("hang", "import time; time.sleep(60)", seconds=1),
        part("last", "print('{\"kind\": \"ceilings\", \"copy_gbps\": 2000, "
             "\"gemm_bf16_tflops\": 700, \"gemm_fp32_tflops\": 50}')", measures=True),
    ]  # fmt: skip
    monkeypatch.setattr(gpu, "parts", lambda: plan)
    monkeypatch.setattr(gpu, "no_device", lambda: "")
    monkeypatch.setattr(gpu_environment, "gpu_environment", lambda: {"gpu": "X", "git_sha": SHA})
    out = tmp_path / "rows.jsonl"
    assert gpu.main(["--out", str(out)]) == 1
    rows = gpu.load(out)
    parts = {r["part"]: r for r in rows if r["kind"] == "part"}
    assert {n: r["ok"] for n, r in parts.items()} == {
        "good": True, "crash": False, "hang": False, "last": True,
    }  # fmt: skip
    assert parts["hang"]["exit"] == "over its 1 s" and parts["hang"]["seconds"] < 15
    assert parts["good"]["last_line"] == "27 passed"
    assert [r["part"] for r in rows if r["kind"] == "time"] == ["crash"], (
        "rows before a crash count"
    )

    plan[1], plan[2] = part("crash", "pass", measures=True), part("hang", "pass")
    assert gpu.main(["--out", str(out)]) == 0
    assert ran.read_text() == "x", "a finished part ran again"
    assert gpu.main(["--out", str(out), "--parts", "good", "--again"]) == 0
    assert ran.read_text() == "xx"
    rows = gpu.load(out)
    assert sorted(r["part"] for r in rows if r["kind"] == "part") == sorted(p.name for p in plan)
    assert all(r["ok"] for r in rows if r["kind"] == "part")
    capsys.readouterr()
    # Another commit starts anew.
    assert len(gpu.unfinished(rows, "other", False)) == len(plan)


def test_a_torn_line_is_dropped(tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    out.write_text(json.dumps(TIME) + '\n{"kind": "time", "n"')
    assert gpu.load(out) == [TIME]
    assert gpu.load(tmp_path / "none.jsonl") == []


def test_table(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    eager = {k: v for k, v in TIME.items() if k != "backend"}
    rows: list[dict[str, Any]] = [
        {"kind": "environment", "gpu": "H", "memory_gib": 80, "driver_version": "1", "torch": "2",
         "cuda": "13", "triton": "3", "git_sha": SHA, "dirty": True},
        {"kind": "part", "part": "tests", "ok": False, "exit": 1, "seconds": 3.0},
        {"kind": "ceilings", "copy_gbps": 2000.0, "gemm_bf16_tflops": 700.0,
         "gemm_fp32_tflops": 50.0},
        TIME,
        {**eager, "provider": "sort", "ratio_to_ours": 4.5, "ms_p50": 0.9},
        {**TIME, "case": "hard", "target_ms": 0.15},
        {**TIME, "case": "dense", "target_ms": 0.25},
        {**eager, "kind": "skipped", "provider": "quack", "why": "not installed"},
    ]  # fmt: skip
    text = gpu_table.table(rows)
    for words in ("with changes", "tests: FAILED (1)", "copy 2000 GB/s", "ours (triton)", "50%",
                  "0.15 missed", "0.25 met", "0.1 / 0.2 / 0.3", "4.50", "value 1.0e-08",
                  "quack: not installed"):  # fmt: skip
        assert words in text, words
    out = tmp_path / "rows.jsonl"
    gpu.save(out, rows)
    assert gpu.main(["--table", "--out", str(out)]) == 0
    assert capsys.readouterr().out == text + "\n"
    assert gpu_table.table([]) == "no rows yet"


def test_missing_peers_leave_a_row() -> None:
    emitted: list[dict[str, Any]] = []
    case = CASES["dense_50257_bf16"].cases[0]
    names = ("liger", "quack", "flash_attn")
    available = gpu_providers._available(
        gpu_providers._DENSE, torch.zeros(3).long(), case, names, lambda **row: emitted.append(row)
    )
    assert {*available, *(row["provider"] for row in emitted)} == set(names)
    assert all(row["why"] for row in emitted)


def test_percentiles() -> None:
    times = event_timing.summary([5.0, 1.0, 2.0, 4.0, 3.0, 6.0])
    assert (times["ms_p20"], times["ms_p50"], times["ms_p80"]) == (2.0, 3.5, 5.0)


def test_tensors_of_a_test_lie_on_its_device() -> None:
    """Values do not change; ``meta`` stands in for a device that is missing."""
    g = torch.Generator().manual_seed(0)
    with OnDevice("meta"):
        drawn = torch.randn(3, generator=g, requires_grad=True)
        made = torch.tensor([1.0]), torch.arange(3), torch.linspace(0, 1, 3)
        named = torch.ones(2, device="cpu")
        from w2s_fast.ops.reference import cross_entropy_sample

        packaged = cross_entropy_sample(5, 3, torch.float32, "cpu", 0)["logits"]
    assert drawn.is_meta and drawn.is_leaf and drawn.requires_grad
    assert all(t.is_meta for t in made)
    assert named.device.type == packaged.device.type == "cpu"
    with OnDevice("cpu"):
        same = torch.randn(3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(same, torch.randn(3, generator=torch.Generator().manual_seed(0)))
