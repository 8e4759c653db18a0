r"""The contrastive term of COSINE: rows of one pseudo-label draw together, others apart.

    R = mean over pairs i != j of confident rows of
            d_ij^2                     if both have the same pseudo-label
            max(0, margin - d_ij)^2    otherwise,      d_ij = |h_i - h_j|^2 / D

h is the input of the student's head. The pairs are those of the whole step, over all micro-batches
and processes: a first pass gathers h without gradients, and each row then learns its own part, with
the others as constants. A pair has two ends, so the gradient of a row is twice that of its part.

Source: Yu et al. 2021 (arXiv 2010.07835), equations 7 and 8. Their released code takes h from the
teacher, which has no gradient, so the term changes nothing there.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Pairs(NamedTuple):
    """The rows of a step that a micro-batch's rows are compared with.

    Attributes:
        features: (R, D) without gradient.
        classes: (R,) int64 pseudo-labels.
        used: (R,) bool, whether a row is confident.
        own_classes, own_used: (n,) of the rows of this micro-batch and process.
        margin: of the distance.
        scale: 0-d factor of the sum over pairs, in the sum of the step's row losses.
    """

    features: Tensor
    classes: Tensor
    used: Tensor
    own_classes: Tensor
    own_used: Tensor
    margin: float
    scale: Tensor

    def loss(self, own: Tensor) -> Tensor:
        """Return the 0-d part of own rows (n, D) in the term; its gradient is that of the whole."""
        part = self.scale * pair_sum(own.to(self.features), self)
        return 2 * part - part.detach()


def pair_sum(own: Tensor, pairs: Pairs) -> Tensor:
    """Return the 0-d sum over own confident rows (n, D) and all confident rows."""
    other = pairs.features
    square = own.square().sum(1)[:, None] + other.square().sum(1) - 2 * own @ other.T
    distance = square.clamp_min(0) / own.shape[1]
    same = pairs.own_classes[:, None] == pairs.classes
    # A row and itself are of one class at distance 0: their pair adds nothing.
    far = (pairs.margin - distance).clamp_min(0).square()
    used = pairs.own_used[:, None] & pairs.used
    return torch.where(used, torch.where(same, distance.square(), far), 0.0).sum()


def confident_pairs(used: Tensor) -> Tensor:
    """Return the 0-d number of ordered pairs of confident rows, at least 1."""
    n = used.sum(dtype=torch.float32)
    return (n * (n - 1)).clamp_min(1)
