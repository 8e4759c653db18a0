"""Several bases: seeds of their own, intervals over bases, a base that fails alone, last bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.toy_run import config

from w2s_fast.config import at_seed, from_dict, run_seeds, to_dict
from w2s_fast.errors import W2SError
from w2s_fast.models.rounding import perturb_last_bits
from w2s_fast.pipeline import run
from w2s_fast.pipeline.job_identity import config_slice
from w2s_fast.pipeline.jobs import plan_jobs
from w2s_fast.sweeps import SweepConfig
from w2s_fast.tasks import PretrainConfig, TaskConfig
from w2s_fast.tasks.datasets import agreement_lm

BASES = ["bow", "scratch:hidden=8,heads=2", "scratch:hidden=16,heads=2"]
TINY = {"hidden": 8, "layers": 1, "heads": 2, "steps": 4, "batch_size": 2, "length": 16}


def reused(results: dict[str, Any]) -> set[str]:
    return {name for name, s in results["provenance"]["stages"].items() if s["reused"]}


def test_every_base_has_seeds_of_its_own(tmp_path: Path) -> None:
    cfg = config(tmp_path, student_bases=BASES, seeds=[0, 3])
    assert run_seeds(cfg) == (0, 3, 10000, 10003, 20000, 20003)
    assert at_seed(cfg, 10003).student.hidden == 8 and at_seed(cfg, 20000).student.hidden == 16
    names = [job.name for job in plan_jobs(cfg).jobs]
    assert len(set(names)) == len(names) and "student/10003/xent" in names
    assert from_dict(to_dict(cfg)) == cfg


def test_a_run_over_bases(tmp_path: Path) -> None:
    """Intervals are over bases, and what one base has computed is not computed again."""
    losses = {"losses": ["xent", "logconf"]}
    run(config(tmp_path / "one", cache_dir=str(tmp_path / "cache"), **losses))
    cfg = config(tmp_path / "all", cache_dir=str(tmp_path / "cache"), student_bases=BASES, **losses)
    results = run(cfg)
    assert {"weak/0", "student/0/xent", "ceiling/0"} <= reused(results)
    assert results["design"]["over"] == ["bases", "seeds"] and results["failed"] == {}
    assert results["design"]["base_names"] == BASES
    runs = {(r["name"], r["base"]): r["student"] for r in results["runs"]}
    assert len(results["runs"]) == len(runs) == 6
    (row,) = results["differences"]
    pairs = [[runs[name, base] for base in BASES] for name in ("logconf", "xent")]
    assert row["difference"] == pytest.approx(np.mean(pairs[0]) - np.mean(pairs[1]))
    if np.ptp(np.subtract(*pairs)) > 0:
        # Not quite the t test of the pairs: short sentences are in several test sets by chance.
        assert 0 < row["p"] == row["p_holm"] < 1
        assert row["low"] < row["difference"] < row["high"]
    for s in results["summary"]:
        own = [r for r in results["runs"] if r["name"] == s["name"]]
        for model in ("weak", "student", "ceiling"):  # all columns are over the same runs
            assert s[model] == pytest.approx(np.mean([r[model] for r in own]))


def test_a_base_that_fails_leaves_the_others(tmp_path: Path) -> None:
    """The same command tries it again, and only it."""
    folder = tmp_path / "checkpoint"
    agreement_lm.pretrain(folder, TaskConfig(pretrain=PretrainConfig(**TINY)), 0)
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    bases = ["bow", "agreement-lm:pretrain_seed=1", str(folder)]
    task = {"n_weak": 40, "n_transfer": 48, "n_test": 40, "pretrain": TINY}
    cfg = config(tmp_path / "out", student_bases=bases, task=task)
    results = run(cfg)
    assert (
        list(results["failed"]) == [str(folder)] and "checkpoint" in results["failed"][str(folder)]
    )
    assert results["design"]["bases"] == 2 and results["design"]["over"] == []
    assert {r["base"] for r in results["runs"]} == set(bases[:2])
    weights.write_bytes(whole)
    complete = run(cfg)
    assert complete["failed"] == {} and complete["design"]["bases"] == 3
    assert {"student/0/xent", "student/10000/xent", "pretrain/1"} <= reused(complete)


def test_without_a_base_that_works_the_run_ends_with_the_reason(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    agreement_lm.pretrain(folder, TaskConfig(pretrain=PretrainConfig(**TINY)), 0)
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(W2SError, match="every base failed: .*checkpoint"):
        run(config(tmp_path / "out", student_bases=[str(folder)]))


def test_the_seed_of_pretraining_is_part_of_a_base(tmp_path: Path) -> None:
    bases = ["agreement-lm", "agreement-lm:pretrain_seed=4"]
    cfg = config(tmp_path, student_bases=bases)
    jobs = {job.name: job for job in plan_jobs(cfg).jobs}
    assert dict(jobs["student/0/xent"].inputs)["pretrain"] == "pretrain"
    assert dict(jobs["student/10000/xent"].inputs)["pretrain"] == "pretrain/4"
    plain = config_slice(config(tmp_path, student={"source": "agreement-lm"}), jobs["pretrain"], 2)
    assert (
        config_slice(cfg, jobs["pretrain"], 2) == plain != config_slice(cfg, jobs["pretrain/4"], 2)
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"student_bases": ["bow", "bow"]}, "'bow' is given twice"),
        ({"student_bases": BASES, "seeds": [0, 10000]}, "10000 apart and must differ"),
        ({"student_bases": ["bow:hiddn=8", "scratch"]}, "hiddn"),
        ({"student_bases": ["no/such/folder", "bow"]}, "'no/such/folder' is not a folder"),
        ({"student_bases": ["agreement-lm:pretrain_seed=-1"]}, "task.pretrain.seed=-1"),
        ({"rounding_replicates": -1}, "rounding_replicates=-1"),
    ],
)
def test_bad_bases_are_one_line(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(W2SError, match=message) as err:
        run(config(tmp_path, **changes))
    assert "\n" not in str(err.value) and not (tmp_path / "cache").exists()


def test_a_sweep_has_its_own_list_of_students(tmp_path: Path) -> None:
    with pytest.raises(W2SError, match="set student_models instead"):
        SweepConfig(run=config(tmp_path, student_bases=BASES, output_dir="out", workers=0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_last_bits_change_and_nothing_else(dtype: torch.dtype) -> None:
    model = torch.nn.Linear(50, 20, dtype=dtype)
    torch.nn.init.zeros_(model.bias)
    before = model.weight.detach().clone()
    perturb_last_bits(model, 1)
    change = (model.weight / before - 1).abs().max().item()
    eps = torch.finfo(dtype).eps
    assert 0.4 * eps < change < 2.5 * eps and (model.weight != before).float().mean() > 0.7
    assert not model.bias.any()
    again = torch.nn.Linear(50, 20, dtype=dtype)
    for seed, equal in ((1, True), (2, False)):
        with torch.no_grad():
            again.weight.copy_(before)
        perturb_last_bits(again, seed)
        assert torch.equal(again.weight, model.weight) == equal


def test_rounding_replicates_are_trained_and_their_spread_reported(tmp_path: Path) -> None:
    student = {"source": "scratch", "hidden": 8, "heads": 2}
    cfg = config(tmp_path, student=student, rounding_replicates=2, seeds=[0, 1])
    results = run(cfg)
    stages = results["provenance"]["stages"]
    digests = {
        stages[f"student/1/xent{end}"]["digest"] for end in ("", "/rounding-1", "/rounding-2")
    }
    assert len(digests) == 3
    (row,) = results["summary"]
    assert row["rounding_sd"] is not None and 0 <= row["rounding_sd"] < 0.2
    assert len(results["runs"]) == 2  # replicates are no runs
