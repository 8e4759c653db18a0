"""Calibrated weak labels and diagnostics of a run: what they compute, and what they leave alone."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.toy_run import config

import w2s_fast
from w2s_fast import metrics
from w2s_fast.config import RunConfig
from w2s_fast.errors import W2SError
from w2s_fast.methods import Plan, student_nodes
from w2s_fast.methods._base import Method
from w2s_fast.models import build_model, load_weights
from w2s_fast.pipeline import artifacts
from w2s_fast.pipeline.check_fit import check_diagnostics
from w2s_fast.pipeline.context import load_data
from w2s_fast.pipeline.job_identity import data_inputs
from w2s_fast.pipeline.jobs import plan_jobs
from w2s_fast.pipeline.stages.calibration import read_calibration
from w2s_fast.pipeline.stages.diagnostics import WeakLabels, fit_row
from w2s_fast.pipeline.stages.training_set import _without_fold, folds
from w2s_fast.tasks.datasets import agreement
from w2s_fast.training import encode, predict

SCRATCH = {"source": "scratch", "hidden": 16, "layers": 1, "heads": 2}


def folder_of(results: dict[str, Any], cfg: RunConfig, job: str) -> Path:
    return cfg.store_dir / results["provenance"]["stages"][job]["folder"]


def labels_of(results: dict[str, Any], cfg: RunConfig, job: str, ids: tuple[str, ...]) -> Any:
    folder = folder_of(results, cfg, job) / artifacts.LABELS
    return artifacts.read_probs(folder, ids, 2)


@pytest.mark.parametrize("rule", ["temperature", "platt"])
def test_labels_go_through_a_calibrator_of_cross_fitted_predictions(
    tmp_path: Path, rule: str
) -> None:
    shared: dict[str, Any] = {"cache_dir": str(tmp_path / "cache"), "calibration_folds": 3}
    plain_cfg = config(tmp_path / "plain", **shared)
    cfg = config(tmp_path / "out", weak_calibration=rule, **shared)
    plain, results = w2s_fast.run(plain_cfg), w2s_fast.run(cfg)
    data = load_data(cfg.task, 0)
    raw = labels_of(plain, plain_cfg, "labels/0", data.transfer.ids)

    fold = fold_of(data.weak.groups, data.weak.ids, cfg)
    probs = np.stack(
        [labels_of(results, cfg, f"labels/0/{i + 1}", data.weak.ids) for i in range(3)]
    )[fold, np.arange(len(fold))]
    expected = metrics.CALIBRATORS[rule](probs, data.weak.labels)
    calibrator, record = read_calibration(folder_of(results, cfg, "calibration/0/1"))
    assert calibrator == expected and (record["n"], record["folds"]) == (40, 3)
    assert record["before"]["nll"] == pytest.approx(metrics.nll(probs, data.weak.labels))
    after = np.empty_like(probs)
    for i in range(3):
        fit = metrics.CALIBRATORS[rule](probs[fold != i], data.weak.labels[fold != i])
        after[fold == i] = fit(probs[fold == i])
    assert record["after"]["ece"] == pytest.approx(metrics.ece(after, data.weak.labels))

    calibrated = labels_of(results, cfg, "labels/0", data.transfer.ids)
    assert np.allclose(calibrated, expected(raw), atol=1e-6)
    assert np.abs(calibrated - raw).max() > 0.01
    (row,) = results["weak_labels"]
    assert row["calibration"]["applied"] and row["overlap"] is None
    assert row["calibration"]["expected_accuracy"] == pytest.approx(calibrated.max(1).mean())
    assert plain["weak_labels"] == [] == plain["gold"]
    use = "true labels of the weak split calibrate the weak labels"
    assert results["gold"] == [{"name": "xent", "use": use}]
    # The weak model is the same one, and the weak labels are all that changed.
    assert results["runs"][0]["weak"] == plain["runs"][0]["weak"]
    stages = plain["provenance"]["stages"], results["provenance"]["stages"]
    assert stages[0]["weak/0"]["digest"] == stages[1]["weak/0"]["digest"]
    assert stages[0]["labels/0"]["digest"] != stages[1]["labels/0"]["digest"]


class _Ctx:
    """What ``folds`` reads of a context."""

    def __init__(self, seed: int) -> None:
        self.job = type("J", (), {"seed": seed})


def fold_of(groups: tuple[str, ...], ids: tuple[str, ...], cfg: RunConfig) -> np.ndarray:
    items = type("I", (), {"groups": groups})
    return folds(_Ctx(0), items, cfg.calibration_folds)  # type: ignore[arg-type]


def test_folds_are_of_whole_groups_and_of_about_one_size() -> None:
    groups = tuple(f"g{i // 3}" for i in range(600))
    for n in (2, 3, 5):
        fold = folds(_Ctx(1), type("I", (), {"groups": groups}), n)  # type: ignore[arg-type]
        assert set(fold) == set(range(n))
        assert np.abs(np.bincount(fold) - 600 / n).max() <= 3
        assert all(len(set(fold[i : i + 3])) == 1 for i in range(0, 600, 3))


def test_no_fold_model_learns_its_fold_and_no_one_true_transfer_labels() -> None:
    cfg = config(Path("unused"), weak_calibration="platt", diagnostics=["fit"])
    jobs = {job.name: job for job in plan_jobs(cfg).jobs}
    calibration = next(job for job in jobs.values() if job.stage == "calibration")
    assert sum(job.stage == "calibration" for job in jobs.values()) == 1
    for i, (name, labels) in enumerate(calibration.inputs):
        (model,) = jobs[labels].needs
        assert name == f"fold{i}" and jobs[labels].setting("split") == "weak"
        assert jobs[model].setting("fold") == i and jobs[model].setting("folds") == 5
    upstream, pending = set(), ["student/0/xent"]
    while pending:
        upstream.add(name := pending.pop())
        pending += jobs[name].needs
    assert calibration.name in upstream
    assert not any("transfer.labels" in data_inputs(jobs[name]) for name in upstream)
    assert not any("test.labels" in data_inputs(jobs[name]) for name in upstream)


def test_without_settings_nothing_is_added() -> None:
    stages = {job.stage for job in plan_jobs(config(Path("unused"))).jobs}
    assert stages == {"weak", "labels", "supervisor_card", "student", "ceiling", "report"}
    stages = {job.stage for job in plan_jobs(config(Path("unused"), diagnostics=["fit"])).jobs}
    assert "calibration" in stages


def test_every_member_of_an_ensemble_has_a_calibrator_of_its_own() -> None:
    cfg = config(Path("unused"), weak_calibration="temperature", methods=["ensemble:members=3"])
    jobs = {job.name: job for job in plan_jobs(cfg).jobs}
    labels = [j for j in jobs.values() if j.stage == "labels" and j.setting("split") == "transfer"]
    calibrators = {dict(job.inputs)["calibrator"] for job in labels}
    assert len(labels) == len(calibrators) == 3


def test_labels_of_the_weak_split_reach_calibrators_alone() -> None:
    class Cheat(Method):
        def labels(self, plan: Plan, labels: Any) -> Any:
            fold = plan.labels(plan.weak_model(fold=0, folds=5), "weak")
            return plan.apply(self.taken, weak=fold)

        def taken(self, weak: Any, seed: int) -> Any:
            return weak

    with pytest.raises(W2SError, match="gives the labels of the weak split to stage 'apply'"):
        student_nodes((Cheat(),), Plan())


def test_a_recorded_fit_changes_no_training(tmp_path: Path) -> None:
    """Weights, test predictions and the choice of early stopping are bitwise those without it."""
    methods = ["naive", "early_stop", "strong_to_strong:rounds=1"]
    shared: dict[str, Any] = {"methods": methods, "student": SCRATCH, "calibration_folds": 2}
    folders = {}
    for name, diagnostics in (("plain", []), ("fit", ["fit"])):
        cfg = config(tmp_path / name, diagnostics=diagnostics, **shared)
        results = w2s_fast.run(cfg)
        students = [r["name"] for r in results["runs"]]
        folders[name] = {s: folder_of(results, cfg, f"student/0/{s}") for s in students}
        assert [r["fit"] is None for r in results["runs"]] == [not diagnostics] * 3
        trained = [n for n in results["provenance"]["stages"] if n.startswith("student/")]
        assert len(trained) == 3  # naive's student is the first round of strong_to_strong
    for student, folder in folders["fit"].items():
        for file in (artifacts.MODEL, artifacts.TEST):
            assert (folder / file).read_bytes() == (folders["plain"][student] / file).read_bytes()
        pair = (folder, folders["plain"][student])
        fit, plain = (json.loads((f / artifacts.LOG).read_bytes()) for f in pair)
        assert (fit["losses"], fit.get("scores")) == (plain["losses"], plain.get("scores"))
    data = load_data(config(tmp_path).task, 0)
    (row,) = results["weak_labels"]  # computed for the alarm, and not applied to the labels
    calibrator, _ = read_calibration(folder_of(results, cfg, "calibration/0"))
    raw = labels_of(results, cfg, "labels/0", data.transfer.ids)
    expected = calibrator(raw).max(1).mean()
    assert not row["calibration"]["applied"] and abs(expected - raw.max(1).mean()) > 1e-3
    assert row["calibration"]["expected_accuracy"] == pytest.approx(expected)
    steps, ids, trajectory = artifacts.read_fit(folders["fit"]["xent"] / artifacts.FIT, 2)
    assert steps == [1, 2, 3, 4, 5, 6] and sorted(ids) == sorted(data.transfer.ids)
    assert trajectory.shape == (6, 48, 2)
    steps, ids, _ = artifacts.read_fit(folders["fit"]["early_stop+xent"] / artifacts.FIT, 2)
    assert steps == [3, 6] and len(ids) == 43  # five of 48 are held out, the rest is learned
    for student in ("xent", "early_stop+xent"):
        check_recorded_predictions(folders["fit"][student], cfg)


def check_recorded_predictions(folder: Path, cfg: RunConfig) -> None:
    """Check that the weights that were kept predict what was recorded at their step."""
    items = load_data(cfg.task, 0).transfer
    steps, ids, trajectory = artifacts.read_fit(folder / artifacts.FIT, 2)
    best = json.loads((folder / artifacts.LOG).read_bytes())["best"]
    model = build_model(cfg.student, 2, agreement.tokenizer(), 0)
    load_weights(model, folder / artifacts.MODEL)
    texts = items.inputs.take([items.ids.index(i) for i in ids])
    probs = predict(model, encode(agreement.tokenizer(), texts, cfg.student_train.max_length))
    assert np.allclose(probs, trajectory[-1 if best is None else steps.index(best)], atol=1e-6)


def test_the_sample_of_a_large_training_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("w2s_fast.pipeline.stages.watched_rows.FIT_ROWS", 10)
    cfg = config(tmp_path, diagnostics=["fit"], calibration_folds=2)
    results = w2s_fast.run(cfg)
    assert results["runs"][0]["fit"]["n"] == 10


def test_how_a_student_fitted_is_read_from_what_it_recorded(tmp_path: Path) -> None:
    """Planted: it agrees with .8 of the labels, then with all; the better weights were kept."""
    ids = [f"t{i}" for i in range(500)]
    weak = np.where(np.arange(500)[:, None] % 2, [0.2, 0.8], [0.8, 0.2]).astype(np.float32)
    agrees = np.arange(500) < np.array([400, 400, 450, 500])[:, None]
    trajectory = np.where(agrees[..., None], weak, weak[:, ::-1])
    order = np.random.default_rng(0).permutation(500)
    folder = tmp_path / artifacts.FIT
    artifacts.write_fit(folder, [ids[i] for i in order], [5, 10, 15, 20], trajectory[:, order])
    labels = WeakLabels(weak, {n: i for i, n in enumerate(ids)}, {"n": 2000}, 0.8, None)
    for best, disagreement in ((None, 0.0), (10, 0.2)):
        (tmp_path / artifacts.LOG).write_text(json.dumps({"best": best}))
        row = fit_row(tmp_path, labels)
        assert row is not None and row["alarm_step"] == 15
        assert row["agreement"] == pytest.approx([0.8, 0.8, 0.9, 1.0])
        assert row["misfit"]["disagreement"] == pytest.approx(disagreement)
    unknown = WeakLabels(weak, labels.row_of, None, None, None)
    assert (fit_row(tmp_path, unknown) or {})["alarm_step"] is None
    assert fit_row(tmp_path / "elsewhere", labels) is None


def test_misfit_and_gain_are_those_of_the_arrays(tmp_path: Path) -> None:
    cfg = config(tmp_path)
    results = w2s_fast.run(cfg)
    test = load_data(cfg.task, 0).test
    student, weak = (
        artifacts.read_probs(folder_of(results, cfg, job) / artifacts.TEST, test.ids, 2)
        for job in ("student/0/xent", "weak/0")
    )
    (run,), (summary,) = results["runs"], results["summary"]
    assert run["misfit"] == summary["misfit"]
    assert run["misfit"] == pytest.approx(vars(metrics.misfit(student, weak)))
    gain = metrics.brier(weak, test.labels) - metrics.brier(student, test.labels)
    assert run["gain"]["brier"] == pytest.approx(gain) and run["fit"] is None


def test_overlap_is_computed_where_hidden_states_exist(tmp_path: Path) -> None:
    cfg = config(tmp_path, student=SCRATCH, methods=["knn_filter:k=3"])
    results = w2s_fast.run(cfg)
    data = load_data(cfg.task, 0)
    from w2s_fast.pipeline.stages.build_model import read_features

    features = next(n for n in results["provenance"]["stages"] if n.startswith("features/"))
    states = read_features(folder_of(results, cfg, features)).float().numpy()
    found = metrics.find_overlap(labels_of(results, cfg, "labels/0", data.transfer.ids), states)
    (row,) = results["weak_labels"]
    assert row["calibration"] is None
    assert row["overlap"] == {
        "n": 48,
        "density": found.density,
        "hard_only": pytest.approx(found.hard.mean()),
        "reason": None,
    }
    asked = plan_jobs(config(tmp_path, student=SCRATCH, diagnostics=["overlap"])).jobs
    assert [job.stage for job in asked].count("features") == 1
    other_layer = plan_jobs(config(tmp_path, student=SCRATCH, methods=["knn_filter:layer=0"])).jobs
    assert [j.stage for j in other_layer].count("features") == 1
    with_words = plan_jobs(config(tmp_path, student=SCRATCH, methods=["ccs"])).jobs
    assert "overlap" not in {job.stage for job in with_words}


def test_without_an_overlap_density_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise W2SError("the similarities are all equal")

    monkeypatch.setattr(metrics, "find_overlap", fails)
    cfg = config(tmp_path, student=SCRATCH, diagnostics=["overlap"])
    (row,) = w2s_fast.run(cfg)["weak_labels"]
    assert row["overlap"]["density"] is None and "all equal" in row["overlap"]["reason"]
    assert "no overlap density: the similarities" in (tmp_path / "report.html").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["three classes", "preference"])
def test_other_tasks(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "rows.jsonl"
    sizes = {"path": str(path), "n_weak": 60, "n_transfer": 60, "n_test": 30, "balance": False}
    if kind == "preference":
        rows = [
            {"chosen": f"Gladly: {'abc'[i % 3]} {i}", "rejected": f"No, not {'xyz'[i % 2]} {i}"}
            for i in range(160)
        ]
        task = {"name": "pairs", **sizes}
    else:
        rows = [{"text": f"{'abc'[i % 3]} {i}", "label": f"c{i % 3}"} for i in range(160)]
        task = {"name": "local", **sizes}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    cfg = config(
        tmp_path / "out", task=task, student={**SCRATCH, "layers": 2}, weak_calibration="platt",
        diagnostics=["fit", "overlap"], calibration_folds=3,
    )  # fmt: skip
    results = w2s_fast.run(cfg)
    (run,), (row,) = results["runs"], results["weak_labels"]
    n_classes = 2 if kind == "preference" else 3
    assert len(row["calibration"]["scale"]) == n_classes
    assert row["overlap"]["density"] is not None, row["overlap"]["reason"]
    assert run["fit"]["n"] == 60 and run["misfit"]["squared"] > 0


def test_what_does_not_fit_is_named_before_anything_is_computed(tmp_path: Path) -> None:
    for changes, words in (
        ({"weak_calibration": "plat"}, "weak_calibration='plat': .*did you mean 'platt'"),
        ({"calibration_folds": 1}, "calibration_folds=1: expected 2 or more"),
        ({"diagnostics": ["fits"]}, "diagnostics: 'fits' is unknown; .*did you mean 'fit'"),
        ({"diagnostics": ["fit", "fit"]}, "diagnostics: 'fit' is given twice"),
        ({"diagnostics": ["overlap"]}, r"diagnostics: \[overlap\].*student.source='bow' has none"),
        ({"weak_calibration": "platt", "calibration_folds": 41},
         "calibration_folds=41 with task.n_weak=40"),
    ):  # fmt: skip
        with pytest.raises(W2SError, match=words):
            w2s_fast.run(config(tmp_path / "out", **changes))
        assert not list((tmp_path / "out").glob("cache/[!.]*"))
    cfg = config(tmp_path, weak_calibration="temperature")
    with pytest.raises(W2SError, match="weak_calibration='temperature' needs class probabilities"):
        check_diagnostics(cfg, "generation")
    with pytest.raises(W2SError, match=r"diagnostics=\['fit'\] needs class probabilities"):
        check_diagnostics(config(tmp_path, diagnostics=["fit"]), "generation")
    check_diagnostics(config(tmp_path), "generation")


def test_a_weak_split_without_groups_for_its_folds_is_named() -> None:
    ctx = _Ctx(0)
    ctx.job.setting = lambda name, default=None: {"folds": 3}.get(name, default)
    examples = dataclasses.replace(
        load_data(config(Path("unused")).task, 0).weak, groups=("one document",) * 40
    )
    every_row = _without_fold(ctx, examples, 0)  # type: ignore[arg-type]
    assert len(every_row) == 40
    with pytest.raises(W2SError, match="has 1 groups of related rows, too few to leave one of 3"):
        _without_fold(ctx, examples, 2)  # type: ignore[arg-type]
