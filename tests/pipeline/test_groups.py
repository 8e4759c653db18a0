"""Subgroups and out-of-distribution items: from the task to results.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.cluster import save_model
from helpers.toy_run import config

from w2s_fast.config import RunConfig
from w2s_fast.errors import W2SError
from w2s_fast.pipeline import artifacts, run
from w2s_fast.pipeline.context import load_data
from w2s_fast.pipeline.job_identity import data_digests
from w2s_fast.tasks import TaskConfig

SCORES = ("worst_group", "ood", "ood_worst_group")
SIZES = {"n_weak": 40, "n_transfer": 48, "n_test": 40}


def _probs(results: dict[str, Any], cfg: RunConfig, stage: str, file: str) -> np.ndarray:
    folder = cfg.store_dir / results["provenance"]["stages"][stage]["folder"]
    data = load_data(cfg.task, 0)
    examples = data.ood if file == artifacts.OOD else data.test
    assert examples is not None
    return artifacts.read_probs(folder / file, examples.ids, 2)


def test_scores_are_those_of_the_stored_predictions(tmp_path: Path) -> None:
    shift = {"shortcut": {"availability": 4}, "ood": {"n": 30}}
    cfg = config(tmp_path, task={**SIZES, **shift}, control=True)
    results = run(cfg)
    data = load_data(cfg.task, 0)
    assert data.ood is not None
    (row,), (summary,) = results["runs"], results["summary"]
    for model, stage in (("weak", "weak/0"), ("student", "student/0/xent")):
        groups: list[float] = []
        for examples, file in ((data.test, artifacts.TEST), (data.ood, artifacts.OOD)):
            right = _probs(results, cfg, stage, file).argmax(1) == examples.labels
            assert examples.subgroups is not None
            names = [*zip(examples.labels.tolist(), examples.subgroups, strict=True)]
            groups += [
                min(right[[n == g for n in names]].mean() for g in set(names)), right.mean()
            ]  # fmt: skip
        expected = [groups[0], groups[3], groups[2]]
        assert [row[f"{model}_{score}"] for score in SCORES] == pytest.approx(expected)
        assert [summary[f"{model}_{score}"] for score in SCORES] == pytest.approx(expected)
    assert 0 <= row["ceiling_worst_group"] <= row["ceiling"]
    assert results["provenance"]["data"]["0"]["ood"] == {"singular": 15, "plural": 15}
    page = (tmp_path / "report.html").read_text()
    assert "worst group" in page and "OOD, worst group" in page


def test_items_that_are_scored_twice_get_the_same_predictions(tmp_path: Path) -> None:
    """Also from a frozen student, which reads cached states of the test items only."""
    save_model(tmp_path / "student")
    cfg = config(
        tmp_path / "out",
        task={"name": "helpers.mirrored:Mirrored", **SIZES},
        weak={"source": "scratch", "hidden": 16, "layers": 1, "heads": 2},
        student={"source": str(tmp_path / "student")},
        methods=["naive", "probe"],
    )
    results = run(cfg)
    for stage, room in (("weak/0", 0), ("student/0/xent", 0), ("student/0/probe+xent", 0.2)):
        test, ood = (_probs(results, cfg, stage, f) for f in (artifacts.TEST, artifacts.OOD))
        # Cached states are bf16; the items still differ by more than that.
        assert np.abs(test - ood).max() <= room * test.std(0).min(), stage
    for row in results["runs"][:1]:
        assert row["student_ood"] == row["student"]
        assert row["student_ood_worst_group"] == row["student_worst_group"]


def test_tasks_without_them_have_none(tmp_path: Path) -> None:
    results = run(config(tmp_path))
    assert all(results["summary"][0][f"student_{score}"] is None for score in SCORES)
    assert not list(tmp_path.glob("cache/*/ood.parquet"))
    assert "ood.inputs" not in data_digests(load_data(TaskConfig(n_weak=2), 0))


def test_subgroups_change_what_is_scored_but_not_what_is_trained(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    rows = [f"t{i} {('bad', 'good')[i % 2]},{i % 2},{'ab'[i % 3 == 0]}" for i in range(140)]
    path.write_text("\n".join(["text,label,kind", *rows]) + "\n")
    task = {"name": "local", "path": str(path), **SIZES}
    plain, grouped = (
        run(config(tmp_path / "out", task={**task, **more})) for more in ({}, {"subgroup": "kind"})
    )
    assert grouped["summary"][0]["student_worst_group"] is not None
    stages = grouped["provenance"]["stages"]
    reused = {name for name, stage in stages.items() if stage["reused"]}
    assert {"student/0/xent", "labels/0"} <= reused and "report" not in reused
    assert plain["summary"][0]["student"] == grouped["summary"][0]["student"]


@pytest.mark.parametrize(
    ("task", "says"),
    [
        ({"subgroup": "kind"}, "task.subgroup='kind': task 'agreement' does not read such a"),
        (
            {"name": "helpers.mirrored:Unshifted", "ood": {"n": 5, "attractor_distance": 2}},
            "task.ood.n=5: task 'helpers.mirrored:Unshifted' has no out-of-distribution items",
        ),
    ],
)
def test_settings_that_a_task_does_not_read_are_an_error(
    task: dict[str, Any], says: str, tmp_path: Path
) -> None:
    with pytest.raises(W2SError, match=says):
        run(config(tmp_path, task={**SIZES, **task}))
