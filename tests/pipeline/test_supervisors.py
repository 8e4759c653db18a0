"""Runs with many supervisors: their posterior is the weak label, and it is scored as one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.supervised_runs import SCRATCH, fold_of, folder_of, labels_of, supervised, write_rows
from helpers.toy_run import config

import w2s_fast
from w2s_fast.errors import W2SError
from w2s_fast.label_models import DawidSkene, majority_vote
from w2s_fast.labeling import make_generator
from w2s_fast.methods import Plan, student_nodes
from w2s_fast.methods._base import Method
from w2s_fast.pipeline import artifacts, context, label
from w2s_fast.pipeline.context import load_data
from w2s_fast.pipeline.job_identity import data_inputs
from w2s_fast.pipeline.jobs import Job, plan_jobs
from w2s_fast.pipeline.stages.build_model import read_features
from w2s_fast.pipeline.students import make_plan

RULES = """
from w2s_fast.labeling import ABSTAIN, keywords, labeling_function, regex

good = keywords(1, ["good", "fine"])
bad = keywords(0, ["bad"])
end = regex(1, r"!$")


@labeling_function()
def length(text: str) -> int:
    return ABSTAIN if len(text) < 12 else 0
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows.jsonl")


def test_the_posterior_of_the_transfer_votes_labels_every_split(path: Path) -> None:
    cfg = supervised(path, ["votes"])
    results = w2s_fast.run(cfg)
    data = load_data(cfg.task, 0)
    model = DawidSkene(2, class_balance="majority", anchor=100.0).fit(data.transfer.votes)
    for job, split in (("posterior/0", data.transfer), ("posterior/0/test", data.test)):
        probs, weight = labels_of(results, cfg, job, split.ids)
        expected = model.posterior(split.votes).numpy()
        assert np.allclose(probs, expected, atol=1e-6)
        covered = (split.votes >= 0).any(1)
        if split is data.transfer:
            assert np.array_equal(weight, covered.astype(np.float32))
            assert 0 < covered.sum() < len(covered)
        else:
            assert weight is None
            assert results["runs"][0]["weak"] == (expected.argmax(1) == split.labels).mean()
    # No weak model is trained, and no use of true labels is hidden.
    assert not [
        job for job in results["provenance"]["stages"] if job.startswith(("weak", "labels"))
    ]
    assert results["gold"] == []


def test_what_results_say_of_the_supervisors(path: Path) -> None:
    cfg = supervised(path, ["votes"])
    results = w2s_fast.run(cfg)
    data = load_data(cfg.task, 0)
    (row,) = results["supervisors"]
    votes, labels = data.transfer.votes, data.transfer.labels
    assert votes is not None
    assert [s["name"] for s in row["sources"]] == [f"votes[{j}]" for j in range(5)]
    for j, source in enumerate(row["sources"]):
        cast = votes[:, j] >= 0
        assert source["coverage"] == pytest.approx(cast.mean())
        assert source["accuracy"] == pytest.approx((votes[cast, j] == labels[cast]).mean())
    model = DawidSkene(2, class_balance="majority", anchor=100.0).fit(votes)
    right = sum(model.prior[c] * model.rates[0, c, c] for c in (0, 1))
    cast_rate = sum(model.prior[c] * model.rates[0, c, :2].sum() for c in (0, 1))
    assert row["sources"][0]["estimated_accuracy"] == pytest.approx(float(right / cast_rate))
    covered = (votes >= 0).any(1)
    posterior = model.posterior(votes).numpy().argmax(1) == labels
    assert row["transfer"] == {
        "covered": pytest.approx(covered.mean()),
        "accuracy": pytest.approx(posterior.mean()),
        "covered_accuracy": pytest.approx(posterior[covered].mean()),
        "constant": 0.5,
    }
    many = np.where(votes < 0, 9, votes).min(1) < votes.max(1)
    assert row["conflicts"] == pytest.approx(many.mean())
    page = (Path(cfg.output_dir) / "report.html").read_text()
    assert "<h2>Supervisors</h2>" in page and "votes[4]" in page


