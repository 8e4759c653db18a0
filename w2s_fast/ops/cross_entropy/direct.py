"""Losses of two classes and their gradients, without autograd: for loops over many small batches.

Of a batch of 128 rows the kernel takes microseconds, and its way through autograd and the checks of
the public functions ten times as long.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.ops.cross_entropy import algorithm
from w2s_fast.ops.dispatch import backend
from w2s_fast.ops.loss_call import LossResult, LossSpec
from w2s_fast.ops.targets import LossInputs


def serves_directly(logits: Tensor) -> bool:
    """Return whether ``sums_and_gradient`` takes logits like these, (..., V)."""
    return logits.shape[-1] == 2 and bool(backend("cross_entropy", logits).SUMS_TWO_CLASS)


def sums_and_gradient(
    logits: Tensor,
    weak: Tensor,
    weight: Tensor | None,
    grad: Tensor,
    ignore_index: int,
    **options: Any,
) -> LossResult:
    """Compute the sum of the row losses, and write its gradient with respect to the logits.

    The caller has checked row weights.

    Args:
        logits: (N, 2), column stride 1.
        weak: (N,) int64 hard labels, or (N, 2) floating point soft ones.
        weight: (N,) fp32 contiguous, or None for 1.
        grad: (N, 2), overwritten.
        ignore_index: hard label that excludes its row.
        options: of ``weak_loss``: terms of the loss, neither softcap nor z-loss.

    Returns:
        A result with ``loss`` and ``sums``, see ``StatSums``, and without a record.

    Raises:
        W2SError: the shape of the labels does not fit, or a hard label is no class.
    """
    soft = weak.is_floating_point()
    if weak.shape != (logits.shape if soft else logits.shape[:1]):
        raise W2SError(
            f"weak labels have shape {tuple(weak.shape)}; expected {len(logits)} class ids, or "
            f"probabilities {tuple(logits.shape)}"
        )
    weak = (weak.to(logits.dtype) if soft else weak).contiguous()
    ids, probs = (None, weak) if soft else (weak.unsqueeze(1), None)
    spec = LossSpec(**options, record=False, sums=True)
    p = LossInputs(logits, ids, probs, None, weight, ignore_index)
    return algorithm.solve(p, spec, grad, mean=False)
