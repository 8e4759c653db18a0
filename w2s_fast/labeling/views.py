"""Random views of features, so that functions of one kind differ: random subspaces.

Source: Ho 1998, "The random subspace method for constructing decision forests".
"""

from __future__ import annotations

import torch
from torch import Tensor


def random_views(n_features: int, n_views: int, share: float, seed: int) -> Tensor:
    """Return the features of each view, (V, P) int64, ascending; P is the share, at least one.

    Views are different sets of features; there are fewer than ``n_views`` if no more were found.
    """
    size = max(1, round(share * n_features))
    generator = torch.Generator().manual_seed(seed)
    views: dict[tuple[int, ...], None] = {}
    for _ in range(10 * n_views):
        view = torch.randperm(n_features, generator=generator)[:size].sort().values
        views.setdefault(tuple(view.tolist()))
        if len(views) == n_views or size == n_features:
            break
    return torch.tensor(list(views))


def scale_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean (D,) of rows and one scale (): centered rows have mean squared length 1."""
    mean = x.mean(0)
    length = (x - mean).square().sum(1).mean().sqrt()
    return mean, length.clamp(min=torch.finfo(x.dtype).tiny)
