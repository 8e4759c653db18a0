"""What a row of the results says about one training, and about the same one by this package."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

# Steps that are not timed: buffers and caches are allocated in them.
WARM_UP_STEPS = 5


def row(
    system: str,
    loss: str,
    seed: int,
    result: Mapping[str, Any],
    ours: Mapping[str, Any],
    test: Path,
) -> dict[str, Any]:
    """Return the measures of a training.

    Args:
        system: Name of the code base.
        loss: Its name there.
        seed: Of data, weak labels and order.
        result: What ``workers.run_job`` returned.
        ours: The same of this package, with the loss that computes the same.
        test: File of the test rows.

    Returns:
        ``accuracy``; ``step_ms``, the median over the steps after the first 5, and ``train_s``,
        from the first step's end to the last one's, each also in CPU time over all threads;
        ``process_s``; ``load`` before it; ``peak_mib`` and, of it, ``added_mib`` since the first
        forward pass; ``losses`` of every step. Beside ``ours``: ``agreement``, the fraction of test
        rows with the same class; ``loss_gap`` and ``probability_gap``, the largest differences of
        a step's loss and of a test row's probability.
    """
    labels = [json.loads(line)["hard_label"] for line in test.read_text().splitlines()]
    p, q = (np.array(r["probabilities"]) for r in (result, ours))
    curve, other = (np.array(r["losses"]) for r in (result, ours))
    ends = np.array(result["step_ends_s"])  # (steps, 2): wall time, CPU time
    step_ms, step_cpu_ms = np.median(np.diff(ends, axis=0)[WARM_UP_STEPS - 1 :], axis=0) * 1000
    train_s, train_cpu_s = ends[-1] - ends[0]
    return {
        "system": system, "loss": loss, "seed": seed,
        "accuracy": float(((p > 0.5) == np.array(labels, dtype=bool)).mean()),
        "step_ms": round(float(step_ms), 3),
        "step_cpu_ms": round(float(step_cpu_ms), 3),
        "train_s": round(float(train_s), 3),
        "train_cpu_s": round(float(train_cpu_s), 3),
        "process_s": round(float(result["process_s"]), 2),
        "peak_mib": round(float(result["rss_peak_mib"]), 1),
        "added_mib": round(float(result["rss_peak_mib"] - result["rss_start_mib"]), 1),
        "load": round(float(result["load"]), 2),
        "agreement": float(((p > 0.5) == (q > 0.5)).mean()),
        "loss_gap": float(np.abs(curve - other).max()),
        "probability_gap": float(np.abs(p - q).max()),
        "losses": [float(f"{x:.7g}") for x in curve],
    }  # fmt: skip
