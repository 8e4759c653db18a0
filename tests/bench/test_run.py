"""Benchmarks run at toy size; tables and pictures of the documents match the committed rows."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers import ranks
from helpers.paths import ROOT

from bench.harness import row_files
from bench.report import pictures
from bench.report.documents import quotable
from bench.report.measured_rows import MeasuredRows


def _bench(*args: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "bench", *args],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_every_benchmark_runs(tmp_path: Path) -> None:
    out = tmp_path / "results.jsonl"
    eager = "ours,ours_inplace,eager,eager_gather,torch_lce,quack,torch_quantile,sort,kthvalue"
    # The other allocator differs only in the environment of the process: one op is enough. Memory
    # of a head is measured in a process a candidate.
    heads = ["--op", "linear_cross_entropy", "--allocator", "stock"]
    for only in (
        ["--op", "cross_entropy,two_class,quantile", "--allocator", "stock"],
        heads if ranks.LONG else [*heads, "--dtypes", "bf16", "--cases", "topk,teacher"],
        ["--op", "quantile", "--allocator", "recycled"],
    ):
        done = _bench("run", "--quick", "--providers", eager, "--out", str(out), *only)
        assert done.returncode == 0, done.stderr
    rows = _rows(out)
    measured = {(r["op"], r["case"], r["dtype"], r["allocator"], r["provider"]) for r in rows}
    for case in ("logconf_hard", "logconf_topk", "logconf_dense", "hard", "dense"):
        for dtype in ("fp32", "bf16"):
            for provider in ("ours", "ours_inplace", "eager", "floor_write"):
                assert ("cross_entropy", case, dtype, "stock", provider) in measured
    assert ("cross_entropy", "logconf_hard", "fp32", "stock", "eager_gather") in measured
    assert ("two_class", "logconf", "fp32", "stock", "eager") in measured
    every = ("hard", "dense", "topk", "logconf_hard", "logconf_topk", "teacher")
    for case in every if ranks.LONG else ("topk", "teacher"):
        for dtype in ("fp32", "bf16") if ranks.LONG else ("bf16",):
            for provider in ("ours", "eager", "gemms"):
                assert ("linear_cross_entropy", case, dtype, "stock", provider) in measured
    for allocator in ("stock", "recycled"):
        for provider in ("ours", "torch_quantile", "sort", "kthvalue"):
            assert ("quantile", "median", "fp32", allocator, provider) in measured
    fused = [r for r in rows if r["op"] == "linear_cross_entropy"]
    for r in fused:
        if r["provider"] == "quack":
            assert "CUDA" in r["skipped"] and "cpu_ms" not in r
        elif r["provider"] != "gemms" and r["allocator"] == "stock":
            assert r["d"] == 16 and r["peak_mib"] >= 0
    assert all(r["quick"] and r["threads"] and r["isa"] and r["utc"] for r in rows)
    checked = [r for r in rows if "grad_err" in r and r["dtype"] == "fp32"]
    assert len(checked) > 15 and all(max(r["loss_err"], r["grad_err"]) < 1e-5 for r in checked)


@pytest.mark.slow
def test_sweeps_of_heads(tmp_path: Path) -> None:
    """Every alternative is measured, and the cached probe equals the uncached one."""
    out = tmp_path / "results.jsonl"
    # A sweep trains in processes as noise does, and an epoch is timed as a probe is.
    parts = ("sweep", "noise", "epoch", "probe") if ranks.LONG else ("noise", "probe")
    options = ("--quick", "--sizes", "384", "--parts", ",".join(parts), "--out", str(out))
    done = _bench("heads", *options)
    assert done.returncode == 0, done.stderr
    rows = {(r["case"], r["provider"]): r for r in _rows(out)}
    providers = {"sweep": ("ours",), "noise": ("ours",), "epoch": ("ours", "loop")}
    providers["probe"] = ("ours", "loop", "uncached", "cache")
    assert set(rows) == {(case, name) for case in parts for name in providers[case]}
    assert rows["noise", "ours"]["losses"] == 50 and rows["noise", "ours"]["seeds"] == 5
    assert rows["probe", "uncached"]["prob_err"] < 1e-5
    assert all(r["quick"] and r["wall_ms"] > 0 for r in rows.values())


@pytest.mark.slow
def test_logprob_with_entropy(tmp_path: Path) -> None:
    """Every candidate computes the same values and gradients."""
    pytest.importorskip("trl")
    out = tmp_path / "results.jsonl"
    done = _bench("logprob_entropy", "--quick", "--dtypes", "fp32", "--out", str(out))
    assert done.returncode == 0, done.stderr
    rows = {r["provider"]: r for r in _rows(out)}
    assert set(rows) == {"ours", "ours_64mib", "trl", "eager"}
    assert all(r["value_err"] < 1e-5 and r["grad_err"] < 1e-5 for r in rows.values())


@pytest.mark.slow
def test_info_nce(tmp_path: Path) -> None:
    """Every candidate that can be imported computes the gradient of fp64."""
    out = tmp_path / "results.jsonl"
    done = _bench("info_nce", "--quick", "--dtypes", "fp32", "--rounds", "1", "--out", str(out))
    assert done.returncode == 0, done.stderr
    rows = {r["provider"]: r for r in _rows(out)}
    assert {"ours", "plain", "eager", "compile"} <= set(rows)
    measured = [r for r in rows.values() if "skipped" not in r]
    assert len(measured) >= 4 and all(r["grad_err"] < 1e-4 for r in measured)


@pytest.mark.slow
def test_products_of_16_bit_heads(tmp_path: Path) -> None:
    """The second process is limited to AVX2, where ours multiplies in fp32."""
    out = tmp_path / "results.jsonl"
    done = _bench("products", "--quick", "--out", str(out))
    assert done.returncode == 0, done.stderr
    rows = {(r["case"], r["dtype"], r["provider"]): r for r in _rows(out)}
    names = ("ours", "upcast", "eager")
    cells = itertools.product(("native", "avx2"), ("bf16", "fp16"), names)
    assert set(rows) == set(cells)
    limited = [r for (case, *_), r in rows.items() if case == "avx2"]
    assert all(r["isa"] in ("avx2", "base") and r["through"] == "fp32" for r in limited)


@pytest.mark.slow
def test_candidates_compute_the_same(tmp_path: Path) -> None:
    """All candidates have the same loss and gradient.

    Compilation is slow: the other cases are for make test-long.
    """
    out = tmp_path / "results.jsonl"
    done = _bench(
        "run", "--quick",
        "--op", "cross_entropy,linear_cross_entropy,two_class" if ranks.LONG else "cross_entropy",
        "--dtypes", "fp32", "--cases", "logconf_hard,dense" if ranks.LONG else "logconf_hard",
        "--allocator", "stock", "--out", str(out),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    checked = [r for r in _rows(out) if "grad_err" in r]
    assert {"ours", "ours_inplace", "eager", "compile", "compile_gather"} <= {
        r["provider"] for r in checked
    }
    for r in checked:
        assert r["loss_err"] < 1e-5 and r["grad_err"] < 1e-5, r


def test_documents_quote_the_rows() -> None:
    done = _bench("report", "--check")
    assert done.returncode == 0, done.stdout + done.stderr


def _row(**columns: Any) -> dict[str, Any]:
    return {
        "op": "cross_entropy", "case": "hard", "dtype": "fp32", "n": 8, "v": 100,
        "allocator": "stock", "threads": 2, "provider": "ours", "cpu_ms": 10.0,
        "cpu_ms_p20": 10.1, "cpu_ms_p80": 10.4, "cpu": "x", "isa": "avx2", "os": "linux",
        "quick": False, "dirty": False, **columns,
    }  # fmt: skip


@pytest.mark.parametrize("mark", ["quick", "dirty"])
def test_report_rejects_rows_that_may_not_be_quoted(tmp_path: Path, mark: str) -> None:
    (tmp_path / "cross_entropy.jsonl").write_text(json.dumps(_row(**{mark: True})) + "\n")
    done = _bench("report", "--check", "--results", str(tmp_path))
    assert done.returncode == 2
    assert "measured quick or on a changed tree" in done.stderr


@pytest.mark.parametrize("changed", [{"cpu": "y"}, {"git_sha": "b"}])
def test_report_rejects_ratios_between_machines(tmp_path: Path, changed: dict[str, str]) -> None:
    ours = _row(git_sha="a")
    rows = [ours, ours | {"allocator": "recycled"} | changed, ours | {"provider": "eager"}]
    assert quotable(rows) == rows
    with pytest.raises(ValueError, match="eager.* measured on .*, and ours on .*in one run"):
        quotable([*rows[:2], rows[2] | changed])
    skipped = {"provider": "quack", "skipped": "no CUDA"} | changed
    assert quotable([ours, ours | skipped])


def test_saving_replaces_equal_keys_only(tmp_path: Path) -> None:
    """The hidden size is part of the key; a skipped row never replaces a measurement."""
    path = tmp_path / "results.jsonl"
    head = {"op": "linear_cross_entropy"}
    row_files.save(path, [_row(), _row(**head, d=16), _row(**head, d=32)])
    skipped = {k: v for k, v in _row(**head, d=32).items() if not k.startswith("cpu_ms")}
    other = {**skipped, "provider": "quack"}
    row_files.save(
        path, [_row(cpu_ms=9.0), {**skipped, "skipped": "no"}, {**other, "skipped": "no"}]
    )
    assert [(r.get("d"), r.get("cpu_ms"), r["provider"]) for r in row_files.load(path)] == [
        (16, 10.0, "ours"), (32, 10.0, "ours"), (None, 9.0, "ours"), (32, None, "quack"),
    ]  # fmt: skip


def test_committed_results_name_no_folder_of_a_machine(tmp_path: Path) -> None:
    path = tmp_path / "new" / "results.json"
    spec = "functions:/home/me/rules.py,also=/a/b"
    given = {"base": "/tmp/models/lm", "x": [spec, 1, None, "a/b", "1 / 2", "/"], "/a/b/c": 0.5}
    row_files.write_results(path, given)
    assert json.loads(path.read_text()) == {
        "base": "lm", "x": ["functions:rules.py,also=b", 1, None, "a/b", "1 / 2", "/"], "c": 0.5,
    }  # fmt: skip
    files = [p for p in row_files.RESULTS.rglob("*.json*") if p.is_file()]
    assert len(files) > 20
    for file in files:
        values = row_files.load(file) if file.suffix == ".jsonl" else json.loads(file.read_text())
        assert row_files.without_folders(values) == values, file


def test_bad_options_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    from bench import run

    for args in (["--op", "softmax"], ["--cases", "kl"], ["--shapes", "big"], ["--heads", "8x9"]):
        with pytest.raises(SystemExit, match=r"^bench: .*expected.*$"):
            run.main(args)


@pytest.mark.slow
def test_speed_pictures_depend_on_the_rows() -> None:
    """The same rows give the same file, other rows another file."""
    rows = row_files.load(row_files.RESULTS / "cpu")
    measured = MeasuredRows(rows)
    for name in pictures.SPEED_PICTURES:
        drawn = pictures.speed_picture(name, measured, "svg")
        assert drawn == pictures.speed_picture(name, measured, "svg")
    slower = [{**r, "cpu_ms": 2 * r.get("cpu_ms", 0) + 1} for r in rows if r["provider"] == "ours"]
    others = [r for r in rows if r["provider"] != "ours"]
    changed = pictures.speed_picture("quantile", MeasuredRows(slower + others), "svg")
    assert changed != pictures.speed_picture("quantile", measured, "svg")


def test_committed_pictures_have_text_and_are_small() -> None:
    """Pictures of results are drawn from rows, and all stay below 600 kB together."""
    rows = MeasuredRows(row_files.load(row_files.RESULTS / "cpu"))
    drawn, folder = pictures.all_pictures(rows, "svg"), ROOT / "docs" / "img"
    assert drawn.keys() <= {path.stem for path in folder.iterdir()}
    documents = "".join(path.read_text() for path in (ROOT / "docs").glob("*.md"))
    for name, picture in drawn.items():
        committed = (folder / f"{name}.svg").read_text()
        assert texts(committed) == texts(picture.decode()) and len(texts(committed)) > 5
        assert not any("$" in text for text in texts(committed))  # mathematics was set, not quoted
        assert f"(img/{name}.svg)" in documents
    assert sum(path.stat().st_size for path in folder.iterdir()) < 600_000


def texts(svg: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)
