r"""Conformal prediction of weak labels: keep rows whose weak class is the only plausible one.

The rows are split in half. A student trained on one half predicts the other, without its labels.
There, with s_j = 1 - P(weak class of row j),

    p_i(y)  = (1 + #{j != i : s_j >= 1 - P_i(y)}) / n,     the other rows j of the same half
    set_i   = {y : p_i(y) > alpha}

A row is kept if its set is exactly its weak class. For any student, a weak class is in its set with
probability at least 1 - alpha (exchangeable rows), so alpha bounds the share of rows dropped
because their label is surprising; rows with larger sets are dropped because the student cannot
decide.

Sources: Vovk, Gammerman & Shafer 2005; split conformal, Lei et al. 2018 (arXiv 1604.04173). Here
calibration is leave-one-out, so that a half calibrates itself.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from w2s_fast.errors import W2SError
from w2s_fast.methods._base import Method, Targets, number
from w2s_fast.methods._node import Node
from w2s_fast.methods._plan import Plan


@dataclass(frozen=True, kw_only=True)
class Conformal(Method):
    """Keep rows whose conformal set is the weak class alone, or weight rows by plausibility.

    Attributes:
        alpha: probability that a weak class is not in its set, in (0, 0.5].
        weigh: keep every row and multiply its weight by p_i(weak class).
    """

    alpha: float = number(0.1, 1e-6, 0.5)
    weigh: bool = False

    def check_task(self, n_classes: int, n_rows: int) -> None:
        """See ``Method``: a p-value is a share of half of the rows."""
        self._check_half(n_rows // 2)

    def _check_half(self, n_rows: int) -> None:
        if n_rows * self.alpha < 1:
            raise W2SError(
                f"Conformal: alpha is {self.alpha}, half of the rows are {n_rows}; expected at "
                "least 1 / alpha rows, raise alpha or give the method more rows"
            )

    def labels(self, plan: Plan, labels: Node) -> Node:
        first = plan.student(plan.apply(self.first_half, weak=labels))
        second = plan.student(plan.apply(self.second_half, weak=labels))
        return plan.apply(
            self.plausible, weak=labels, first=plan.labels(first), second=plan.labels(second)
        )

    def first_half(self, weak: Targets, seed: int) -> Targets:
        """Return the labels of a random half of the used rows."""
        return weak.keep(_half(weak, seed))

    def second_half(self, weak: Targets, seed: int) -> Targets:
        """Return the labels of the other half."""
        return weak.keep(~_half(weak, seed))

    def plausible(self, weak: Targets, first: Targets, second: Targets, seed: int) -> Targets:
        """Return the plausible labels, from the predictions of the students of both halves.

        Raises:
            W2SError: No p can be as small as ``alpha``, or no row is kept.
        """
        half, y = _half(weak, seed), weak.probs.argmax(1)
        p = np.ones(weak.probs.shape)
        for rows, student in ((half, second), (weak.used & ~half, first)):
            self._check_half(int(rows.sum()))
            p[rows] = p_values(student.probs[rows], y[rows])
        own = np.take_along_axis(p, y[:, None], 1)[:, 0]
        if self.weigh:
            weight = np.where(weak.used, own if weak.weight is None else own * weak.weight, 0.0)
            return replace(weak, weight=weight.astype(np.float32))
        return weak.keep((own > self.alpha) & ((p > self.alpha).sum(1) == 1))


def p_values(probs: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Return p-values (n, C) float64 of every class of every row, calibrated on the other rows.

    Args:
        probs: (n, C) predictions of a model that was not trained on these rows.
        classes: (n,) labels to calibrate to.
    """
    n = len(probs)
    scores = 1 - probs
    own = np.take_along_axis(scores, classes[:, None], 1)
    at_least = n - np.searchsorted(np.sort(own[:, 0]), scores, side="left")
    return (1 + at_least - (own >= scores)) / n


def _half(weak: Targets, seed: int) -> np.ndarray:
    rows = weak.used.nonzero()[0]
    half = np.zeros(len(weak.probs), dtype=bool)
    half[np.random.default_rng(seed).permutation(rows)[: len(rows) // 2]] = True
    return half
