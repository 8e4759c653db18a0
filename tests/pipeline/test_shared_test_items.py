"""Test items of more than one seed count as such, although each seed has its own order."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers.task_data import local_config, numbered_rows, write_rows
from helpers.toy_run import config

from w2s_fast import metrics
from w2s_fast.pipeline import run
from w2s_fast.pipeline.artifacts import TEST
from w2s_fast.pipeline.context import load_data
from w2s_fast.tasks import Examples

SEEDS = (0, 1, 2)


@pytest.mark.parametrize("n_test", [30, 21])
def test_seeds_that_draw_from_one_test_file(
    n_test: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of it, or a part; a group has one number at all seeds."""
    calls: list[tuple[Any, Any]] = []
    runs_of = metrics.runs_of

    def seen(right: Any, groups: Any) -> metrics.Runs:
        calls.append((right, groups))
        return runs_of(right, groups)

    monkeypatch.setattr(metrics, "runs_of", seen)
    path = write_rows(tmp_path / "train.csv", numbered_rows(120))
    file = write_rows(tmp_path / "test.csv", numbered_rows(30, start=120))
    options = {"test_path": str(file), "n_test": n_test, "group": "doc", "balance": False}
    task = local_config(path, **options)
    cfg = replace(config(tmp_path / "out", losses=["xent", "gce"], seeds=[*SEEDS]), task=task)
    results = run(cfg)
    assert calls
    tests = [load_data(task, seed).test for seed in SEEDS]
    names = sorted({group for test in tests for group in test.groups})
    assert (len(names) == len(set(tests[0].groups))) == (n_test == 30)
    for at, (seed, test) in enumerate(zip(SEEDS, tests, strict=True)):
        expected = rights(results, seed, test)
        for right, groups in calls:
            assert {row.tobytes() for row in np.atleast_2d(right[0][at])} <= expected
            assert [names[number] for number in groups[0][at]] == list(test.groups)


def rights(results: dict[str, Any], seed: int, test: Examples) -> set[bytes]:
    """Whether each model of a seed is right on the test items, in their order."""
    gold = dict(zip(test.ids, test.labels.tolist(), strict=True))
    found = set()
    for name in (f"weak/{seed}", f"ceiling/{seed}", f"student/{seed}/xent", f"student/{seed}/gce"):
        folder = results["provenance"]["stages"][name]["folder"]
        table = pq.read_table(Path(results["provenance"]["store"], folder, TEST))
        chosen = np.array(table["probs"].to_pylist()).argmax(1)
        own = dict(zip(table["id"].to_pylist(), chosen.tolist(), strict=True))
        found.add(np.array([own[i] == gold[i] for i in test.ids]).tobytes())
    return found
