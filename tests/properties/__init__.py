"""Properties of the ops over random inputs; ``python -m properties`` runs many of them.

``PROPERTIES`` names each one, ``tests/ops/test_properties.py`` runs a few cases of each. Where a
case fails, ``repr(case)`` makes it again: ``PROPERTIES["values"].check("cpp", Rows(n=3, v=2))``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hypothesis.strategies import SearchStrategy

from properties import cases, dense, heads, row_statistics, scaled, scores, special, topk


@dataclass(frozen=True)
class Property:
    """A check of a backend and a case, and where cases come from.

    Attributes:
        check: raises where the property does not hold.
        cases: given whether cases must be small.
        share: part of a long run, relative to the others.
        backends: those it speaks of.
    """

    check: Callable[[str, Any], None]
    cases: Callable[[bool], SearchStrategy[Any]]
    share: float = 1.0
    backends: tuple[str, ...] = ("cpp", "ref", "cuda", "triton")


PROPERTIES: dict[str, Property] = {
    "values": Property(dense.values, cases.rows, 4.0),
    **{name: Property(check, cases.rows) for name, check in dense.INVARIANCES.items()},
    "public names": Property(dense.public, cases.rows),
    "statistics": Property(dense.stats, cases.rows),
    "poisoned rows": Property(special.poisoned, cases.rows),
    "two classes": Property(special.two_classes, special.margins),
    "duplicate classes": Property(dense.duplicates, cases.rows, 0.5),
    "scaled loss": Property(scaled.dense, scaled.losses, 2.0),
    "scaled loss of a head": Property(scaled.linear, scaled.head_losses),
    "head": Property(heads.linear, heads.heads, 3.0),
    "head over ranks": Property(heads.vocab, heads.heads, 1.0, ("cpp", "ref")),
    "top-k classes": Property(topk.topk, topk.topk_cases, 2.0),
    "top-k classes of a head": Property(topk.linear_topk, topk.head_cases),
    "tokens of a head": Property(topk.tokens, topk.head_cases),
    "row statistics": Property(row_statistics.statistics, topk.topk_cases),
    "row statistics of a head": Property(row_statistics.of_a_head, topk.head_cases, 0.5),
    "order statistics": Property(scores.order, scores.scores),
    "balanced labels": Property(scores.balanced, scores.balances, 1.0, ("cpp", "ref")),
}
