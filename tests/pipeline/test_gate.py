"""Gates and trust in runs with many supervisors: true labels of the weak split, used and named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.supervised_runs import SCRATCH, fold_of, folder_of, labels_of, supervised, write_rows

import w2s_fast
from w2s_fast.errors import W2SError
from w2s_fast.pipeline import artifacts
from w2s_fast.pipeline.context import load_data
from w2s_fast.pipeline.jobs import plan_jobs
from w2s_fast.trust import fit_source_gate


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows.jsonl")


def test_the_gate_drops_supervisors_that_do_not_help(path: Path) -> None:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    g = np.random.default_rng(3)
    noise = g.integers(0, 2, (len(rows), 2))
    for r, more in zip(rows, noise.tolist(), strict=True):
        r["votes"] += more  # two coins
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    cfg = supervised(
        path,
        ["votes", "weak"],
        task={"n_weak": 100, "n_transfer": 100},
        supervisors={"gate": True, "label_model": "majority"},
        calibration_folds=3,
    )
    results = w2s_fast.run(cfg)
    (row,) = results["supervisors"]
    assert {"votes[5]", "votes[6]"} <= set(row["dropped"])
    kept = [source["name"] for source in row["sources"]]
    assert "votes[0]" in kept and not set(kept) & set(row["dropped"])
    data = load_data(cfg.task, 0)
    folder = folder_of(results, cfg, "posterior/0")
    names, votes = artifacts.read_votes(folder / artifacts.VOTES, data.transfer.ids)
    assert names == kept
    columns = [int(name[6]) for name in kept if name.startswith("votes")]
    assert np.array_equal(votes[:, : len(columns)], data.transfer.votes[:, columns])  # type: ignore[index]
    assert results["gold"] == [
        {"name": "xent", "use": "true labels of the weak split select supervisors"}
    ]
    # Its weak models are those of the folds, and none has seen the row that it votes on.
    jobs = {job.name: job for job in plan_jobs(cfg).jobs}
    (gate,) = (job for job in jobs.values() if job.stage == "gate")
    probs = []
    for argument, name in gate.inputs:
        if argument.endswith("_1"):
            labels = dict(jobs[name].inputs)["labels"]
            assert argument == f"fold{jobs[dict(jobs[labels].inputs)['model']].setting('fold')}_1"
            probs.append(labels_of(results, cfg, labels, data.weak.ids)[0])
    assert not gate.gold
    fold = fold_of(data, 3)
    own = np.stack(probs)[fold, np.arange(len(fold))].argmax(1)
    votes = np.column_stack([data.weak.votes, own])  # type: ignore[list-item]
    expected = fit_source_gate(votes, data.weak.labels, 2, seed=0)
    stored = json.loads((folder_of(results, cfg, gate.name) / artifacts.GATE).read_bytes())
    assert stored["weights"] == pytest.approx(expected.weights.tolist())
    assert stored["kept"] == expected.kept.tolist()


@pytest.mark.parametrize(
    ("sources", "more", "message"),
    [
        (["votes", "stumps"], {}, "gate=true: .* has functions learned from the weak split"),
        (["votes", "weak"], {"weak_calibration": "platt"}, "cannot be left out where they select"),
    ],
)
def test_gates_that_would_see_their_own_labels_are_refused(
    path: Path, sources: list[str], more: dict[str, Any], message: str
) -> None:
    cfg = supervised(path, sources, student=SCRATCH, supervisors={"gate": True}, **more)
    with pytest.raises(W2SError, match=message):
        w2s_fast.run(cfg)


def test_a_gate_over_static_votes_can_be_calibrated(path: Path) -> None:
    cfg = supervised(path, ["votes"], supervisors={"gate": True, "label_model": "majority"},
                     weak_calibration="temperature", calibration_folds=2)  # fmt: skip
    jobs = plan_jobs(cfg).jobs
    left_out = {job.setting("fold") for job in jobs if job.stage == "gate"}
    assert left_out == {None, 0, 1}
    assert w2s_fast.run(cfg)["weak_labels"][0]["calibration"]["applied"]


def test_trust_weighs_a_posterior(path: Path) -> None:
    """P(label right) of the posterior, learned from cross-fitted posteriors of the weak split."""
    cfg = supervised(path, ["votes", "weak"], student=SCRATCH, methods=["trust"],
                     task={"n_weak": 150, "n_transfer": 80, "n_test": 60})  # fmt: skip
    results = w2s_fast.run(cfg)
    assert {"name": "trust+xent", "use": "true labels of the weak split train P(label right)"} in (
        results["gold"]
    )
