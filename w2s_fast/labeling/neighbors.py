r"""Generate nearest-neighbor functions on random subsets of the features.

    p_c = (#{labeled neighbors of class c} + a / K) / (k + a)

The k labeled rows with the largest cosine to a row, after the mean of the labeled rows is
subtracted, on the share ``share`` of the features; a = 1 pseudo-row.

Source: Snuba (Varma and Re 2018), which has nearest neighbors among its kinds of functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from w2s_fast.label_models._options import check_number
from w2s_fast.labeling.abstention import classes_and_confidence
from w2s_fast.labeling.generator import Candidates, Generator
from w2s_fast.labeling.views import random_views, scale_rows

_PSEUDO_ROWS = 1.0


@dataclass(frozen=True)
class _FittedNeighbors(Candidates):
    """Labeled rows (n, D), their one-hot labels (n, K), and the features (V, P) of each view."""

    x: Tensor
    one_hot: Tensor
    views: Tensor
    k: int

    def predict(self, x: Tensor, columns: Tensor | None = None) -> tuple[Tensor, Tensor]:
        at = torch.arange(len(self.views)) if columns is None else columns
        k = min(self.k, len(self.x))
        n_classes = self.one_hot.shape[1]
        probs = x.new_empty(len(x), len(at), n_classes)
        for j, v in enumerate(at.tolist()):
            view = self.views[v]
            center, _ = scale_rows(self.x[:, view])
            cosine = _unit(x[:, view] - center) @ _unit(self.x[:, view] - center).T
            # Rounding must not decide between equal rows: ties go to the first labeled row.
            nearest = (
                (cosine * 1e9).round().sort(dim=1, descending=True, stable=True).indices[:, :k]
            )
            counts = self.one_hot[nearest].sum(1)
            probs[:, j] = (counts + _PSEUDO_ROWS / n_classes) / (k + _PSEUDO_ROWS)
        return classes_and_confidence(probs)

    def describe(self, column: int, feature_names: Sequence[str] | None) -> str:
        return f"{self.k} neighbors {column}"


@dataclass(frozen=True, kw_only=True)
class Neighbors(Generator):
    """Nearest labeled rows on random subsets of the features.

    Attributes:
        k: number of neighbors.
        share: of the features that a function sees, in (0, 1].
    """

    k: int = 5
    share: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("k", self.k, 1)
        check_number("share", self.share, 1e-9, 1.0)

    def fit_candidates(
        self, x: Tensor, labels: Tensor, n_classes: int, keep: Tensor, seed: int
    ) -> list[Candidates]:
        views = random_views(x.shape[1], self.max_functions, self.share, seed)
        one_hot = torch.nn.functional.one_hot(labels, n_classes).double()
        return [_FittedNeighbors(x[rows], one_hot[rows], views, self.k) for rows in keep]


def _unit(x: Tensor) -> Tensor:
    return torch.nn.functional.normalize(x, dim=1)
