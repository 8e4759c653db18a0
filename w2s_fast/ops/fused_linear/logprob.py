r"""Log-probabilities of tokens from hidden states and a head, logits never stored.

    logp_i = z_{i, token_i} - lse(z_i)
    z = softcap tanh((hidden head^T + bias) / softcap) / temperature

The gradients are those of ``topk_logprob``, carried through dhidden = dlogits head and dhead =
dlogits^T hidden in chunks of a memory budget. Sequences are sums or means over the positions that
count; the others never enter a GEMM.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.ops.arguments import checked
from w2s_fast.ops.fused_linear.chunks import HeadInputs
from w2s_fast.ops.fused_linear.inputs import cast_for_autocast, check_head
from w2s_fast.ops.fused_linear.logprob_autograd import linear_topk
from w2s_fast.ops.fused_linear.logprob_statistics import linear_topk_values
from w2s_fast.ops.logprob.api import (
    RowStats,
    check_ids,
    check_scale,
    differentiable_stats,
    row_stats,
)
from w2s_fast.ops.results import check_return_stats
from w2s_fast.ops.transforms import batched, values

IGNORE = -100


@checked
def linear_topk_logprob(
    hidden: Tensor,
    head: Tensor,
    ids: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    softcap: float = 0.0,
    memory_mib: float | None = None,
    fp32_head_gradient: bool = True,
    return_stats: bool | str = False,
) -> tuple[Any, ...]:
    """Compute ``topk_logprob(hidden @ head.T + bias, ids, ...)`` without storing logits.

    Args:
        hidden: (N, D) last hidden states, fp32, bf16, fp16 or fp64. Gets gradients.
        head: (V, D) weight of the language-model head, same dtype. Gets gradients; a frozen head
            or frozen hidden states skip their GEMM.
        ids: (N, K) integer class ids, different from one another within a row; negative: padding.
        bias: (V,) of the head. Gets gradients.
        temperature, softcap: see ``topk_logprob``.
        memory_mib: what the logits of a chunk may take, in MiB; None: as for
            ``linear_cross_entropy``. Logits that take at most half of it are kept for backward,
            which saves one of four products.
        fp32_head_gradient: sum a 16-bit head's gradient over chunks in fp32 and round once; costs
            4 V D bytes where there are several chunks (more than two on a CPU that multiplies in
            16 bits). False rounds once a chunk.
        return_stats: see ``topk_logprob``; differentiable ones read each chunk once more.

    Returns:
        logp (N, K) and tail (N,), fp32 (fp64 for fp64 inputs), and ``RowStats`` on request.

    Raises:
        W2SError: for shapes, dtypes, devices, ids, a budget or a ``return_stats`` that do not fit.
        RuntimeError: on a second derivative, or a tangent of forward mode.
    """
    if hidden.dim() != 2:
        raise W2SError(f"hidden has shape {tuple(hidden.shape)}; expected (N, D)")
    x = make_head(hidden, head, bias, temperature, softcap, memory_mib, fp32_head_gradient)
    ids = check_ids(ids, hidden.shape[0], head.shape[0], hidden.device)
    logp, tail, stats = _logp_and_stats(x, ids, softcap / temperature, True, return_stats)
    return (logp, tail) if stats is None else (logp, tail, stats)


@checked
def linear_logprob(
    hidden: Tensor,
    head: Tensor,
    tokens: Tensor,
    *,
    mask: Tensor | None = None,
    average: bool = False,
    positions: Tensor | None = None,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    softcap: float = 0.0,
    memory_mib: float | None = None,
    fp32_head_gradient: bool = True,
    return_stats: bool | str = False,
) -> Tensor | tuple[Tensor, RowStats]:
    """Compute log-probabilities of given tokens, of single positions or of whole sequences.

    Equivalent, for (B, T, D) and tokens without -100, to
    ``((hidden @ head.T).log_softmax(-1).gather(-1, tokens[..., None])[..., 0] * mask).sum(1)``.
    Nothing is shifted: ``hidden[b, t]`` must be the state that predicts ``tokens[b, t]``.

    Args:
        hidden: (N, D), or (B, T, D) for sequences. Gets gradients.
        head, bias, temperature, softcap, memory_mib, fp32_head_gradient: see
            ``linear_topk_logprob``.
        tokens: (N,) or (B, T) integers; -100 excludes a position.
        mask: (N,) or (B, T), 0 or False excludes a position.
        average: (B, T, D) only: divide by the number of positions that count (0 without any).
        positions: (M,) rows of the flattened hidden states that may count. On a CPU, and where
            tokens and mask are still on one, they are computed. On an accelerator that would make
            the host wait: without ``positions`` every row enters the GEMM there.
        return_stats: also return ``RowStats``, each field in the shape of tokens; positions that
            do not count hold 0, and -1 as argmax. True or ``"differentiable"``, see
            ``linear_topk_logprob``.

    Returns:
        (N,) log-probabilities, 0 where a position does not count; for (B, T, D) (B,) sums, or
        averages. fp32 (fp64 for fp64 inputs). With ``return_stats`` a pair.

    Raises:
        W2SError: for shapes, dtypes, devices, tokens, a budget or a ``return_stats`` that do not
            fit.
        RuntimeError: on a second derivative, or a tangent of forward mode.
    """
    _check(hidden, tokens, mask, average)
    counted = tokens != IGNORE
    if mask is not None:
        counted = counted & (mask.to(tokens.device) != 0)
    rows, counted = hidden.flatten(0, -2), counted.flatten()
    positions = _positions(counted, positions, rows)
    ids = torch.where(counted, tokens.flatten(), -1).to(rows.device, non_blocking=True)
    if positions is not None:
        rows, ids = rows.index_select(0, positions), ids.index_select(0, positions)
    x = make_head(rows, head, bias, temperature, softcap, memory_mib, fp32_head_gradient)
    ids = check_ids(ids.unsqueeze(1), rows.shape[0], head.shape[0], rows.device)
    logp, _, by_row = _logp_and_stats(x, ids, softcap / temperature, False, return_stats)

    def back(value: Tensor, empty: float = 0) -> Tensor:
        """Scatter rows back to their positions."""
        value = torch.where(ids[:, 0] >= 0, value, empty)
        if positions is not None:
            whole = value.new_full((counted.shape[0],), empty)
            value = whole.index_copy(0, positions, value)
        return value.view(tokens.shape)

    out = back(logp[:, 0])
    if tokens.dim() == 2:
        out = out.sum(1)
        if average:
            count = counted.view(tokens.shape).sum(1).to(out.device, non_blocking=True)
            out = out / count.clamp_min(1)
    if by_row is None:
        return out
    argmax, margin = back(by_row.argmax, -1), by_row.margin
    return out, RowStats(
        back(by_row.lse),
        back(by_row.max_prob),
        back(by_row.entropy),
        argmax,
        None if margin is None else back(margin),
    )


def _logp_and_stats(
    x: HeadInputs, ids: Tensor, softcap: float, with_tail: bool, return_stats: bool | str
) -> tuple[Tensor, Tensor, RowStats | None]:
    """Return logp (N, K), tail (N,), and the requested statistics."""
    if check_return_stats(return_stats):
        logp, tail, values, index = linear_topk_values(x, ids, softcap, with_tail)
        return logp, tail, differentiable_stats(values, index)
    logp, tail, stats, index = linear_topk(x, ids, softcap, with_tail)
    return logp, tail, row_stats(stats, index) if return_stats else None


def _positions(counted: Tensor, positions: Tensor | None, rows: Tensor) -> Tensor | None:
    """Return the rows to compute, or None for all of them."""
    if positions is not None:
        if positions.dim() != 1 or positions.dtype not in (torch.int32, torch.int64):
            raise W2SError(
                f"positions have shape {tuple(positions.shape)} and dtype {positions.dtype}; "
                "expected (M,) integers, rows of the flattened hidden states"
            )
        return positions.to(rows.device, torch.int64, non_blocking=True)
    if counted.device.type != "cpu" or torch.compiler.is_compiling() or batched(counted):
        return None
    return counted.nonzero()[:, 0].to(rows.device, non_blocking=True)


def _check(hidden: Tensor, tokens: Tensor, mask: Tensor | None, average: bool) -> None:
    if hidden.dim() not in (2, 3):
        raise W2SError(f"hidden has shape {tuple(hidden.shape)}; expected (N, D) or (B, T, D)")
    lead = tuple(hidden.shape[:-1])
    if tuple(tokens.shape) != lead or tokens.is_floating_point() or tokens.dtype == torch.bool:
        raise W2SError(
            f"tokens have shape {tuple(tokens.shape)} and dtype {tokens.dtype}; expected integers "
            f"{lead} to fit the hidden states"
        )
    if mask is not None and tuple(mask.shape) != lead:
        raise W2SError(f"mask has shape {tuple(mask.shape)}; expected {lead}")
    if average and hidden.dim() == 2:
        raise W2SError("average=True needs sequences: hidden (B, T, D) and tokens (B, T)")
    if tokens.device.type == "cpu" and not torch.compiler.is_compiling() and tokens.numel():
        tokens = values(tokens)
        wrong = (tokens < 0) & (tokens != IGNORE)
        if bool(wrong.any()):
            raise W2SError(
                f"token {int(tokens[wrong][0])} is not a class; expected 0 or more, or {IGNORE} "
                "for a position that does not count"
            )


def make_head(
    hidden: Tensor,
    head: Tensor,
    bias: Tensor | None,
    temperature: float,
    softcap: float,
    memory_mib: float | None,
    fp32_head_gradient: bool,
) -> HeadInputs:
    """Check the inputs of one call, and apply the temperature where it costs nothing.

    In 16 bits that is the factor of the product: hidden / T would be rounded once more.
    """
    check_scale(temperature, softcap)
    hidden, head, bias = cast_for_autocast(hidden, head, bias)
    check_head(hidden, head, bias)
    if temperature == 1:
        return HeadInputs(hidden, head, bias, memory_mib, fp32_head_gradient)
    if hidden.dtype.itemsize < 4:
        return HeadInputs(hidden, head, bias, memory_mib, fp32_head_gradient, 1 / temperature)
    hidden, bias = hidden / temperature, None if bias is None else bias / temperature
    return HeadInputs(hidden, head, bias, memory_mib, fp32_head_gradient)
