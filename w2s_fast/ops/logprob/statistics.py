r"""Differentiable statistics of rows of logits: lse, top probability, entropy and margin.

    H = lse - sum_v p_v z_v          dH/dz_v = -p_v (log p_v + H)
    m = z_1st - z_2nd                dm/dz_v = [v = 1st] - [v = 2nd]
    dp_1st/dz_v = p_1st ([v = 1st] - p_v),      dlse/dz_v = p_v

z = softcap tanh(u / softcap) of the given u, as in ``api.py``; 1st and 2nd are the classes of the
two largest logits, of equal ones the first. Source of the entropy's gradient: Mnih et al., arXiv
1602.01783, Sec. 4, whose bonus it is; it follows from dp_v/dz_u = p_v ([u = v] - p_u).

Logits are read in blocks of rows that stay in the caches, so the memory of a pass does not grow
with the batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import IntEnum

import torch
from torch import Tensor

from w2s_fast.ops.cross_entropy.ref import soft_cap_slope, soft_capped
from w2s_fast.ops.dispatch import backend
from w2s_fast.ops.loss_call import Index, RowCall, Stat
from w2s_fast.ops.targets import LossInputs

# Logits of a block: 512 KiB in fp32 for every thread of a CPU, 64 MiB on an accelerator.
_BLOCK = 1 << 17
_DEVICE_BLOCK = 1 << 24
# Stands for log 0: far below every log-probability, but its product with 0 is 0.
_LOG_ZERO = -1e5


class RowValue(IntEnum):
    """Rows of the (4, N) differentiable statistics."""

    LSE = 0
    MAX_PROB = 1
    ENTROPY = 2  # nats
    MARGIN = 3  # largest logit minus the second largest


@dataclass(slots=True)
class ValueGradient:
    """The upstream of the statistics in a backward pass.

    Attributes:
        upstream: (4, N), rows as in ``RowValue``, in the precision of the record.
        second: (N,) int64, class of the second largest logit.
    """

    upstream: Tensor
    second: Tensor

    def of_rows(self, rows: slice) -> ValueGradient:
        """Return the part of some rows."""
        return ValueGradient(self.upstream[:, rows], self.second[rows])


def row_values(stats: Tensor, margin: Tensor) -> Tensor:
    """Return the (4, N) statistics from a record and the margins."""
    logs = stats[Stat.LOGS]
    # A row without a softmax has no statistics, whatever its two largest logits are.
    margin = torch.where(logs.isnan(), torch.nan, margin)
    return torch.stack([stats[Stat.MAX] + logs, (-logs).exp(), stats[Stat.ENTROPY], margin])


def margins(logits: Tensor, first: Tensor, softcap: float) -> tuple[Tensor, Tensor]:
    """Return the (N,) margins and the classes of the second largest logits.

    +inf, and class 0, for one class.

    Args:
        logits: (N, V), before the soft-cap.
        first: (N,) class of the largest logit.
    """
    acc = torch.promote_types(logits.dtype, torch.float32)
    margin = torch.full(first.shape, torch.inf, dtype=acc, device=logits.device)
    second = torch.zeros_like(first)
    if logits.shape[1] == 1:
        return margin, second
    for rows in row_blocks(logits):
        at = first[rows].unsqueeze(1)
        top = logits[rows].gather(1, at).squeeze(1)
        # Both by the same tanh: that of a kernel's record is rounded in another way.
        rest, second[rows] = logits[rows].scatter(1, at, -torch.inf).max(1)
        margin[rows] = soft_capped(top.to(acc), softcap) - soft_capped(rest.to(acc), softcap)
    # Where all others are -inf the largest was found again: take another class.
    return margin, torch.where(second == first, (first == 0).to(second.dtype), second)


def write_gradient(call: RowCall, extra: ValueGradient) -> None:
    """Run the phase ``gradient`` of a call and add the gradient of the statistics to it.

    16-bit gradients are rounded once, after the sum; like those of the phase itself they may
    overwrite the logits. A row without upstream gets exactly 0 for any logits.
    """
    gradient = backend("cross_entropy", call.inputs.logits).gradient
    for rows in row_blocks(call.inputs.logits):
        part = _rows_of(call, rows)
        narrow, z = part.grad, part.inputs.logits.to(part.stats.dtype)
        assert narrow is not None
        grad = narrow if z.dtype == narrow.dtype else z  # a wide copy may be overwritten
        part.inputs, part.grad = part.inputs._replace(logits=z), grad
        added = _gradient_of_values(z, part, extra.of_rows(rows))
        gradient(part)
        grad += added
        if grad is not narrow:
            narrow.copy_(grad)


def row_blocks(logits: Tensor) -> Iterator[slice]:
    """Yield the rows of (N, V) logits in blocks; what a row becomes does not depend on them."""
    n, v = logits.shape
    size = _BLOCK * torch.get_num_threads() if logits.device.type == "cpu" else _DEVICE_BLOCK
    step = max(1, size // v)
    for start in range(0, n, step):
        yield slice(start, min(start + step, n))


def _gradient_of_values(logits: Tensor, call: RowCall, extra: ValueGradient) -> Tensor:
    """Return the (n, V) gradient with respect to ``logits``, in their dtype, as a new tensor."""
    stats, softcap, up = call.stats.unsqueeze(2), call.spec.softcap, extra.upstream
    lse, max_prob, entropy, margin = up.unsqueeze(2)
    logs = stats[Stat.LOGS]
    share = (-logs).exp()
    top = max_prob * share
    # p (lse - top - entropy (log p + H)), with log p = d - log S and p = e^d / S.
    d = (soft_capped(logits, softcap) - stats[Stat.MAX]).clamp_min_(_LOG_ZERO)
    grad = d.exp()
    constant = lse - top - entropy * (stats[Stat.ENTROPY] - logs)
    grad *= torch.addcmul(constant * share, d, -entropy * share, out=d)
    first, second = call.index[Index.ARGMAX].unsqueeze(1), extra.second.unsqueeze(1)
    grad.scatter_add_(1, first, top + margin).scatter_add_(1, second, -margin)
    if softcap:
        grad *= soft_cap_slope(logits, softcap)
    used = (up != 0).any(0)
    if used.device.type == "cpu" and bool(used.all()):
        return grad
    return grad.masked_fill_(~used.unsqueeze(1), 0.0)


def _rows_of(call: RowCall, rows: slice) -> RowCall:
    """Return the phase ``gradient`` of some rows of a call; targets get the record's precision."""
    assert call.grad is not None and call.row_scale is not None
    p = call.inputs
    ids, probs, rest, weight = (
        None if t is None else t[rows] for t in (p.ids, p.probs, p.rest, p.weight)
    )
    if probs is not None:
        probs = probs.to(call.stats.dtype)
    return replace(
        call,
        inputs=LossInputs(p.logits[rows], ids, probs, rest, weight, p.ignore_index),
        stats=call.stats[:, rows].contiguous(),
        index=call.index[:, rows].contiguous(),
        grad=call.grad[rows],
        row_scale=call.row_scale[rows],
    )
