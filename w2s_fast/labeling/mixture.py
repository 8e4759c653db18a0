r"""Fit mixtures of K components by EM: diagonal Gaussians, and independent Bernoulli features.

    r_ik ∝ w_k f(x_i | theta_k)                     E step, normalized in log space
    w_k = mean_i r_ik,  theta_k = weighted moments  M step

EM starts from k-means++ centers (Arthur and Vassilvitskii 2007); of several starts the one with the
largest likelihood is kept. Source: Dempster, Laird and Rubin 1977.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

_ITERATIONS = 200
_TOLERANCE = 1e-6  # gain in mean log-likelihood of a feature
_FLOOR = 1e-3  # of a variance, as a share of the feature's variance
_PSEUDO_ROWS = 1.0  # of each value of a Bernoulli feature


def gaussian_mixture(x: Tensor, n_components: int, seed: int, starts: int = 3) -> Tensor:
    """Return responsibilities (n, K) float64 of rows (n, D) float64; constant features are free."""
    varying = x[:, (x != x[0]).any(0)]
    if not varying.shape[1]:
        return x.new_full((len(x), n_components), 1 / n_components)
    z = (varying - varying.mean(0)) / varying.std(0, correction=0)

    squares = z.square()

    def log_density(r: Tensor) -> Tensor:
        weight = r.sum(0).clamp(min=1e-12)[:, None]
        mean = r.T @ z / weight
        variance = (r.T @ squares / weight - mean.square()).clamp(min=_FLOOR)
        # sum_d (z - m)^2 / v from products of matrices
        inverse = 1 / variance
        square = squares @ inverse.T - 2 * z @ (mean * inverse).T + (mean.square() * inverse).sum(1)
        return -0.5 * (square + variance.log().sum(1) + z.shape[1] * math.log(2 * math.pi))

    return _best_of(z, n_components, seed, starts, log_density)


def bernoulli_mixture(x: Tensor, n_components: int, seed: int, starts: int = 3) -> Tensor:
    """Return responsibilities (n, K) float64 of rows (n, D) of numbers from 0 to 1."""

    def log_density(r: Tensor) -> Tensor:
        weight = r.sum(0)[:, None]
        share = (r.T @ x + _PSEUDO_ROWS) / (weight + 2 * _PSEUDO_ROWS)
        return x @ share.log().T + (1 - x) @ (1 - share).log().T

    return _best_of(x, n_components, seed, starts, log_density)


def _best_of(
    x: Tensor, k: int, seed: int, starts: int, log_density: Callable[[Tensor], Tensor]
) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    gain = _TOLERANCE * x.shape[1]
    fits = [_em(_nearest_center(x, k, generator), log_density, gain) for _ in range(starts)]
    return max(fits, key=lambda fit: fit[0])[1]


def _em(
    r: Tensor, log_density: Callable[[Tensor], Tensor], least_gain: float
) -> tuple[float, Tensor]:
    """Return the mean log-likelihood and the responsibilities from a first assignment."""
    previous = -math.inf
    for _ in range(_ITERATIONS):
        joint = r.mean(0).clamp(min=1e-12).log() + log_density(r)
        total = joint.logsumexp(1, keepdim=True)
        r = (joint - total).exp()
        likelihood = float(total.mean())
        if likelihood - previous < least_gain:
            break
        previous = likelihood
    return likelihood, r


def _nearest_center(x: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """Return one-hot assignments (n, K) to centers drawn by k-means++."""
    first = int(torch.randint(len(x), (1,), generator=generator))
    centers = [x[first]]
    for _ in range(k - 1):
        distance = torch.cdist(x, torch.stack(centers)).square().amin(1)
        if not bool((distance > 0).any()):
            distance = torch.ones_like(distance)  # all rows are equal to a center
        centers.append(x[int(torch.multinomial(distance, 1, generator=generator))])
    nearest = torch.cdist(x, torch.stack(centers)).argmin(1)
    return torch.nn.functional.one_hot(nearest, k).double()
