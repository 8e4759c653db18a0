"""What a fused head does with its inputs before anything is computed: casts, shapes and checks."""

from __future__ import annotations

import torch
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.ops.checks import check_dense
from w2s_fast.ops.dtypes import LOGIT_DTYPES, autocast_dtype
from w2s_fast.ops.targets import SparseTargets
from w2s_fast.ops.vocab_parallel.dtensor import has_dtensor


def cast_for_autocast(
    hidden: Tensor, head: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Cast each to the dtype in which ``F.linear`` would read it under the current autocast."""
    hidden, head = hidden.to(autocast_dtype(hidden)), head.to(autocast_dtype(head))
    return hidden, head, None if bias is None else bias.to(autocast_dtype(bias))


def flat_rows(hidden: Tensor, positions: Tensor | None) -> Tensor:
    """Return the (N, D) rows of (N, D) or (B, T, D), or the (M, D) rows at ``positions``."""
    if hidden.dim() not in (2, 3):
        raise W2SError(
            f"hidden has shape {tuple(hidden.shape)}; expected (N, D) or (B, T, D) hidden states"
        )
    rows = hidden.flatten(0, -2)
    if positions is None:
        return rows
    if positions.dim() != 1 or positions.is_floating_point() or positions.dtype == torch.bool:
        raise W2SError(
            f"positions have shape {tuple(positions.shape)} and dtype {positions.dtype}; expected "
            "(M,) integers, rows of the flattened hidden states (mask.flatten().nonzero()[:, 0])"
        )
    return rows.index_select(0, positions)


def check_head(hidden: Tensor, head: Tensor, bias: Tensor | None) -> None:
    """Raise ``W2SError`` where hidden (N, D), head (V, D) and bias (V,) do not fit together."""
    if has_dtensor(hidden, head, bias):
        raise W2SError(
            "hidden, head or bias is a DTensor, which this function does not take; expected plain "
            "tensors: use linear_cross_entropy, vocab_parallel_logprob, or .to_local()"
        )
    check_dense("hidden", hidden)
    check_dense("head", head)
    if hidden.dtype not in LOGIT_DTYPES:
        raise W2SError(f"hidden has dtype {hidden.dtype}; expected fp32, bf16, fp16 or fp64")
    if head.dim() != 2 or head.shape[1] != hidden.shape[1] or head.shape[0] == 0:
        hint = ""
        if head.dim() == 2 and head.shape[0] == hidden.shape[1]:
            hint = "; is it transposed?"
        elif head.numel() == 0:
            hint = "; a partitioned (ZeRO-3, FSDP) weight must be gathered first"
        raise W2SError(
            f"head has shape {tuple(head.shape)}; expected (V, D) with D = {hidden.shape[1]}{hint}"
        )
    if bias is not None and tuple(bias.shape) != (head.shape[0],):
        raise W2SError(f"bias has shape {tuple(bias.shape)}; expected ({head.shape[0]},)")
    for name, t in (("head", head), ("bias", bias)):
        if t is not None and (t.dtype != hidden.dtype or t.device != hidden.device):
            raise W2SError(
                f"{name} is {t.dtype} on {t.device}, hidden {hidden.dtype} on {hidden.device}; "
                "bring them to one dtype and device, or run under torch.autocast"
            )


def flat_targets(
    hidden: Tensor, weak: Tensor | SparseTargets | None, weight: Tensor | None
) -> tuple[Tensor | SparseTargets | None, Tensor | None]:
    """Flatten (B, T, ...) targets and weights to rows; return others unchanged."""
    if hidden.dim() != 3:
        return weak, weight
    lead = tuple(hidden.shape[:2])
    if isinstance(weak, Tensor) and weak.shape[:2] == lead:
        rows_of = 3 if weak.is_floating_point() else 2
        weak = weak.flatten(0, 1) if weak.dim() == rows_of else weak
    if isinstance(weak, SparseTargets) and weak.ids.dim() == 3 and weak.ids.shape[:2] == lead:
        rest = weak.rest if weak.rest is None or weak.rest.dim() != 2 else weak.rest.flatten()
        weak = SparseTargets(weak.ids.flatten(0, 1), weak.probs.flatten(0, 1), rest)
    if weight is not None and tuple(weight.shape) == lead:
        weight = weight.flatten()
    return weak, weight
