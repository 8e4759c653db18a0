r"""Mixup: rows of a step are mixed in pairs, their labels alike.

    h~_i = lambda_i h_i + (1 - lambda_i) h_j,   q~_i = lambda_i q_i + (1 - lambda_i) q_j
    lambda_i ~ Beta(alpha, alpha)

h are the inputs of the head, as in manifold mixup at its last layer: texts have no inputs of their
own to mix. A head is linear and the two shares sum to 1, so mixing its inputs is mixing its
outputs, logits z~_i = lambda_i z_i + (1 - lambda_i) z_j, which needs no other model.

Rows 2k and 2k + 1 of an optimizer step are partners, and the order of rows is a permutation of the
seed. Pairs stay together in every micro-batch and on every process, so the mixture depends on
neither. Row weights w mix to w~_i = lambda_i w_i + (1 - lambda_i) w_j, and labels in proportion to
lambda_i w_i and (1 - lambda_i) w_j: the loss is then the mixture of the losses with both labels. A
row that is not used, or whose partner is not, stays as it is.

Sources: Zhang et al. 2018, "mixup" (arXiv 1710.09412); Verma et al. 2019, "Manifold mixup" (arXiv
1806.05236); Zhang et al. 2023 (BANG, arXiv 2309.17230), mixup and label smoothing before an
interpolation of weights.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.losses._base import IGNORE
from w2s_fast.training.completion_pairs import CompletionPairs
from w2s_fast.training.completions import Completions
from w2s_fast.training.data import RowData, derived_seed
from w2s_fast.training.step_targets import StepTargets

_MIXUP = 1  # key of its random numbers, beside those of other uses of the seed


def check_mixed(data: RowData, gold: np.ndarray | None, targets: StepTargets | None) -> None:
    """Check that the rows of a training can be mixed.

    Raises:
        W2SError: the labels are texts, the loss reads true classes, or targets are made in steps.
    """
    if isinstance(data, Completions | CompletionPairs):
        raise W2SError(
            f"mixup mixes rows with class probabilities, and the data are {type(data).__name__}, "
            "whose labels are texts; expected rows of classes: set mixup=0"
        )
    if gold is not None:
        raise W2SError(
            "mixup has no classes for a loss against true labels (gold); expected one of the two: "
            "set mixup=0"
        )
    if targets is not None:
        raise W2SError(
            f"mixup mixes weak labels, and step_targets are {targets}, made of predictions of the "
            "rows as they are; expected one of the two: set mixup=0"
        )


class MixedRows(NamedTuple):
    """Rows of a step, or of one of its micro-batches, on all processes.

    Attributes:
        rows: (n,) int64 row numbers. The rows r, r + size, r + 2 size, ... of process r have
            partners side by side.
        weak: (n, C) labels, mixed.
        weight: (n,) float32 row weights, mixed, or None.
        share: (n,) float32, lambda of each row; 1: it is not mixed.
    """

    rows: np.ndarray
    weak: Tensor
    weight: Tensor | None
    share: Tensor

    def take(self, part: slice | np.ndarray) -> MixedRows:
        """Select rows."""
        weight = None if self.weight is None else self.weight[part]
        return MixedRows(self.rows[part], self.weak[part], weight, self.share[part])


def soft_targets(
    labels: Tensor, weight: Tensor | None, n_classes: int
) -> tuple[Tensor, Tensor | None]:
    """Return labels that can be mixed, (N, C) floating point, and their weights (N,) or None.

    Hard labels (N,) become one-hot rows; a label of -100 becomes weight 0.
    """
    if labels.dim() == 2:
        return labels, weight
    unused = labels == IGNORE
    one_hot = torch.nn.functional.one_hot(labels.masked_fill(unused, 0), n_classes).float()
    if not unused.any():
        return one_hot, weight
    weight = one_hot.new_ones(len(labels)) if weight is None else weight
    return one_hot, weight.masked_fill(unused, 0.0)


def draw_shares(n: int, alpha: float, seed: int, step: int) -> Tensor:
    """Return lambda (n,) float32 of the rows of a step, a function of the arguments."""
    generator = np.random.default_rng(derived_seed(seed, step, 0, _MIXUP))
    return torch.from_numpy(generator.beta(alpha, alpha, n).astype(np.float32))


def mix_rows(
    rows: np.ndarray, weak: Tensor, weight: Tensor | None, share: Tensor, size: int
) -> MixedRows:
    """Mix the labels of a step, and arrange its rows for ``size`` processes in whole pairs.

    Args:
        rows: (n,) row numbers; 2k and 2k + 1 are partners.
        weak: (n, C) their labels, see ``soft_targets``.
        weight: (n,) their weights, or None.
        share: (n,) of ``draw_shares``.
        size: number of processes.

    Returns:
        The rows, filled to a multiple of 2 ``size`` with rows of weight 0.
    """
    if padding := -len(rows) % (2 * size):
        weight = share.new_ones(len(rows)) if weight is None else weight
        weight = torch.cat([weight, weight.new_zeros(padding)])
        rows = np.concatenate([rows, np.repeat(rows[:1], padding)])
        weak, share = (torch.cat([x, x[:1].expand(padding, *x.shape[1:])]) for x in (weak, share))
    if weight is not None:
        used = weight > 0
        share = torch.where(used & partners(used), share, 1.0)
    order = np.arange(len(rows)).reshape(-1, size, 2).transpose(0, 2, 1).reshape(-1)
    return MixedRows(rows, *mixed_targets(weak, weight, share), share).take(order)


def partners(x: Tensor) -> Tensor:
    """Return x (n, ...) with rows 2k and 2k + 1 exchanged; n is even."""
    return x.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)


def mixed(x: Tensor, share: Tensor) -> Tensor:
    """Return rows x (n, C), partners side by side, mixed by ``share`` (n,) in their dtype."""
    own = share.to(x)[:, None]
    return own * x + (1 - own) * partners(x)


def mixed_targets(
    labels: Tensor, weight: Tensor | None, share: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Return labels (n, C), partners side by side, and weights (n,), both mixed."""
    if weight is None:
        return mixed(labels, share), None
    total = mixed(weight[:, None], share)[:, 0]
    own = torch.where(total > 0, share.to(weight) * weight / total.clamp_min(1e-30), 1.0)
    return mixed(labels, own), total
