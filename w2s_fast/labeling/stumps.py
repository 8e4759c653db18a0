r"""Generate decision stumps: one feature, one threshold, a class for each side.

    t_d     = argmin over cuts of sum over sides s of n_s (1 - sum_c p_sc^2)          (Gini)
    p_sc    = (n_sc + a / K) / (n_s + a)

n_sc are labeled rows of class c on side s of the cut, a pseudo-rows of all classes together. A side
whose confidence is below the function's threshold abstains, so a stump of a word count is often a
keyword rule.

Source: decision trees of depth 1 as in Snuba (Varma and Re 2018); pseudo-rows: Laplace.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from w2s_fast.label_models._options import check_number
from w2s_fast.labeling.abstention import classes_and_confidence
from w2s_fast.labeling.generator import Candidates, Generator

_COUNTS = 1 << 24  # numbers in memory at a time


@dataclass(frozen=True)
class _FittedStumps(Candidates):
    """A stump a feature: threshold (D,); class and confidence (2, D) up to it and above it."""

    threshold: Tensor
    classes: Tensor
    confidence: Tensor

    def predict(self, x: Tensor, columns: Tensor | None = None) -> tuple[Tensor, Tensor]:
        at: slice | Tensor = slice(None) if columns is None else columns
        above = x[:, at] > self.threshold[at]
        classes, confidence = self.classes[:, at], self.confidence[:, at]
        return (
            torch.where(above, classes[1], classes[0]),
            torch.where(above, confidence[1], confidence[0]),
        )

    def describe(self, column: int, feature_names: Sequence[str] | None) -> str:
        name = f"feature {column}" if feature_names is None else feature_names[column]
        return f"{name} > {float(self.threshold[column]):.4g}"


@dataclass(frozen=True, kw_only=True)
class Stumps(Generator):
    """Decision stumps of single features.

    Attributes:
        pseudo_rows: a, rows of all classes together that every side has before it is counted.
    """

    max_functions: int = 20
    pseudo_rows: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("pseudo_rows", self.pseudo_rows, 0.0)

    def fit_candidates(
        self, x: Tensor, labels: Tensor, n_classes: int, keep: Tensor, seed: int
    ) -> list[Candidates]:
        one_hot = torch.nn.functional.one_hot(labels, n_classes).double()
        return [self._stumps(x[rows], one_hot[rows]) for rows in keep]

    def _stumps(self, x: Tensor, one_hot: Tensor) -> _FittedStumps:
        width = max(1, _COUNTS // one_hot.numel())
        parts = [self._block(columns, one_hot) for columns in x.split(width, dim=1)]
        threshold, classes, confidence = zip(*parts, strict=True)
        return _FittedStumps(torch.cat(threshold), torch.cat(classes, 1), torch.cat(confidence, 1))

    def _block(self, x: Tensor, one_hot: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Fit stumps to (n, D) features and (n, K) counts."""
        value, order = x.sort(0)
        below = one_hot[order].cumsum(0)[:-1]  # (n-1, D, K): the first i + 1 rows are below the cut
        above = one_hot.sum(0) - below
        purity = _purity(below) + _purity(above)
        purity[value[1:] <= value[:-1]] = -torch.inf  # no cut between equal values
        best = purity.argmax(0)
        column = torch.arange(x.shape[1])
        low, high = value[best, column], value[best + 1, column]
        middle = low + (high - low) / 2
        threshold = torch.where(middle < high, middle, low)  # neighbors in floating point
        counts = torch.stack([below[best, column], above[best, column]])  # (2, D, K)
        probs = (counts + self.pseudo_rows / one_hot.shape[1]) / (
            counts.sum(2, keepdim=True) + self.pseudo_rows
        )
        classes, confidence = classes_and_confidence(probs)
        constant = torch.isinf(purity[best, column])
        return threshold, classes, confidence.masked_fill(constant, -1.0)


def _purity(counts: Tensor) -> Tensor:
    """Return sum_c n_c^2 / n of counts (..., K); the cut with the most has the least Gini."""
    return counts.square().sum(-1) / counts.sum(-1)
