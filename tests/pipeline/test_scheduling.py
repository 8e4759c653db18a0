"""How often a run looks for its jobs in the store."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from helpers.toy_run import config

from w2s_fast.pipeline import experiment, run
from w2s_fast.pipeline.execute import WorkItem
from w2s_fast.store import Artifact, Store


def test_a_job_is_looked_for_twice_whatever_waits_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When what it needs is there, and before it is computed: time grows with jobs, not squared."""
    looked: Counter[str] = Counter()
    find = experiment.find

    def counting(store: Store, item: WorkItem) -> Artifact | None:
        looked[item.job.name] += 1
        return find(store, item)

    monkeypatch.setattr(experiment, "find", counting)
    losses = [f"gce:q=0.{i}" for i in range(1, 9)]
    results: dict[str, Any] = run(config(tmp_path / "out", losses=losses, seeds=[0, 1]))
    assert len(results["runs"]) == 16
    students = {name: n for name, n in looked.items() if "student" in name}
    assert len(students) >= 16 and max(looked.values()) <= 2, looked.most_common(3)
