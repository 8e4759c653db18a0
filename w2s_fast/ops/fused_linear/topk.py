"""The most likely classes of every row from hidden states and a head, logits never stored."""

from __future__ import annotations

import torch
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.ops.arguments import checked
from w2s_fast.ops.dispatch import LIBRARY
from w2s_fast.ops.fused_linear.chunks import HeadInputs, chunks, shape_only
from w2s_fast.ops.fused_linear.cross_entropy import cast_for_autocast, check_head, flat_rows
from w2s_fast.ops.targets import LossInputs
from w2s_fast.ops.transforms import constant, outside_transforms

LIBRARY.define(
    "linear_topk_ids(Tensor hidden, Tensor head, Tensor? bias, int k, float? memory_mib) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


@checked
def linear_topk_ids(
    hidden: Tensor,
    head: Tensor,
    k: int,
    *,
    bias: Tensor | None = None,
    positions: Tensor | None = None,
    memory_mib: float | None = None,
) -> Tensor:
    """Find the K classes with the largest logits of every row; constants without a gradient.

    Equivalent to ``(hidden @ head.T + bias).topk(k).indices``. Temperature and soft-cap do not
    change them. Of equal logits at the limit any may be taken.

    Args:
        hidden: (N, D) or (B, T, D) last hidden states, fp32, bf16, fp16 or fp64.
        head: (V, D) weight of the language-model head, same dtype.
        k: number of classes, from 1 to V.
        bias: (V,) of the head.
        positions: (M,) rows of the flattened hidden states; None: every row.
        memory_mib: what the logits of a chunk may take, in MiB; None: as for
            ``linear_cross_entropy``.

    Returns:
        (N, K) int64, or (M, K), the most likely class first.

    Raises:
        W2SError: for shapes, dtypes, devices, a ``k`` or a budget that do not fit.
        RuntimeError: under ``torch.func.vmap``.
    """
    hidden, head, bias = cast_for_autocast(hidden, head, bias)
    rows = flat_rows(hidden, positions)
    check_head(rows, head, bias)
    if not 1 <= k <= head.shape[0]:
        raise W2SError(f"k is {k}; expected 1 to {head.shape[0]}, the number of classes")
    parts = (None if t is None else constant("linear_topk_ids", t) for t in (rows, head, bias))
    memory = None if memory_mib is None else float(memory_mib)
    with outside_transforms():
        return torch.ops.w2s_fast.linear_topk_ids(*parts, k, memory)


@torch.library.impl(LIBRARY, "linear_topk_ids", "CompositeExplicitAutograd")
def _linear_topk_ids(
    hidden: Tensor, head: Tensor, bias: Tensor | None, k: int, memory_mib: float | None
) -> Tensor:
    n, v = hidden.shape[0], head.shape[0]
    ids = torch.empty((n, k), dtype=torch.int64, device=hidden.device)
    rows = LossInputs(shape_only(n, v, hidden), None, None, None, None, -100)
    for chunk in chunks(HeadInputs(hidden, head, bias, memory_mib), rows):
        ids[chunk.rows] = chunk.inputs.logits.topk(k).indices
    return ids


@torch.library.register_fake("w2s_fast::linear_topk_ids")
def _linear_topk_ids_fake(
    hidden: Tensor, head: Tensor, bias: Tensor | None, k: int, memory_mib: float | None
) -> Tensor:
    return hidden.new_empty((hidden.shape[0], k), dtype=torch.int64)
