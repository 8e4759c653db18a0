"""Cross-entropy with the weak labels, the baseline of weak-to-strong training.

    L = -sum_i w_i sum_k q_ik log p_ik,        q_i the soft weak label, or onehot(argmax q_i)

Source: Burns et al. 2023 (arXiv 2312.09390), naive finetuning; ``xent_loss`` of
openai/weak-to-strong.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.losses._base import LossContext, check_labels, one_hot
from w2s_fast.losses._one_call import OneCallLoss
from w2s_fast.ops.checks import on_host
from w2s_fast.ops.transforms import values


@dataclass(frozen=True, kw_only=True)
class Xent(OneCallLoss):
    """Cross-entropy with soft weak labels, or with their hardened form.

    Attributes:
        hard: replace soft labels by their top class (the first of equal ones).
    """

    hard: bool = False

    def terms(
        self, logits: Tensor, weak: Tensor, ctx: LossContext
    ) -> tuple[Tensor, dict[str, Any]]:
        """See ``OneCallLoss.terms``; only the weights of ``ctx`` are used."""
        if self.hard:
            check_labels(weak)
        if self.hard and weak.is_floating_point():
            weak = _hardened(weak, tuple(logits.shape))
        return weak, {}


@dataclass(frozen=True, kw_only=True)
class HardXent(Xent):
    """``Xent`` with hardened labels by default."""

    hard: bool = True


def _hardened(weak: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return the top classes (n,) of soft labels; of rows with NaN no label, for a loss of NaN.

    On a device, where the host does not look for NaN, the label of such a row is C, which the
    kernels make NaN.
    """
    if tuple(weak.shape) != shape:
        raise W2SError(f"weak (soft labels) has shape {tuple(weak.shape)}; expected {shape}")
    top, label = weak.max(1)  # NaN is the largest
    unknown = top.isnan()
    if not on_host(weak):
        return torch.where(unknown, shape[1], label)
    if not torch.compiler.is_compiling() and not bool(values(unknown).any()):
        return label
    rows = one_hot(label, shape[1], weak.dtype)
    return torch.where(unknown.unsqueeze(1), float("nan"), rows)
