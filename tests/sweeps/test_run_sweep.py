"""Sweeps compute every stage once, in parallel, through kills and failures.

The toy size allows no claim about generalization.
"""

from __future__ import annotations

import dataclasses
import json
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from helpers import ranks

import w2s_fast
from w2s_fast.cli.main import main
from w2s_fast.cli.parse import load
from w2s_fast.config import RunConfig, to_yaml
from w2s_fast.sweeps import SweepConfig


def comparable(out: Path) -> dict[str, Any]:
    """Return what equal sweeps have in common: everything but folders, times and machine."""
    results = json.loads((out / "sweep.json").read_text())
    digests = {}
    for cell in results["cells"]:
        facts = json.loads((out / cell["results"]).read_text())["provenance"]
        digests[cell["name"]] = {name: s["digest"] for name, s in facts["stages"].items()}
    keys = ("cells", "failed", "medians", "comparisons", "stages")
    return {k: results[k] for k in keys} | {"digests": digests}


def stages(cache: Path) -> Counter[str]:
    """Return the number of folders of each stage in the cache."""
    return Counter(p.name.rpartition("-")[0] for p in cache.iterdir() if p.name[0] != ".")


@pytest.mark.slow
def test_shared_stages_are_computed_once(serial: tuple[SweepConfig, dict[str, Any]]) -> None:
    cfg, results = serial
    assert results["failed"] == {} and results["stages"] == {"distinct": 24, "total": 26}
    assert stages(Path(cfg.output_dir) / "cache") == {
        "weak": 4, "labels": 4, "supervisor_card": 4, "ceiling": 2, "student": 8, "report": 2
    }  # fmt: skip
    assert [(c["weak"], c["student"], c["same"]) for c in results["cells"]] == [
        ("bow", "bow", True), ("scratch", "bow", False)
    ]  # fmt: skip
    ceilings = [{r["seed"]: r["ceiling"] for r in c["runs"]} for c in results["cells"]]
    assert ceilings[0] == ceilings[1]


def test_a_cell_is_the_run_of_its_file(
    serial: tuple[SweepConfig, dict[str, Any]], tmp_path: Path
) -> None:
    """``w2s-fast run`` with the file of a cell reads every stage from the cache."""
    cfg, results = serial
    folder = Path(cfg.output_dir) / "cells" / results["cells"][1]["name"]
    alone = load(RunConfig, ["--out", str(tmp_path)], [folder / "run.yaml"])
    assert alone.weak.hidden == 8 and alone.weak_train.lr == 1e-3
    assert alone.student_train.lr == 0.05
    results_alone = w2s_fast.run(alone)
    assert all(s["reused"] for s in results_alone["provenance"]["stages"].values())
    stored = json.loads((folder / "results.json").read_text())
    assert results_alone["runs"] == stored["runs"] == results["cells"][1]["runs"]
    assert results_alone["summary"] == results["cells"][1]["summary"]


@pytest.mark.slow
def test_kill_then_the_same_command_in_parallel(
    serial: tuple[SweepConfig, dict[str, Any]], tmp_path: Path
) -> None:
    """After a kill of two workers and their parent, one process finishes with equal results."""
    cfg, _ = serial
    killed = dataclasses.replace(cfg, output_dir=str(tmp_path / "out"), devices=("cpu", "cpu"))
    (tmp_path / "sweep.yaml").write_text(to_yaml(killed))
    command = ["sweep", "--quiet", "--config", str(tmp_path / "sweep.yaml")]
    process = ranks.program("w2s_fast", *command)
    cache, deadline = tmp_path / "out" / "cache", time.monotonic() + 120
    while not any(cache.glob("student-*")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.send_signal(signal.SIGKILL)
    process.wait()
    while any(Path(f"/proc/{pid}").exists() for pid in children):
        assert time.monotonic() < deadline, "a worker outlived the sweep"
        time.sleep(0.02)
    assert children and not (tmp_path / "out" / "sweep.json").exists()
    assert stages(cache).total() < 24
    assert main([*command, "--devices", "cpu"]) == 0
    assert comparable(tmp_path / "out") == comparable(Path(cfg.output_dir))


@pytest.mark.slow
def test_only_the_cell_that_fails_is_lost(
    serial: tuple[SweepConfig, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg, results = serial
    bad = "scratch:hidden=8,heads=2,lr=1e30"
    more = dataclasses.replace(
        cfg,
        weak_models=(bad, "bow"),
        output_dir=str(tmp_path),
        cache_dir=str(Path(cfg.output_dir) / "cache"),
    )
    (tmp_path / "sweep.yaml").write_text(to_yaml(more))
    command = ["sweep", "--config", str(tmp_path / "sweep.yaml")]
    assert main(command) == 1
    streams = capsys.readouterr()
    assert streams.err.count("\n") == 2
    assert "✓ agreement--bow--bow  stored" in streams.err
    assert "✗ agreement--scratch--bow  weak/0: " in streams.err
    assert "1 of 2 cells failed; the same command tries them again" in streams.out
    stored = json.loads((tmp_path / "sweep.json").read_text())
    assert list(stored["failed"]) == ["agreement--scratch--bow"]
    assert "use a smaller lr" in stored["failed"]["agreement--scratch--bow"]
    assert [c["runs"] for c in stored["cells"]] == [results["cells"][0]["runs"]]


def test_dry_run_prints_the_plan(
    serial: tuple[SweepConfig, dict[str, Any]], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    cfg, _ = serial
    path = tmp_path / "sweep.yaml"
    path.write_text(to_yaml(cfg))
    args = ["sweep", "--config", str(path), "--out", str(tmp_path / "out")]
    assert main([*args, "--dry-run"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "agreement--bow--bow      13 stages",
        "agreement--scratch--bow  13 stages, 2 shared with cells above",
        "",
        "2 cells of 2 seeds: 24 different stages, 26 without sharing",
    ]
    assert not (tmp_path / "out").exists()
    assert main([*args, "--print-config"]) == 0
    shown = capsys.readouterr().out
    assert shown == to_yaml(dataclasses.replace(cfg, output_dir=str(tmp_path / "out")))
    assert main(["sweep", "--help"]) == 0
    text = capsys.readouterr().out
    assert "w2s-fast sweep" in text and "--run.student_train.lr" in text and "--dry-run" in text
