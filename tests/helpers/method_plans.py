"""Carry out a plan by hand: the functions of methods run, what would be trained is given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from w2s_fast.methods import Node, Targets, make_method


def evaluate(node: Node, given: Mapping[Node, Any], seed: int = 0) -> Any:
    """What a node gives, as the pipeline computes it: methods are built from their specs."""
    if node in given:
        return given[node]
    assert node.stage == "apply", f"nothing is given for {node}"
    settings = dict(node.settings)
    function = getattr(make_method(settings["method"]), settings["function"])
    return function(**{name: evaluate(n, given, seed) for name, n in node.needs}, seed=seed)


def two(*p1: float, weight: list[float] | None = None) -> Targets:
    """Labels of two classes from P(class 1)."""
    p = np.array(p1, dtype=np.float32)
    return Targets(
        np.stack([1 - p, p], 1), None if weight is None else np.array(weight, dtype=np.float32)
    )


def used_rows(targets: Targets) -> list[int]:
    """Rows that count."""
    return targets.used.nonzero()[0].tolist()
