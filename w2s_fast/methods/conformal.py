r"""Conformal prediction of weak labels: rows on which they are the only plausible class.

The rows are halved. A student trained on one half predicts the other, whose labels it never saw.
There, with s_j = 1 - P(weak class of row j),

    p_i(y)  = (1 + #{j != i : s_j >= 1 - P_i(y)}) / n,     the other rows j of the same half
    set_i   = {y : p_i(y) > alpha}

A row stays if its set is its weak class and nothing else. Whatever the student is like, a weak
class is in its set with probability at least 1 - alpha (rows that are exchangeable), so alpha
bounds the share of rows lost because their label is surprising; rows whose set is larger are lost
because the student cannot tell.

Sources: Vovk, Gammerman & Shafer 2005; split conformal, Lei et al. 2018 (arXiv 1604.04173). Here
calibration leaves one row out, so that a half calibrates itself.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from w2s_fast.errors import W2SError
from w2s_fast.methods._base import Method, Targets
from w2s_fast.methods._plan import Node, Plan


@dataclass(frozen=True, kw_only=True)
class Conformal(Method):
    """Keep rows with a conformal set of the weak class alone, or weight all by plausibility.

    Attributes:
        alpha: probability that a weak class is not in its set, in (0, 0.5].
        weigh: keep every row, its weight multiplied by p_i(weak class).
    """

    alpha: float = 0.1
    weigh: bool = False

    def __post_init__(self) -> None:
        self._check("alpha", 1e-6, 0.5)

    def labels(self, plan: Plan, labels: Node) -> Node:
        """See ``Method.labels``."""
        first = plan.student(plan.apply(self.first_half, weak=labels))
        second = plan.student(plan.apply(self.second_half, weak=labels))
        return plan.apply(
            self.plausible, weak=labels, first=plan.labels(first), second=plan.labels(second)
        )

    def first_half(self, weak: Targets, seed: int) -> Targets:
        """The labels of a random half of the rows that count."""
        return weak.keep(_half(weak, seed))

    def second_half(self, weak: Targets, seed: int) -> Targets:
        """The labels of the other rows."""
        return weak.keep(~_half(weak, seed))

    def plausible(self, weak: Targets, first: Targets, second: Targets, seed: int) -> Targets:
        """The labels that stay, from predictions of the students of both halves.

        Raises:
            W2SError: if no p can be as small as ``alpha``, or no row stays.
        """
        half, y = _half(weak, seed), weak.probs.argmax(1)
        p = np.ones(weak.probs.shape)
        for rows, student in ((half, second), (weak.kept & ~half, first)):
            if rows.sum() * self.alpha < 1:
                raise W2SError(
                    f"Conformal: alpha is {self.alpha}, half of the rows are {rows.sum()}; "
                    "expected at least 1 / alpha rows, raise alpha or give the method more rows"
                )
            p[rows] = p_values(student.probs[rows], y[rows])
        own = np.take_along_axis(p, y[:, None], 1)[:, 0]
        if self.weigh:
            weight = np.where(weak.kept, own if weak.weight is None else own * weak.weight, 0.0)
            return replace(weak, weight=weight.astype(np.float32))
        return weak.keep((own > self.alpha) & ((p > self.alpha).sum(1) == 1))


def p_values(probs: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """(n, C) float64 p-values of every class of every row, calibrated on the other rows.

    Args:
        probs: (n, C) predictions of a model that saw none of these rows.
        classes: (n,) the labels it is calibrated to.
    """
    n = len(probs)
    scores = 1 - probs
    own = np.take_along_axis(scores, classes[:, None], 1)
    at_least = n - np.searchsorted(np.sort(own[:, 0]), scores, side="left")
    return (1 + at_least - (own >= scores)) / n


def _half(weak: Targets, seed: int) -> np.ndarray:
    rows = weak.kept.nonzero()[0]
    half = np.zeros(len(weak.probs), dtype=bool)
    half[np.random.default_rng(seed).permutation(rows)[: len(rows) // 2]] = True
    return half
