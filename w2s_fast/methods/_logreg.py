r"""Logistic regression on soft labels, with out-of-fold predictions.

    min_{W, b}  mean_i CE(x_i W + b, q_i) + l2 |W|^2         (K > 2)
    min_{w, b}  mean_i BCE(x_i w + b, q_i1) + l2 |w|^2       (K = 2; W = [-w/2, w/2])

LBFGS with a strong-Wolfe line search. Source: the `logreg` probe of EleutherAI/w2s, which
predicts the rows that it was fitted to.
"""

from __future__ import annotations

import torch
from torch import Tensor

_STEPS = 500


def fit(x: Tensor, probs: Tensor, l2: float) -> tuple[Tensor, Tensor]:
    """Fit weights (D, K) and bias (K,) to features (N, D) and soft labels (N, K)."""
    classes = probs.shape[1]
    flat = x.new_zeros((x.shape[1] + 1, classes)).requires_grad_()
    # |[-w/2, w/2]|^2 is half of |w|^2.
    penalty = 2 * l2 if classes == 2 else l2
    optimizer = torch.optim.LBFGS(
        [flat],
        max_iter=_STEPS,
        tolerance_grad=1e-6,
        tolerance_change=1e-10,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        log_p = (x @ flat[:-1] + flat[-1]).log_softmax(1)
        loss = -(probs * log_p).sum(1).mean() + penalty * flat[:-1].square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    flat = flat.detach()
    return flat[:-1], flat[-1]


def out_of_fold(
    x: Tensor, probs: Tensor, pool: Tensor, *, l2: float, folds: int, seed: int
) -> Tensor:
    """Predict every row (N, K) by a fit on the rows of ``pool`` outside its fold.

    Args:
        x: (N, D) features; scaled by their mean and deviation over the pool.
        probs: (N, K) soft labels.
        pool: (M,) int64 rows that fits may use, M >= 2.
        l2: penalty on scaled features, see the module.
        folds: number of folds, at most M.
        seed: seed of the partition.
    """
    x = (x - x[pool].mean(0)) / x[pool].std(0, correction=0).clamp_min(1e-6)
    order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed))
    folds = min(folds, len(pool))
    # No fit sees rows outside the pool; they get a fold as well.
    fold = torch.arange(len(x)) % folds
    fold[pool[order]] = torch.arange(len(pool)) % folds
    out = torch.empty_like(probs)
    for f in range(folds):
        fitted = pool[fold[pool] != f]
        weights, bias = fit(x[fitted], probs[fitted], l2)
        out[fold == f] = (x[fold == f] @ weights + bias).softmax(1)
    return out
