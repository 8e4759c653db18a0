"""Seeds whose test items are the same count as such, although each draws them in its own order."""

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
def test_a_test_file_that_every_seed_takes_whole(
    n_test: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a part of the file each seed has its own; results are compared in the order of ids."""
    calls: list[tuple[Any, Any]] = []
    shared: list[bool] = []
    runs_of = metrics.runs_of

    def seen(right: Any, groups: Any) -> metrics.Runs:
        runs = runs_of(right, groups)
        calls.append((right, groups))
        shared.append(runs.common is not None)
        return runs

    monkeypatch.setattr(metrics, "runs_of", seen)
    path = write_rows(tmp_path / "train.csv", numbered_rows(120))
    file = write_rows(tmp_path / "test.csv", numbered_rows(30, start=120))
    options = {"test_path": str(file), "n_test": n_test, "group": "doc", "balance": False}
    task = local_config(path, **options)
    cfg = replace(config(tmp_path / "out", losses=["xent", "gce"], seeds=[*SEEDS]), task=task)
    results = run(cfg)
    assert shared and all(shared) == (n_test == 30) == any(shared)
    for at, seed in enumerate(SEEDS):
        test = load_data(task, seed).test
        rows, expected = rights(results, seed, test)
        names = np.array(test.groups)[rows]
        for right, groups in calls:
            assert {row.tobytes() for row in np.atleast_2d(right[0][at])} <= expected
            assert (groups[0][at] == np.unique(names, return_inverse=True)[1]).all()


def rights(results: dict[str, Any], seed: int, test: Examples) -> tuple[np.ndarray, set[bytes]]:
    """Rows of the test items by id, and in this order whether each model of a seed is right."""
    rows = np.argsort(np.array(test.ids))
    gold = dict(zip(test.ids, test.labels.tolist(), strict=True))
    found = set()
    for name in (f"weak/{seed}", f"ceiling/{seed}", f"student/{seed}/xent", f"student/{seed}/gce"):
        folder = results["provenance"]["stages"][name]["folder"]
        table = pq.read_table(Path(results["provenance"]["store"], folder, TEST))
        chosen = np.array(table["probs"].to_pylist()).argmax(1)
        own = dict(zip(table["id"].to_pylist(), chosen.tolist(), strict=True))
        found.add(np.array([own[i] == gold[i] for i in sorted(gold)]).tobytes())
    return rows, found
