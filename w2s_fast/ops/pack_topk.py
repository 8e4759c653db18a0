"""A teacher's top k with the remaining mass, from its logits or probabilities.

An offline teacher is stored as K ids, K probabilities and one residual a position, instead of V
numbers. No softmax over all positions is held in memory, only one chunk of rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.ops.arguments import checked
from w2s_fast.ops.chunking import default_memory_mib, rows_per_chunk
from w2s_fast.ops.dtypes import accumulator
from w2s_fast.ops.logprob.api import check_scale, topk_logprob
from w2s_fast.ops.targets import SparseTargets, check_logits
from w2s_fast.ops.transforms import constant, outside_transforms


@checked
@torch.no_grad()
def pack_topk(
    teacher: Tensor,
    k: int,
    *,
    temperature: float = 1.0,
    probs: bool = False,
    ids_dtype: torch.dtype = torch.int64,
    memory_mib: float | None = None,
) -> SparseTargets:
    """Return the top k classes of every row, their probabilities, and the mass of all the others.

    The residual is summed from the others, not computed as 1 - sum of the top k, so it is exact for
    a confident teacher.

    Args:
        teacher: (N, V) logits, fp32, bf16, fp16 or fp64; or probabilities with ``probs=True``.
        k: classes to keep, 1..V. Ties are broken as in ``torch.topk``.
        temperature: of the teacher's softmax, above 0 (probabilities become p^(1/T),
            renormalised).
        probs: ``teacher`` holds probabilities >= 0; at temperature 1 they are used unchanged.
        ids_dtype: ``torch.int64``, or ``torch.int32`` to store less.
        memory_mib: for copies of rows, in MiB; None: 64 on a CPU, about 1024 on a GPU.

    Returns:
        ``SparseTargets`` with probs (N, K) and rest (N,) in fp32 (fp64 for fp64 teachers).

    Raises:
        W2SError: for shapes, dtypes or values that do not fit.
    """
    check_logits(teacher)
    check_scale(temperature, 0.0)
    n, v = teacher.shape
    if not 1 <= k <= v:
        raise W2SError(f"k is {k}; expected 1..{v}, the number of classes")
    if ids_dtype not in (torch.int32, torch.int64):
        raise W2SError(f"ids_dtype is {ids_dtype}; expected torch.int32 or torch.int64")
    teacher = constant("pack_topk", teacher)
    if memory_mib is None:
        memory_mib = default_memory_mib(v, accumulator(teacher.dtype).itemsize, teacher.device)
    with outside_transforms():
        return _packed(teacher, k, temperature, probs, ids_dtype, memory_mib)


def _packed(
    teacher: Tensor,
    k: int,
    temperature: float,
    probs: bool,
    ids_dtype: torch.dtype,
    mib: float,
) -> SparseTargets:
    n, v = teacher.shape
    acc = accumulator(teacher.dtype)
    ids = torch.empty((n, k), dtype=ids_dtype, device=teacher.device)
    topk_probs = torch.empty((n, k), dtype=acc, device=teacher.device)
    rest = torch.empty(n, dtype=acc, device=teacher.device)
    size = rows_per_chunk(n, v, acc.itemsize, mib)
    for start in range(0, n, size):
        at = slice(start, min(start + size, n))
        make = _probabilities if probs and temperature == 1 else _logits
        ids[at], topk_probs[at], rest[at] = make(teacher[at], k, temperature, probs, start)
    return SparseTargets(ids, topk_probs, rest)


def _logits(
    rows: Tensor, k: int, temperature: float, probs: bool, start: int
) -> tuple[Tensor, Tensor, Tensor]:
    if probs:
        rows = _checked(rows, start).log()
    ids = rows.topk(k, dim=1).indices
    logp, tail = topk_logprob(rows, ids, temperature=temperature)
    return ids, logp.exp(), tail.exp()


def _probabilities(
    rows: Tensor, k: int, temperature: float, probs: bool, start: int
) -> tuple[Tensor, Tensor, Tensor]:
    rows = _checked(rows, start)
    values, ids = rows.topk(k, dim=1)
    return ids, values, rows.scatter(1, ids, 0.0).sum(1)


def _checked(rows: Tensor, start: int) -> Tensor:
    rows = rows.to(accumulator(rows.dtype))
    if rows.device.type == "cpu" and not bool((rows >= 0).all()):
        at = int((~(rows >= 0)).any(1).nonzero()[0])
        raise W2SError(
            f"row {start + at} of the teacher has {float(rows[at].min())} among its probabilities; "
            "expected numbers >= 0 (logits: leave probs=False)"
        )
    return rows
