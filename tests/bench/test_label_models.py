"""The benchmark of label models: it reads WRENCH files, measures, and makes the tables."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.planted_votes import planted

from bench.label_models import accuracy, command, resources, table


def write_wrench(folder: Path, votes: torch.Tensor, labels: torch.Tensor, *, as_text: bool) -> None:
    folder.mkdir(parents=True)
    items = {}
    for i, (row, label) in enumerate(zip(votes.tolist(), labels.tolist(), strict=True)):
        value: Any = str(row) if as_text else row
        items[str(i)] = {"label": str(label), "weak_labels": value, "data": {"text": "t"}}
    (folder / "train.json").write_text(json.dumps(items))


def test_accuracy_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    p = planted(400, 8, [0.6, 0.4], accuracy=(0.75, 0.9))
    votes = p.votes.clone()
    votes[:50] = -1
    for name, as_text in (("youtube", True), ("sms", False)):
        write_wrench(tmp_path / name, votes, p.classes, as_text=as_text)
    out = tmp_path / "rows.jsonl"
    assert command.main(["--data", str(tmp_path), "--parts", "accuracy", "--out", str(out)]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == 2 * (1 + len(accuracy.MODELS))
    assert all((row["n"], row["n_covered"]) == (400, 350) for row in rows)
    constant, majority = rows[0], rows[1]
    share = float(p.classes.double().mean())
    assert constant["accuracy"] == pytest.approx(max(share, 1 - share), abs=1e-4)
    covered, chosen = p.classes[50:], majority_by_hand(votes[50:])
    right = float((chosen == covered).double().mean())
    assert majority["covered_accuracy"] == pytest.approx(right, abs=1e-4)
    assert [r["accuracy"] for r in rows[: len(rows) // 2]] == [
        r["accuracy"] for r in rows[len(rows) // 2 :]
    ], "votes written as text are the same votes"
    text = table.wrench(rows)
    assert f"| sms, 350 of 400 covered | `WeightedVote(2)` | {rows[-6]['accuracy']:.3f} |" in text


def majority_by_hand(votes: torch.Tensor) -> torch.Tensor:
    return ((votes == 1).sum(1) > (votes == 0).sum(1)).long()


@pytest.mark.slow
def test_speed_and_memory_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--quick", "--parts", "speed,memory"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    timed = {row["provider"]: row for row in rows if row["part"] == "speed"}
    assert {"Triplets", "MeTaL", "DawidSkene"} <= set(timed)
    assert all(row["cpu_ms"] > 0 and row["accuracy"] > 0.99 for row in timed.values())
    peaks = [row["peak_mib"] for row in rows if row["part"] == "memory"]
    assert peaks and all(0 < mib < 2048 for mib in peaks)


def test_table_of_fits() -> None:
    shared = {"part": "speed", "n": 10, "m": 5, "k": 2, "threads": 1, "cpu": "X", "git_sha": "abc"}
    rows = [
        {**shared, "provider": "Triplets", "cpu_ms": 50.0, "accuracy": 0.91},
        {**shared, "provider": "Snorkel LabelModel", "cpu_ms": 400.0, "accuracy": 0.9},
    ]
    text = table.fits(rows)
    assert "| Triplets | 50 | 8.0 | 0.9100 |" in text and "commit abc" in text
    size = {"n": 9, "m": 5, "k": 2}
    agreed = {"part": "oracle", "provider": "crowd-kit", "largest_difference": 2e-9, **size}
    peak = {"part": "memory", "provider": "DawidSkene", "peak_mib": 12.4, **size}
    text = table.fits([*rows, agreed, peak])
    assert "of crowd-kit differ by at most 2e-09 (5 sources, 2 classes, 9 rows)" in text
    assert "`DawidSkene` with 5 sources, 2 classes, 9 rows: 12 MiB" in text
    assert "| Triplets | 50 | – | 0.9100 |" in table.fits(rows[:1])
    assert "No rows" in table.fits([]) and "No rows" in table.wrench([])


def test_simulated_votes_have_their_coverage_and_accuracy() -> None:
    votes, classes = resources.simulated_votes(20_000, 10, 4, 0.3)
    cast = votes >= 0
    assert float(cast.double().mean()) == pytest.approx(0.3, abs=0.01)
    right = float((votes == classes[:, None])[cast].double().mean())
    assert 0.6 < right < 0.85 and math.isclose(float(votes.max()), 3)


def test_committed_posteriors_agree_with_crowd_kit() -> None:
    (row,) = [r for r in command.load() if r["part"] == "oracle"]
    assert row["largest_difference"] < 1e-6 and row["n"] >= 300


def test_wrong_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--parts", "accurcy"]) == 2
    assert command.main(["--quick", "--record", "--parts", "speed"]) == 2
    assert "--record needs a clean tree" in capsys.readouterr().err


def test_committed_rows_reach_what_the_page_claims() -> None:
    """The recommended setting is at least as good as the majority vote, on covered rows too."""
    rows = [r for r in command.load() if r["part"] == "accuracy"]
    by = {(r["data"], r["model"]): r for r in rows}
    for data in accuracy.DATA_SETS:
        majority = by[data, "majority_vote(votes, 2)"]
        tuned = by[data, 'DawidSkene(2, class_balance="majority", anchor=100.0)']
        for score in ("accuracy", "covered_accuracy", "covered_balanced_accuracy", "covered_f1"):
            assert tuned[score] >= majority[score], (data, score)
        assert tuned["covered_accuracy"] > by[data, "constant"]["covered_accuracy"]
