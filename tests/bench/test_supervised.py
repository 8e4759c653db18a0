"""The benchmark of label models to students: its configurations, and its table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.supervised.experiments import (
    BASELINE,
    DATA_SETS,
    configuration,
    data_file,
    selected,
    supervisors,
)
from bench.supervised.table import table
from w2s_fast.config import validate


def write_data(folder: Path) -> None:
    youtube = folder / "wrench" / "youtube"
    youtube.mkdir(parents=True)
    for split in ("train", "valid", "test"):
        rows = {}
        for i in range(3):
            text = {"text": f"{split} {i}"}
            rows[str(i)] = {"label": i % 2, "weak_labels": [i % 2, -1], "data": text}
        (youtube / f"{split}.json").write_text(json.dumps(rows))
    (folder / "sst2").mkdir()
    (folder / "sst2" / "train.tsv").write_text("fine\t1\n")


@pytest.mark.parametrize("name", DATA_SETS)
def test_every_configuration_is_valid(name: str, tmp_path: Path) -> None:
    write_data(tmp_path)
    file = data_file(name, tmp_path, tmp_path)
    for block in supervisors(name).values():
        validate(configuration(name, block, file, tmp_path))


def test_the_splits_of_wrench_are_joined(tmp_path: Path) -> None:
    write_data(tmp_path)
    lines = data_file("youtube", tmp_path, tmp_path).read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert len(rows) == 9
    assert rows[4] == {"text": "valid 1", "label": 1, "votes": [1, -1]}


def result(student: list[float], covered: float | None) -> dict[str, Any]:
    """Results of a run, with what the benchmark does not read."""
    runs = [
        {"seed": s, "name": "probe+xent", "weak": 0.7, "student": a, "ceiling": 0.9, "pgr": 0.5,
         "n_test": 100, "weak_label_accuracy": 0.65, "fit": None}
        for s, a in enumerate(student)
    ]  # fmt: skip
    summary = [
        {"name": "probe+xent", "loss": "xent", "student": sum(student) / len(student), "seeds": 3,
         "ceiling": 0.9, "pgr_mean": None, "pgr_low": None, "pgr_high": None, "level": 0.95}
    ]  # fmt: skip
    split = {"covered": covered, "accuracy": 0.65, "covered_accuracy": 0.8, "constant": 0.5}
    own = [] if covered is None else [{"seed": s, "transfer": split} for s in range(3)]
    return selected({"runs": runs, "summary": summary, "supervisors": own, "gold": [], "more": 1})


def test_differences_are_paired_by_seed() -> None:
    facts = {"cpu": "a processor", "torch": "2", "git_sha": "abc"}
    experiments = {
        BASELINE: result([0.70, 0.80, 0.75], None),
        "majority": result([0.72, 0.83, 0.76], 0.4),
    }
    text = table({
        "environment": facts, "task": {"n_weak": 1, "n_transfer": 2, "n_test": 3},
        "experiments": experiments,
    })  # fmt: skip
    baseline, majority = text.splitlines()[2:4]
    assert baseline.startswith(
        "| weak model alone | 1.000 | 0.650 | 0.650 | 0.700 | `xent` | 0.750"
    )
    # Differences .02, .03, .01: mean .02, standard error .00577, 4.30 of them to each side.
    assert majority.startswith(
        "| majority | 0.400 | 0.800 | 0.650 | 0.700 | `xent` | 0.770 | +0.020 | -0.00"
    )
    assert "+0.04" in majority and " 0.074 " in majority
    assert "3 seeds, 1 / 2 / 3 texts" in text and "commit abc" in text
