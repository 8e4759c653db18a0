r"""Fit a vector a to a matrix that is a a^T except on its masked entries, in closed form.

    a_i^2 = sum_{jk} w_j w_k M_ij M_ik M_jk C_ij C_ik C_jk / sum_{jk} w_j w_k M_ij M_ik M_jk C_jk^2

This is the least-squares solution of the triplet equations C_ij C_ik = a_i^2 C_jk over all allowed
triplets; its sums are matrix products. A few alternating steps lead from there to the least-squares
fit of C itself, which noisy entries of rare sources disturb less. The signs follow from C. M is 0
on pairs that are not independent given the class: a source with itself, and known dependencies. The
weight w_j is one over the number of these pairs, so that copies together count as one source.

Source: triplets of moments, Fu et al. 2020, "Fast and three-rious: speeding up weak supervision
with triplet methods" (arXiv 2002.11955), which takes the mean or median of single triplets.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from w2s_fast.errors import W2SError

_SIGN_STEPS = 3
_STEPS = 20  # after the closed form
_EPS = 1e-300  # denominators of sources without any covariance


def rank_one(matrix: Tensor, mask: Tensor, orientation: Tensor) -> Tensor:
    """Return a (U,) with a a^T close to ``matrix`` where ``mask`` is 1.

    Args:
        matrix: (U, U) symmetric.
        mask: (U, U) of 0 and 1, symmetric, 0 on the diagonal.
        orientation: (U,) of +1 and -1, the expected signs; the sum of a times it is positive.

    Raises:
        W2SError: Entries agree with the opposite of the expected signs: votes of different sources
            agree less often than chance.
    """
    c = matrix * mask
    agreement = float(orientation @ c @ orientation)
    if not agreement > 0:
        raise W2SError(
            f"votes of different sources have a summed covariance of {agreement:.3g}: they agree "
            "less often than chance; expected sources better than chance: check the class order"
        )
    # Sources that depend on each other share the weight of one.
    w = 1 / (1 - mask).sum(1)
    cubes = (((c * w) @ c) * (c * w)).sum(1)
    squares = (((mask * w) @ c.square()) * (mask * w)).sum(1)
    a = (cubes / squares.clamp(min=_EPS)).clamp(min=0).sqrt() * _signs(c, orientation)
    for _ in range(_STEPS):
        # Halfway: the plain step can alternate between two vectors.
        a = (a + (c @ (w * a)) / (mask @ (w * a.square())).clamp(min=_EPS)) / 2
    return a


def check_pairs(pairs: Sequence[tuple[int, int]], n_sources: int) -> None:
    """Raise unless pairs are two different sources each.

    Raises:
        W2SError: A pair is not.
    """
    for pair in pairs:
        if len(pair) != 2 or pair[0] == pair[1] or not all(0 <= i < n_sources for i in pair):
            raise W2SError(
                f"dependency {tuple(pair)}; expected two different sources of 0 to {n_sources - 1}"
            )


def pair_mask(dependencies: Sequence[tuple[int, int]], n_sources: int) -> Tensor:
    """Return (m, m): 1 for pairs that are independent given the class, 0 for others and itself.

    Raises:
        W2SError: A dependency is not a pair of two sources.
    """
    check_pairs(dependencies, n_sources)
    mask = 1 - torch.eye(n_sources, dtype=torch.float64)
    for i, j in dependencies:
        mask[i, j] = mask[j, i] = 0
    return mask


def _signs(c: Tensor, orientation: Tensor) -> Tensor:
    """Return the signs of a: power steps from the expected signs, kept in their half-space."""
    signs = orientation
    for _ in range(_SIGN_STEPS):
        signs = c @ signs
        signs = signs / signs.abs().amax().clamp(min=_EPS)
    signs = signs.sign()
    return signs if float(signs @ orientation) >= 0 else -signs
