"""Rows of two latents, one core and one shortcut, that differ in predictivity and availability.

    z | y ~ N((2 y - 1) m, 1),  P(sign z = y) = predictivity;    x = sum_i a_i u_i g_i(z_i)

a_i is the amplification of a latent, and g_i nests it in random tanh layers: both make it more or
less available. Source: Hermann et al. 2024 (arXiv 2310.16228), Sec. 2.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import norm


@dataclass(frozen=True, eq=False)
class LatentRows:
    """N rows: features (N, D), classes, and whether the shortcut agrees with the class (N,)."""

    x: np.ndarray
    gold: np.ndarray
    core: np.ndarray
    shortcut: np.ndarray

    @property
    def agrees(self) -> np.ndarray:
        return (self.shortcut > 0) == (self.gold == 1)


def draw(
    n: int,
    seed: int,
    *,
    predictivity: tuple[float, float] = (0.95, 0.8),
    amplification: tuple[float, float] = (1.0, 6.0),
    nesting: tuple[int, int] = (1, 0),
    dims: int = 24,
) -> LatentRows:
    """Draw rows; pairs are of (core, shortcut). The maps are the same for every seed."""
    rng, maps = np.random.default_rng(seed), np.random.default_rng(7)
    gold = rng.integers(0, 2, n)
    sign = 2 * gold - 1
    core, shortcut = (rng.normal(size=n) + sign * norm.ppf(p) for p in predictivity)
    basis, _ = np.linalg.qr(maps.normal(size=(dims, dims)))
    parts = []
    for i, (z, layers) in enumerate(zip((core, shortcut), nesting, strict=True)):
        h = z[:, None]
        for _ in range(layers):
            h = np.tanh(h @ maps.normal(size=(h.shape[1], 4)) + maps.normal(size=4))
        own = basis[:, 5 * i : 5 * i + h.shape[1]]
        parts.append(amplification[i] * (h - h.mean(0)) @ own.T)
    x = sum(parts) + 0.3 * rng.normal(size=(n, dims))
    return LatentRows(np.asarray(x, dtype=np.float32), gold, core, shortcut)
