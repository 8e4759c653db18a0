"""Curves of a training are thinned to means over equal parts of its steps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from w2s_fast.pipeline.stages.training_curves import MOST_POINTS, training_row


def test_a_long_training_is_thinned_and_keeps_its_last_step(tmp_path: Path) -> None:
    steps = 150
    log = {
        "steps": steps,
        "losses": list(np.linspace(3.0, 1.0, steps)),
        "threshold": [None] * 40 + [0.5] * (steps - 40),
        "coefficient": [],  # of a loss without one
    }
    (tmp_path / "log.json").write_text(json.dumps(log))
    row = training_row(7, "xent", tmp_path)
    assert (row["seed"], row["name"], row["steps"]) == (7, "xent", steps)
    assert len(row["at"]) == len(row["loss"]) == MOST_POINTS and row["at"][-1] == steps
    ends = [0, *row["at"]]
    parts = [log["losses"][a:b] for a, b in zip(ends, ends[1:], strict=False)]
    assert row["loss"] == pytest.approx([np.mean(part) for part in parts], rel=1e-3)
    assert set(map(len, parts)) == {2, 3}
    assert row["threshold"][0] is None and row["threshold"][-1] == 0.5
    assert "coefficient" not in row and "agreement" not in row  # as in logs of earlier versions
