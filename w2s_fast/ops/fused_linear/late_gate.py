"""The gates of a batch threshold, closed after the chunks of a fused head were freed.

The pass takes all gates as open. In a row that turns out closed only a few entries of the gradient
change: a rank-1 term a g (e_self - q), which goes through both GEMMs as K + 1 rows of the head into
dhidden and K + 1 times the hidden states into dhead. No logits, no second GEMM.

Weak mass m other than 1 also changes the factor of the softmax, by a g (m - 1). A CPU then decides
beforehand to compute the scores first. A GPU does not wait for the masses: a Triton kernel adds
that term for the rows that need it, and finds none where all masses are 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from w2s_fast.ops.cross_entropy.ref import set_loss
from w2s_fast.ops.fused_linear.chunks import Gradients, HeadInputs, NeedsGrad
from w2s_fast.ops.loss_call import Index, LossSpec, RowCall, Stat
from w2s_fast.ops.targets import LossInputs

# A weak mass within this many roundings of 1 counts as 1: the gradient error stays below the
# rounding of a sum over the classes.
_MASS_ROUNDINGS = 8


def fixes_afterwards(
    p: LossInputs, spec: LossSpec, needs: NeedsGrad, any_mass: bool = False
) -> bool:
    """Return whether a gate that closes after its chunk was freed can be corrected.

    ``any_mass``: the backend corrects rows of any weak mass, see ``FIXES_ANY_MASS``.
    """
    if p.logits.shape[1] == 2 or p.ids is None or p.rest is not None or spec.smoothing:
        return False
    if p.probs is None or not needs.any or any_mass:
        return True
    if p.probs.device.type != "cpu":
        return False  # reading the masses would wait for the device
    mass = torch.where(p.ids >= 0, p.probs, 0.0).sum(1)
    return bool((_is_one(mass) | ~p.counted()).all())


def _is_one(mass: Tensor) -> Tensor:
    return (mass - 1).abs() <= _MASS_ROUNDINGS * torch.finfo(mass.dtype).eps


def close_gates(x: HeadInputs, call: RowCall, grads: Gradients, any_mass: bool) -> None:
    """Remove the self-target from rows below the threshold: record, loss and gradients.

    Leaves the weak mass out: ``fixes_afterwards`` has excluded others than 1, or ``any_mass`` adds
    their term.
    """
    stats = call.stats
    closed, pull = closed_rows(call)
    if grads.needs.any:
        _add_rank_one(x, call, pull, grads)
        if any_mass and call.inputs.probs is not None:
            _add_softmax(x, call, pull, grads)
    open_loss = stats[Stat.LOSS].clone()
    stats[Stat.COEF] = torch.where(closed, 0.0, stats[Stat.COEF])
    set_loss(call, 0.0)
    stats[Stat.LOSS] = torch.where(closed, stats[Stat.LOSS], open_loss)


def closed_rows(call: RowCall) -> tuple[Tensor, Tensor]:
    """Return (N,) whether a gate closes, and the factor of its rank-1 correction (0 elsewhere)."""
    stats, weight, threshold = call.stats, call.inputs.weight, call.threshold
    assert call.scale is not None and threshold is not None
    factor = stats[Stat.FACTOR]
    closed = ~(stats[Stat.SCORE] >= threshold) & (stats[Stat.COEF] != 0)
    scale = call.scale if weight is None else call.scale * weight
    pull = torch.where(closed & (factor != 0), stats[Stat.COEF] * factor * scale, 0.0)
    return closed, pull


def _add_rank_one(x: HeadInputs, call: RowCall, pull: Tensor, grads: Gradients) -> None:
    """Add dlogits += pull (e_self - q), for pull (N,), through both GEMMs without dlogits."""
    classes, q = _capped_targets(call)
    own = cap_slope(call.stats[Stat.MAX].unsqueeze(1), call.spec.softcap)
    classes = torch.cat([call.index[Index.SELF].unsqueeze(1), classes], 1)
    values = torch.cat([own, -q], 1) * pull.unsqueeze(1)
    rows = torch.arange(pull.shape[0], device=pull.device)
    if pull.device.type == "cpu":
        rows = pull.nonzero().squeeze(1)
        classes, values = classes[rows], values[rows]
    add_entries(x, classes, values, rows, grads)


def _capped_targets(call: RowCall) -> tuple[Tensor, Tensor]:
    """Return (N, K) top-k classes and q dz/du, 0 for padding."""
    p, softcap = call.inputs, call.spec.softcap
    assert p.ids is not None
    assert call.topk_diffs is not None
    real = p.ids != p.ignore_index if p.probs is None else p.ids >= 0
    top = call.stats[Stat.MAX].unsqueeze(1)
    q = real.to(top.dtype) if p.probs is None else torch.where(real, p.probs, 0.0)
    q = q * cap_slope(torch.where(real, call.topk_diffs + top, 0.0), softcap)
    return torch.where(real, p.ids, 0), q


def _add_softmax(x: HeadInputs, call: RowCall, pull: Tensor, grads: Gradients) -> None:
    """Add dlogits += pull (m - 1) p, for pull (N,) and weak masses m, after the rank-1 terms.

    dhead is a sum over rows: their p is computed again. A row of dhidden holds its own p head and
    the few targets, so it is scaled, and the targets get back what they lost.
    """
    from w2s_fast.ops.fused_linear.triton import add_softmax

    stats, spec = call.stats, call.spec
    mass, a = stats[Stat.MASS], stats[Stat.COEF]
    lse = stats[Stat.MAX] + stats[Stat.LOGS]
    moved = (pull != 0) & ~_is_one(mass)
    add_softmax(x, torch.where(moved, pull * (mass - 1), 0.0), lse, spec.softcap, grads)
    if grads.hidden is None:
        return
    flat = 2 * spec.z_loss * lse if spec.z_loss else 0.0
    ratio = torch.where(moved, (mass + flat) / ((1 - a) * mass + a + flat), 1.0)
    lost = torch.where(moved, (ratio - 1) * pull / a, 0.0)
    classes, q = _capped_targets(call)
    every = torch.arange(pull.shape[0], device=pull.device)
    _add_to_hidden(x, classes, q * lost.unsqueeze(1), every, grads.hidden, ratio.unsqueeze(1))


def add_entries(
    x: HeadInputs, classes: Tensor, values: Tensor, rows: Tensor, grads: Gradients
) -> None:
    """Add dlogits[rows_m, classes_mk] += values_mk for (M, K) entries of M rows of the batch."""
    if grads.hidden is not None:
        _add_to_hidden(x, classes, values, rows, grads.hidden)
    if grads.head is not None:
        grads.head.add_entries(classes, values, grads.hidden_of(rows))


def _add_to_hidden(
    x: HeadInputs,
    classes: Tensor,
    values: Tensor,
    rows: Tensor,
    into: Tensor,
    factor: Tensor | float = 1.0,
) -> None:
    add = torch.zeros((rows.shape[0], into.shape[1]), dtype=values.dtype, device=rows.device)
    for k in range(classes.shape[1]):  # one (M, D) gather at a time, never (M, K, D)
        add.addcmul_(x.head[classes[:, k]].to(values.dtype), values[:, k : k + 1])
    # Each row of the batch occurs once: one rounding, no accumulation.
    into[rows] = (factor * into[rows].to(add.dtype) + add).to(into.dtype)


def cap_slope(z: Tensor, softcap: float) -> Tensor:
    """Return dz/du of a soft-capped logit z; ones without a cap."""
    return (1 - z / softcap) * (1 + z / softcap) if softcap else torch.ones_like(z)
