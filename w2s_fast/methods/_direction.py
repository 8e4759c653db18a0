r"""Truth direction of contrast pairs: a statement and its negation exclude each other along it.

    phi_c   hidden states of "text + word of class c", every feature with mean 0 and deviation 1
    p_c(x) = sigma(u . phi_c(x) + b),   |u| = 1
    CCS:  min_{u, b}  mean_x [ (p_1 + p_0 - 1)^2 + min(p_0, p_1)^2 ]
    CRC:  u the first principal component of phi_1 - phi_0,   b = 0
    P(class 1) = (p_1 + 1 - p_0) / 2

Normalising each class separately removes the word itself. Without |u| = 1 the loss goes to 0 for
any separable labelling, by growing u.

Source: Burns et al. 2022 (arXiv 2212.03827), §2.2, whose u is free under weight decay; CRC: ibid.,
appendix ("CRC-TPC").
"""

from __future__ import annotations

import torch
from torch import Tensor

_STEPS = 200


def normalised(x: Tensor, rows: Tensor) -> Tensor:
    """Return (N, D) with mean 0 and deviation 1 over ``rows`` (M,); constant features become 0."""
    mean, std = x[rows].mean(0), x[rows].std(0, correction=0)
    return (x - mean) / torch.where(std > 1e-6 * x[rows].abs().amax(0), std, torch.inf)


def consistent(first: Tensor, second: Tensor, restarts: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return u (D,) and b () of CCS with the lowest loss over several starts.

    All starts are optimised together: their losses share no parameter, and a product with R
    columns costs little more than with one.

    Args:
        first, second: (N, D) normalised features of class 0 and class 1.
        restarts: R, number of random starts.
        seed: seed of the starts.
    """
    generator = torch.Generator().manual_seed(seed)
    v = torch.randn(first.shape[1], restarts, generator=generator).to(first.dtype)
    v = (v / v.norm(dim=0)).requires_grad_()
    b = first.new_zeros(restarts).requires_grad_()
    optimizer = torch.optim.LBFGS([v, b], max_iter=_STEPS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = ccs_loss(first, second, v / v.norm(dim=0), b).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    u, b = (v / v.norm(dim=0)).detach(), b.detach()
    best = int(ccs_loss(first, second, u, b).argmin())
    return u[:, best], b[best]


def ccs_loss(first: Tensor, second: Tensor, u: Tensor, b: Tensor) -> Tensor:
    """Return (R,), the loss of directions u (D, R) and b (R,), mean over rows."""
    p0, p1 = (first @ u + b).sigmoid(), (second @ u + b).sigmoid()
    return ((p0 + p1 - 1).square() + torch.minimum(p0, p1).square()).mean(0)


def principal(difference: Tensor, seed: int) -> Tensor:
    """Return u of CRC, of either sign: the first right singular vector (D,) of (N, D)."""
    import numpy as np
    from scipy.sparse.linalg import svds

    array = difference.double().numpy()
    if min(array.shape) < 2:
        return torch.from_numpy(np.linalg.svd(array)[2][0]).to(difference.dtype)
    start = np.random.default_rng(seed).normal(size=min(array.shape))
    _, _, rows = svds(array, k=1, v0=start)
    return torch.from_numpy(rows[0].copy()).to(difference.dtype)


def truth(first: Tensor, second: Tensor, u: Tensor, b: Tensor) -> Tensor:
    """Return P(class 1) (N,)."""
    return ((second @ u + b).sigmoid() + 1 - (first @ u + b).sigmoid()) / 2
