"""Seeds whose test items are the same count as such, although each draws them in its own order."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.task_data import local_config, numbered_rows, write_rows
from helpers.toy_run import config

from w2s_fast import metrics
from w2s_fast.pipeline import run


@pytest.mark.parametrize("n_test", [30, 20])
def test_a_test_file_that_every_seed_takes_whole(
    n_test: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a part of the file each seed has its own."""
    shared: list[bool] = []
    runs_of = metrics.runs_of

    def seen(*args: Any) -> metrics.Runs:
        runs = runs_of(*args)
        shared.append(runs.common is not None)
        return runs

    monkeypatch.setattr(metrics, "runs_of", seen)
    path = write_rows(tmp_path / "train.csv", numbered_rows(120))
    test = write_rows(tmp_path / "test.csv", numbered_rows(30, start=120))
    task = local_config(path, test_path=str(test), n_test=n_test)
    run(replace(config(tmp_path / "out", losses=["xent", "gce"], seeds=[0, 1, 2]), task=task))
    assert shared and all(shared) == (n_test == 30) == any(shared)