@pytest.mark.parametrize("rule", ["covered", "confidence", "equal"])
def test_row_weights_reach_the_student(path: Path, rule: str) -> None:
    cfg = supervised(path, ["votes"], supervisors={"row_weight": rule})
    results = w2s_fast.run(cfg)
    data = load_data(cfg.task, 0)
    _, weight = labels_of(results, cfg, "posterior/0", data.transfer.ids)
    covered = (data.transfer.votes >= 0).any(1)  # type: ignore[operator]
    log = json.loads((folder_of(results, cfg, "student/0/xent") / artifacts.LOG).read_bytes())
    rows = int(covered.sum()) if rule != "equal" else len(covered)
    assert log["steps"] == -(-2 * rows // 16)  # rows of weight 0 take no step
    assert weight is None if rule == "equal" else not weight[~covered].any()


def test_sources_are_combined_in_order(path: Path) -> None:
    rules = path.with_name("rules.py")
    rules.write_text(RULES)
    cfg = supervised(
        path,
        ["weak", f"functions:{rules}", "weak:member=1,threshold=0.6", "votes"],
        supervisors={"label_model": "majority"},
    )
    results = w2s_fast.run(cfg)
    names = [s["name"] for s in results["supervisors"][0]["sources"]]
    assert names[0] == "weak" and names[5] == "weak:member=1" and names[6] == "votes[0]"
    data = load_data(cfg.task, 0)
    posterior = folder_of(results, cfg, "posterior/0")
    stored, votes = artifacts.read_votes(posterior / artifacts.VOTES, data.transfer.ids)
    assert stored == names
    has_bad = ["bad" in text for text in data.transfer.texts]
    assert votes[:, names.index("0: bad")].tolist() == [0 if b else -1 for b in has_bad]
    # The same weak model that labels alone without the block.
    alone = w2s_fast.run(supervised(path, [], out="alone"))
    probs, _ = labels_of(alone, supervised(path, [], out="alone"), "labels/0", data.transfer.ids)
    assert np.array_equal(votes[:, 0], probs.argmax(1))
    second = votes[:, 5]
    assert (second == -1).any() and (second >= 0).any() and (second != votes[:, 0]).any()
    expected = majority_vote(torch.from_numpy(votes), 2).numpy()
    assert np.allclose(labels_of(results, cfg, "posterior/0", data.transfer.ids)[0], expected)


@pytest.mark.parametrize("source", ["stumps", "logistic", "neighbors"])
def test_learned_functions_see_the_weak_split_alone(path: Path, source: str) -> None:
    cfg = supervised(path, [source], student=SCRATCH, supervisors={"label_model": "majority"})
    results = w2s_fast.run(cfg)
    (row,) = results["supervisors"]
    assert len(row["sources"]) >= 1 and 0 < row["transfer"]["covered"] <= 1
    jobs = {job.name: job for job in plan_jobs(cfg).jobs}
    learned = [job for job in jobs.values() if job.stage == "generated_votes"]
    assert learned and not any(job.gold for job in learned)
    # Other labels of the transfer set leave their votes alone.
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    transfer = set(load_data(cfg.task, 0).transfer.texts)
    other = path.with_name("other.jsonl")
    for r in rows:
        r["votes"] = [0] * 5 if r["text"] in transfer else r["votes"]
    other.write_text("".join(json.dumps(r) + "\n" for r in rows))
    again = w2s_fast.run(
        supervised(other, [source], "other", student=SCRATCH, cache_dir=str(cfg.store_dir),
                   supervisors={"label_model": "majority"})
    )  # fmt: skip
    stages = results["provenance"]["stages"], again["provenance"]["stages"]
    for job in learned:
        assert stages[0][job.name]["digest"] == stages[1][job.name]["digest"]


def test_learned_functions_leave_a_fold_out(path: Path) -> None:
    """Where labels of the weak split are calibrated, as a fit by hand without the fold."""
    cfg = supervised(path, ["stumps"], student=SCRATCH, supervisors={"label_model": "majority"},
                     weak_calibration="temperature", calibration_folds=2)  # fmt: skip
    results = w2s_fast.run(cfg)
    data = load_data(cfg.task, 0)
    rows = fold_of(data, 2) != 1
    learned = [job for job in plan_jobs(cfg).jobs if job.stage == "generated_votes"]
    own = [job for job in learned if job.setting("split") == "weak"]
    (job,) = (job for job in own if job.setting("fold") == 1)
    states = read_features(folder_of(results, cfg, dict(job.inputs)["weak"])).float().numpy()
    labels = data.weak.labels
    votes = artifacts.read_votes(
        folder_of(results, cfg, job.name) / artifacts.VOTES, data.weak.ids
    )[1]
    without = make_generator("stumps").fit(states[rows], labels[rows], 2, seed=0)
    assert np.array_equal(votes, without.votes(states))
    with_it = make_generator("stumps").fit(states, labels, 2, seed=0).votes(states)
    assert not np.array_equal(votes, with_it)


def test_label_words_vote_with_the_untrained_student(tmp_path: Path) -> None:
    """On the embedded task, whose student knows the language."""
    from helpers.generation_cases import checkpoint

    from w2s_fast.tasks.datasets.agreement import tokenizer

    source = str(checkpoint("llama", tmp_path / "llama", tokenizer()))
    cfg = config(
        tmp_path / "out", student={"source": source},
        supervisors={"sources": ["label_words", "weak", "weak:member=1"]},
    )  # fmt: skip
    results = w2s_fast.run(cfg)
    names = [s["name"] for s in results["supervisors"][0]["sources"]]
    assert names == ["label_words", "weak", "weak:member=1"]
    assert "prior/0/1" in results["provenance"]["stages"]


def test_out_of_distribution_items_are_labelled_too(tmp_path: Path) -> None:
    task = {"n_weak": 40, "n_transfer": 48, "n_test": 40, "ood": {"n": 20},
            "shortcut": {"availability": 1}}  # fmt: skip
    block = {"sources": ["weak", "weak:member=1"], "label_model": "majority"}
    cfg = config(tmp_path / "out", task=task, supervisors=block)
    (row,) = w2s_fast.run(cfg)["runs"]
    assert row["weak_ood"] is not None and row["weak_worst_group"] is not None


def test_votes_are_computed_again_when_they_may_differ(path: Path) -> None:
    rules = path.with_name("rules.py")
    rules.write_text(RULES)
    sources = ["votes", f"functions:{rules}"]
    shared = {"cache_dir": str(path.parent / "cache")}

    def digests(out: str, **more: Any) -> dict[str, str]:
        stages = w2s_fast.run(supervised(path, sources, out, **shared, **more))["provenance"][
            "stages"
        ]
        return {name: stage["digest"] for name, stage in stages.items()}

    first = digests("first")
    assert digests("same") == first
    rules.write_text(RULES.replace('"fine"', '"word"'))
    second = digests("edited")
    changed = {name for name in first if first[name] != second[name]}
    assert changed >= {"votes/0/2", "posterior/0", "student/0/xent"}
    assert not changed & {"votes/0/1", "ceiling/0", "tokenizer/0"}
    rows = path.read_text().replace("[-1, -1, -1, -1, -1]", "[1, 1, 1, 1, 1]")
    path.write_text(rows)
    third = digests("other-votes")
    changed = {name for name in second if second[name] != third[name]}
    assert changed >= {"votes/0/1", "posterior/0"}
    assert not changed & {"votes/0/2", "ceiling/0", "tokenizer/0"}
    fourth = digests("other-weight", supervisors={"row_weight": "confidence"})
    changed = {name for name in third if third[name] != fourth[name]}
    assert "posterior/0" in changed and "posterior/0/test" not in changed


def test_calibration_is_fitted_to_cross_fitted_posteriors(path: Path) -> None:
    cfg = supervised(path, ["weak", "votes"], weak_calibration="temperature", calibration_folds=3)
    results = w2s_fast.run(cfg)
    data = load_data(cfg.task, 0)
    (row,) = results["weak_labels"]
    assert row["calibration"]["applied"] and row["calibration"]["folds"] == 3
    jobs = {job.name: job for job in plan_jobs(cfg).jobs}
    inputs = dict(jobs["posterior/0"].inputs)
    fold_jobs = dict(jobs[inputs["calibrator"]].inputs)
    assert list(fold_jobs) == ["fold0", "fold1", "fold2"] and len(set(fold_jobs.values())) == 3
    # Where no source learns, one posterior is that of all folds.
    static = {job.name: job for job in plan_jobs(supervised(
        path, ["votes"], weak_calibration="temperature", calibration_folds=3)).jobs}  # fmt: skip
    calibrator = dict(static["posterior/0"].inputs)["calibrator"]
    assert len(set(dict(static[calibrator].inputs).values())) == 1

    fold = fold_of(data, 3)
    for i in range(3):
        name = dict(jobs[fold_jobs[f"fold{i}"]].inputs)["weak0"]
        model = dict(jobs[dict(jobs[name].inputs)["labels"]].inputs)["model"]
        assert jobs[model].setting("fold") == i
    right = [labels_of(results, cfg, fold_jobs[f"fold{i}"], data.weak.ids)[0] for i in range(3)]
    probs = np.stack(right)[fold, np.arange(len(fold))]
    accuracy = (probs.argmax(1) == data.weak.labels).mean()
    assert row["calibration"]["accuracy"] == pytest.approx(accuracy)


def test_methods_apply_to_the_posterior(path: Path) -> None:
    cfg = supervised(path, ["votes"], methods=["naive", "confident:low=0.3"])
    results = w2s_fast.run(cfg)
    assert {r["name"] for r in results["runs"]} == {"xent", "confident:low=0.3+xent"}


@pytest.mark.parametrize("method", ["ensemble", "debate", "market_making"])
def test_methods_with_weak_models_of_their_own_are_refused(path: Path, method: str) -> None:
    cfg = supervised(path, ["votes"], methods=[method], student=SCRATCH)
    with pytest.raises(W2SError, match="the method trains weak models of its own, and superv"):
        w2s_fast.run(cfg)


@pytest.mark.parametrize(
    ("sources", "more", "message"),
    [
        (["votes"], {"task": {"votes": None}}, "'votes' needs the column of the votes; set task.v"),
        (["votes"], {"supervisors": {"label_model": "dawid"}}, "unknown label model 'dawid'"),
        (["votes"], {"supervisors": {"class_balance": "0.2+0.3+0.5"}}, "has 3 numbers; expected o"),
        (["functions:absent.py"], {}, "absent.py"),
        (["stumps"], {}, "a method needs hidden states of the student"),
        (["weak", "weak:member=1"], {}, "have 2 columns of votes; .* at least 3: add sources, or"),
        (
            ["label_words", "weak"],
            {"supervisors": {"label_model": "tree_dawid_skene"}},
            "at least 3",
        ),
    ],
)
def test_bad_blocks_are_named(
    path: Path, sources: list[str], more: dict[str, Any], message: str
) -> None:
    cfg = supervised(path, sources, **more)
    with pytest.raises(W2SError, match=message):
        w2s_fast.run(cfg)
    assert not list(cfg.store_dir.glob("*-*"))  # nothing is computed before


def test_too_few_columns_of_votes_are_named_at_once(path: Path) -> None:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps({**r, "votes": r["votes"][:2]}) + "\n" for r in rows))
    cfg = supervised(path, ["votes"])
    with pytest.raises(W2SError, match="have 2 columns of votes"):
        w2s_fast.run(cfg)
    assert not list(cfg.store_dir.glob("*-*"))
    assert w2s_fast.run(supervised(path, ["votes"], supervisors={"label_model": "majority"}))


