"""Stage `trust` in runs: what it stores, what it may read, and that the run names its use."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.toy_run import config

from w2s_fast.config import RunConfig
from w2s_fast.errors import W2SError
from w2s_fast.methods import Node, Plan
from w2s_fast.methods._gold import check_gold
from w2s_fast.pipeline import run
from w2s_fast.pipeline.artifacts import TRUST, TRUST_SCORES, read_probs, read_weighted_probs
from w2s_fast.pipeline.context import Context, load_data
from w2s_fast.pipeline.job_identity import data_inputs
from w2s_fast.pipeline.jobs import Job, plan_jobs
from w2s_fast.pipeline.stages.report import gold_uses

USE = "true labels of the weak split train P(label right)"


def trust_config(out: Path, **changes: Any) -> RunConfig:
    """Some wrong labels, and a student with hidden states and a language model."""
    pretrain = {"hidden": 16, "layers": 2, "heads": 2, "steps": 12, "batch_size": 4, "length": 32}
    sizes = {"n_weak": 120, "n_transfer": 64, "n_test": 40}
    values = {
        "task": {"name": "agreement", **sizes, "pretrain": pretrain},
        "student": {"source": "agreement-lm"},
        "weak_train": {"epochs": 10, "lr": 0.3, "batch_size": 16},
        "student_train": {"epochs": 1, "lr": 3e-3, "batch_size": 32},
        "calibration_folds": 2,
        "methods": ["trust", "trust:mode=filter,share=0.25"],
    }
    return config(out, **{**values, **changes})


def folder_of(cfg: RunConfig, results: dict[str, Any], stage: str) -> Path:
    (name,) = [n for n in results["provenance"]["stages"] if n.startswith(f"{stage}/")]
    return cfg.store_dir / results["provenance"]["stages"][name]["folder"]


def test_trust_weighs_the_rows_of_the_student(tmp_path: Path) -> None:
    """Both students share one trust model, and the record has what a report needs."""
    cfg = trust_config(tmp_path)
    results = run(cfg)
    folder = folder_of(cfg, results, "trust")
    trust = np.load(folder / TRUST)
    record = json.loads((folder / TRUST_SCORES).read_text())
    assert trust.shape == (64,) and 0 < trust.min() < trust.max() < 1
    assert record["n_right"] + record["n_wrong"] == record["n"] == 120
    assert record["n_wrong"] >= 10 and 0 <= record["auroc"] <= 1
    assert record["auroc_interval"][0] <= record["auroc"] <= record["auroc_interval"][1]
    assert record["mean"] == pytest.approx(trust.mean(), abs=1e-6)
    assert results["trust"] == [{"seed": 0, "name": "trust+xent", **record}]
    page = (Path(cfg.output_dir) / "report.html").read_text()
    assert f"trust+xent, seed 0: P(label right) has AUROC {record['auroc']:.3f}" in page
    ids = load_data(cfg.task, 0).transfer.ids
    stages = results["provenance"]["stages"]
    weights = {}
    for student in ("trust+xent", "trust:mode=filter,share=0.25+xent"):
        path = cfg.store_dir / stages[f"apply/0/{student}/1"]["folder"] / "labels"
        weights[student] = read_weighted_probs(path, ids, 2)[1]
    soft, hard = weights.values()
    assert soft == pytest.approx(trust / trust.mean(), rel=1e-5)
    assert hard.sum() == 16 and trust[hard == 1].min() >= trust[hard == 0].max()
    assert results["gold"] == [{"name": name, "use": USE} for name in weights]


def test_selective_takes_own_answers_where_they_are_trusted(tmp_path: Path) -> None:
    cfg = trust_config(tmp_path, methods=["selective:alpha=0,threshold=0.5"])
    results = run(cfg)
    stages = results["provenance"]["stages"]
    assert not [name for name in stages if name.startswith("weak/0/")]  # no weak model of a fold
    ids = load_data(cfg.task, 0).transfer.ids
    folder = {name: cfg.store_dir / stages[name]["folder"] for name in stages}
    name_of = {j.setting("function"): j.name for j in plan_jobs(cfg).jobs if j.stage == "apply"}
    own, selected, weak = (
        read_probs(folder[name] / "labels", ids, 2)
        for name in (name_of["zero_shot"], name_of["select"], "labels/0")
    )
    known = np.load(folder_of(cfg, results, "trust") / TRUST) >= 0.5
    assert 0 < known.sum() < 64
    assert selected[known] == pytest.approx(own[known], abs=1e-6)
    assert selected[~known] == pytest.approx(weak[~known], abs=1e-6)
    assert results["gold"][0]["use"] == USE


def test_calibrated_labels_are_judged_after_the_calibrator() -> None:
    plan = Plan(calibration="platt", folds=2)
    node = plan.trust(plan.weak_labels())
    assert dict(node.needs)["calibrator"] == plan.calibrator()
    assert "calibrator" not in dict(Plan().trust(Plan().weak_labels()).needs)


def test_the_name_of_a_use_gives_no_access() -> None:
    """`weak_gold` is for reports: neither the data nor the key of the job has transfer labels."""
    jobs = plan_jobs(trust_config(Path("unused"), methods=["trust", "selective"]))
    assert gold_uses(jobs) == [
        {"name": "trust+xent", "use": USE},
        {"name": "selective+xent", "use": USE},
    ]
    (job, *_) = [j for j in jobs.jobs if j.stage == "trust"]
    assert job.weak_gold == (USE,) and not job.gold
    assert "transfer.labels" not in data_inputs(job) and "weak.labels" in data_inputs(job)
    cfg = config(Path("unused"))
    read = partial(load_data, cfg.task)
    for stage in ("trust", "student", "apply"):
        mine = Job(stage, f"{stage}/0", 0, weak_gold=(USE,))
        assert "transfer.labels" not in data_inputs(mine)
        ctx = Context(cfg, mine, {}, lambda *_: None, read)
        for split in ("transfer", "test") if stage == "trust" else ("weak", "transfer", "test"):
            with pytest.raises(W2SError, match="true labels"):
                ctx.gold(split)


@pytest.mark.parametrize("name", ["fold0", "own", "labels"])
def test_labels_that_a_model_has_learned_cannot_be_judged(name: str) -> None:
    """A model is right on its own training rows; only the fold that it left out is accepted."""
    plan = Plan(folds=2)
    good = plan.trust(plan.weak_labels())
    memorized = plan.weak_labels(split="weak")
    bad = Node("trust", good.settings, tuple({**dict(good.needs), name: memorized}.items()))
    check_gold(plan.student(good))
    with pytest.raises(W2SError, match="labels of the weak split to stage 'trust'"):
        check_gold(plan.student(bad))
    other = dict(good.needs)["fold1"]
    swapped = Node("trust", good.settings, tuple({**dict(good.needs), "fold0": other}.items()))
    with pytest.raises(W2SError, match="labels of the weak split to stage 'trust'"):
        check_gold(plan.student(swapped))


def test_too_few_wrong_labels_end_the_run_with_a_reason(tmp_path: Path) -> None:
    cfg = trust_config(
        tmp_path,
        task={"name": "agreement", "n_weak": 12, "n_transfer": 48, "n_test": 40},
        student={"source": "scratch", "hidden": 16, "layers": 1, "heads": 2},
        methods=["trust"],
    )
    with pytest.raises(W2SError, match="are wrong; expected at least 10 of each"):
        run(cfg)
