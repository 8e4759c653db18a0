r"""Generate logistic regressions on random subsets of the features.

    min_{W, b}  mean_i CE(z_i W + b, y_i) + l2 |W|^2,       z = (x - mean) / scale

Each function sees the share ``share`` of the features. The scale is one number per function, so
that the rows have mean squared length 1. All functions of all folds are one convex problem, solved
by LBFGS on the rows' coordinates in the space that they span: at most n numbers a row, whatever D.
Coordinate r is divided by sqrt(s_r^2 / 4n + 2 l2), s_r its singular value: the curvatures are then
about equal, which saves most steps.

Source: Snuba (Varma and Re 2018), which fits logistic regressions to small sets of features.
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

_STEPS = 200


@dataclass(frozen=True)
class _FittedLogistic(Candidates):
    """V regressions: features (V, P), mean (V, P), weights (V, P, K), bias (V, K)."""

    views: Tensor
    mean: Tensor
    weights: Tensor
    bias: Tensor

    def predict(self, x: Tensor, columns: Tensor | None = None) -> tuple[Tensor, Tensor]:
        n_views, _, n_classes = self.weights.shape
        at = torch.arange(n_views) if columns is None else columns
        logits = x.new_empty(len(x), len(at), n_classes)
        for j, v in enumerate(at.tolist()):
            rows = x[:, self.views[v]] - self.mean[v]
            logits[:, j] = rows @ self.weights[v] + self.bias[v]
        return classes_and_confidence(logits.softmax(-1))

    def describe(self, column: int, feature_names: Sequence[str] | None) -> str:
        return f"logistic {column}"


@dataclass(frozen=True, kw_only=True)
class Logistic(Generator):
    """Logistic regressions on random subsets of the features.

    Attributes:
        share: of the features that a function sees, in (0, 1].
        l2: penalty on weights of rows with mean squared length 1.
    """

    share: float = 0.5
    l2: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("share", self.share, 1e-9, 1.0)
        check_number("l2", self.l2, 1e-9)

    def fit_candidates(
        self, x: Tensor, labels: Tensor, n_classes: int, keep: Tensor, seed: int
    ) -> list[Candidates]:
        views = random_views(x.shape[1], self.max_functions, self.share, seed)
        rank = min(len(x), views.shape[1])
        mean, basis, rows = [], [], []
        for view in views:
            center, scale = scale_rows(x[:, view])
            left, spread, right = torch.linalg.svd((x[:, view] - center) / scale, False)
            mean.append(center)
            basis.append(right[:rank].T / scale)  # (P, R): from coordinates to weights of x
            rows.append(left[:, :rank] * spread[:rank])
        weights, bias = fit_many(torch.stack(rows), labels, n_classes, keep, self.l2)
        original = torch.stack(basis) @ weights  # (B, V, P, K)
        return [
            _FittedLogistic(views, torch.stack(mean), w, b)
            for w, b in zip(original, bias, strict=True)
        ]


def fit_many(
    rows: Tensor, labels: Tensor, n_classes: int, keep: Tensor, l2: float
) -> tuple[Tensor, Tensor]:
    """Fit a regression for every set of rows and view at once.

    Args:
        rows: (V, n, R) float64.
        labels: (n,) int64.
        n_classes: K.
        keep: (B, n) bool, the rows of each set.
        l2: penalty.

    Returns:
        Weights (B, V, R, K) and bias (B, V, K).
    """
    n_views, n, rank = rows.shape
    sets = len(keep)
    curvature = rows.square().sum(1) / (4 * n) + 2 * l2  # (V, R)
    step = curvature.rsqrt()
    rows = rows * step[:, None]
    flat = rows.new_zeros(sets, n_views, rank + 1, n_classes).requires_grad_()
    share = (keep.double() / keep.sum(1, keepdim=True))[:, None, :]  # (B, 1, n)
    optimizer = torch.optim.LBFGS(
        [flat],
        max_iter=_STEPS,
        tolerance_grad=1e-6,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        logits = torch.einsum("vnr,bvrk->bvnk", rows, flat[:, :, :-1]) + flat[:, :, -1:]
        right = logits.log_softmax(-1)[..., torch.arange(len(labels)), labels]
        loss = -(share * right).sum() + l2 * (flat[:, :, :-1] * step[..., None]).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    solved = flat.detach()
    return solved[:, :, :-1] * step[..., None], solved[:, :, -1]