def test_texts_without_any_vote_are_an_error(path: Path) -> None:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps({**r, "votes": [-1] * 5}) + "\n" for r in rows))
    for model in ("majority", "dawid_skene"):
        cfg = supervised(path, ["votes"], model, supervisors={"label_model": model})
        with pytest.raises(W2SError, match="every source abstains for every row"):
            w2s_fast.run(cfg)


def test_rows_that_no_supervisor_is_sure_of_weigh_nothing(path: Path) -> None:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps({**r, "votes": [0, 1]}) + "\n" for r in rows))
    block = {"label_model": "majority", "row_weight": "confidence"}
    with pytest.raises(W2SError, match="gives every one of 120 transfer texts the weight 0"):
        w2s_fast.run(supervised(path, ["votes"], supervisors=block))


def test_labels_alone(path: Path) -> None:
    cfg = supervised(path, ["votes"])
    (folder,) = label(cfg).values()
    import pyarrow.parquet as pq

    table = pq.read_table(folder)
    data = load_data(cfg.task, 0)
    covered = (data.transfer.votes >= 0).any(1)  # type: ignore[operator]
    weight = dict(zip(table["id"].to_pylist(), table["weight"].to_pylist(), strict=True))
    assert [weight[i] for i in data.transfer.ids] == covered.astype(float).tolist()
    from w2s_fast.integrations.batches import read_labels

    assert (
        read_labels(folder, ids=data.transfer.ids).weight.tolist() == covered.astype(float).tolist()
    )


def test_labels_of_the_weak_split_reach_no_student(path: Path) -> None:
    class Leak(Method):
        def labels(self, plan: Plan, labels: Any) -> Any:
            return plan.apply(self.pick, weak=labels, leaked=plan.weak_labels(split="weak"))

        def pick(self, weak: Any, leaked: Any, seed: int) -> Any:
            return leaked

    plan = make_plan(supervised(path, ["weak", "votes"]), "xent")
    with pytest.raises(W2SError, match="gives the labels of the weak split to stage 'apply'"):
        student_nodes((Leak(),), plan)


@pytest.mark.parametrize("stage", [stage for stage in context._GOLD if stage != "report"])
def test_labels_that_a_stage_may_read_are_inputs_of_it(stage: str) -> None:
    """Else a stage would be reused for other labels."""
    reads = data_inputs(Job(stage, "a job", 0))
    assert {f"{split}.labels" for split in context._GOLD[stage]} <= set(reads)
