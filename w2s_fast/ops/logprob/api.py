r"""Log-probabilities of top-k classes, and of all the others together, from logits.

    logp_k = z_{c_k} - lse(z),     tail = log sum_{v not in c} p_v,     p = softmax(z)
    dL/dz_v = -(sum_k G_k + t) p_v + sum_k G_k [v = c_k] + t [v not in c] p_v / e^tail
    z = softcap tanh(logits / softcap) / temperature

c are the K classes of a row; G (N, K) and t (N,) are the gradients of L with respect to logp and
tail. A teacher's top k, a token of a sequence or a verifier's answers need K numbers a row, not V.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.ops.arguments import check_number, checked
from w2s_fast.ops.dispatch import Cost, Op
from w2s_fast.ops.dtypes import accumulator
from w2s_fast.ops.logprob import autograd as _autograd  # noqa: F401 - registers its operators
from w2s_fast.ops.logprob import statistics_autograd as _statistics  # noqa: F401 - the same
from w2s_fast.ops.logprob.statistics import RowValue
from w2s_fast.ops.loss_call import Index, Stat
from w2s_fast.ops.results import check_return_stats
from w2s_fast.ops.targets import check_logits, topk_error, unfit_rows
from w2s_fast.ops.transforms import values


class RowStats(NamedTuple):
    """Statistics of each row; (N,), fp32 (fp64 for fp64 logits).

    All but ``argmax`` are differentiable with ``return_stats="differentiable"``, else detached.
    The square of ``lse`` is the z-loss of a row, ``argmax == tokens`` whether a token is the most
    likely one.
    """

    lse: Tensor  # log sum exp of the tempered, soft-capped logits
    max_prob: Tensor  # the largest probability
    entropy: Tensor  # nats
    argmax: Tensor  # int64, first class with the largest logit
    # Largest minus second largest logit, at least 0; its gradient is 1 at the first and -1 at the
    # second class, of equal logits the first ones. +inf for one class. None if detached.
    margin: Tensor | None = None


@checked
def topk_logprob(
    logits: Tensor,
    ids: Tensor,
    *,
    temperature: float = 1.0,
    softcap: float = 0.0,
    return_stats: bool | str = False,
) -> tuple[Any, ...]:
    """Compute log-probabilities of K classes a row, and of "none of them".

    Equivalent to ``logits.log_softmax(1).gather(1, ids)`` and to the logsumexp of what is left, in
    one read of the logits forward, and one read and one write backward.

    Args:
        logits: (N, V) fp32, bf16, fp16 or fp64. Gets gradients.
        ids: (N, K) integer class ids, different from one another within a row. A negative id is
            padding: its log-probability is 0 and it has no gradient. A class that does not exist or
            is listed twice is an error on the CPU; on a GPU its row is NaN.
        temperature: above 0; other than 1 costs one more read and a write, in fp32 where logits
            have 16 bits: a copy of twice their size.
        softcap: 0 for none.
        return_stats: True: also return detached ``RowStats``, which cost nothing.
            ``"differentiable"``: ones that get gradients, with the margin; one more read forward,
            and backward works in blocks of rows.

    Returns:
        logp (N, K) and tail (N,), fp32 (fp64 for fp64 logits), and ``RowStats`` on request. The
        tail is -inf if no other class is left, or all others have logit -inf. NaN in a row whose
        logits hold NaN, +inf or nothing but -inf.

    Raises:
        W2SError: for shapes, dtypes, devices, ids or a ``return_stats`` that do not fit (ids are
            looked at on the CPU only).
        RuntimeError: on a second derivative, or a tangent of forward mode.
    """
    check_logits(logits)
    ids = check_ids(ids, logits.shape[0], logits.shape[1], logits.device)
    check_scale(temperature, softcap)
    differentiable = check_return_stats(return_stats)
    logits = tempered(logits, temperature)
    softcap = softcap / temperature
    if differentiable:
        logp, tail, values, _, _, index = torch.ops.w2s_fast.topk_logp_values(logits, ids, softcap)
        return logp, tail, differentiable_stats(values, index)
    logp, tail, stats, index = torch.ops.w2s_fast.topk_logp(logits, ids, softcap, True)
    return (logp, tail, row_stats(stats, index)) if return_stats else (logp, tail)


def differentiable_stats(values: Tensor, index: Tensor) -> RowStats:
    """Return the statistics from the (4, N) output of an operator."""
    return RowStats(
        values[RowValue.LSE],
        values[RowValue.MAX_PROB],
        values[RowValue.ENTROPY],
        index[Index.ARGMAX],
        values[RowValue.MARGIN],
    )


def row_stats(stats: Tensor, index: Tensor) -> RowStats:
    """Return the statistics from a record."""
    logs = stats[Stat.LOGS]
    return RowStats(stats[Stat.MAX] + logs, (-logs).exp(), stats[Stat.ENTROPY], index[Index.ARGMAX])


def check_ids(ids: Tensor, n: int, v: int, device: torch.device) -> Tensor:
    """Return ids as (N, K) int64; raise ``W2SError`` for a bad shape, dtype, device or value."""
    if ids.dim() != 2 or ids.is_floating_point() or ids.shape[0] != n or not ids.shape[1]:
        raise W2SError(
            f"ids have shape {tuple(ids.shape)} and dtype {ids.dtype}; expected integers "
            f"({n}, K >= 1)"
        )
    if ids.shape[1] > v:
        raise W2SError(f"ids list K = {ids.shape[1]} classes a row of only {v}; drop the padding")
    if ids.device != device:
        raise W2SError(f"ids are on {ids.device}, expected {device}; move one of them")
    if device.type == "cpu" and not torch.compiler.is_compiling() and ids.numel():
        seen = values(ids).reshape(-1, ids.shape[1])
        bad = unfit_rows(seen, v)
        if bad.numel():
            raise topk_error("ids", seen, int(bad[0]), v)
    return ids.to(torch.int64).contiguous()


def check_scale(temperature: float, softcap: float) -> None:
    """Raise ``W2SError`` unless the temperature is positive and the soft-cap at least 0."""
    check_number("temperature", temperature)
    check_number("softcap", softcap)
    if not 0 < temperature < math.inf:
        raise W2SError(f"temperature is {temperature}; expected a number above 0")
    if not 0 <= softcap < math.inf:
        raise W2SError(f"softcap is {softcap}; expected a number of at least 0 (0 for none)")


def tempered(logits: Tensor, temperature: float) -> Tensor:
    """Return logits / temperature, in fp32 where logits have 16 bits.

    There the quotient would be rounded once more, and in fp16 it may be infinite.
    """
    if temperature == 1:
        return logits
    acc = accumulator(logits.dtype)
    return logits / temperature if logits.dtype == acc else logits.to(acc).div_(temperature)


def topk_logprob_reference(
    logits: Tensor, ids: Tensor, *, temperature: float = 1.0, softcap: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Compute ``topk_logprob`` by its definition, in the dtype of ``logits``; run it in fp64."""
    z = softcap * torch.tanh(logits / softcap) if softcap else logits
    log_p = (z / temperature).log_softmax(1)
    real = ids >= 0
    at = torch.where(real, ids, 0)
    logp = torch.where(real, log_p.gather(1, at), 0.0)
    in_topk = torch.zeros_like(log_p).scatter_add(1, at, real.to(log_p.dtype)) > 0
    return logp, torch.where(in_topk, -math.inf, log_p).logsumexp(1)


def topk_logprob_sample(
    n: int, v: int, dtype: torch.dtype, device: str, seed: int
) -> dict[str, Any]:
    """Return the arguments of one call: padding, a row of padding only, confident rows, ties."""
    g = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(n, v, generator=g)
    k = max(1, min(4, v // 2))
    ids = torch.rand(n, v, generator=g).argsort(1)[:, :k]
    if n > 1:
        logits[1] = logits[1].round()
    if n > 2:
        logits[2, ids[2, 0]] = 30.0
    if k > 1:
        ids[:, 1] = torch.where(torch.rand(n, generator=g) < 0.5, -1, ids[:, 1])
    if n > 3:
        ids[3] = -1
    return {"logits": logits.to(dtype).to(device), "ids": ids.to(device)}


def cost(n: int, v: int, dtype: torch.dtype) -> Cost:
    """Return the cost: one read forward, one read and one write backward."""
    return Cost(bytes=3 * n * v * dtype.itemsize, flops=20 * n * v)


OP = Op("topk_logprob", topk_logprob_reference, topk_logprob_sample, cost)
