"""Plain torch backend of the weak-to-strong cross-entropy: any device, any dtype, any V.

It follows the formulas of ``api.py`` line by line and is what fp64 always runs, so a
gradient check tests the formulas that the fused kernels implement.

Every backend is a module with the functions of this one: ``rows``, ``fixup`` and ``gradient`` take
a ``RowCall``; ``gradient_buffer`` allocates, ``scale_`` multiplies a finished gradient. Where
``takes_two_class`` is true, ``two_class`` serves two classes in a single call.
"""

from __future__ import annotations

import torch
from torch import Tensor

from w2s_fast.ops.loss_call import Index, LossSpec, RowCall, RowRule, Stat
from w2s_fast.ops.targets import LossInputs, check_labels

# Gradients are written after the threshold is known, never repaired.
FIXES_IN_PLACE = False
# Looking at scores would make the host wait for a device.
GUESSES_GATES = False
# Dense targets are probabilities.
READS_TARGET_LOGITS = False
FIXES_ANY_MASS = False
LATE_TWO_CLASS = False
SUMS_TWO_CLASS = False


def rows(call: RowCall) -> None:
    """Fill the record and, with ``grad``, write scale * dloss/dlogits."""
    p, spec, stats, index = call.inputs, call.spec, call.stats, call.index
    d = _softmax_stats(soft_capped(p.logits.to(stats.dtype), spec.softcap), stats, index)
    _target_stats(p, d, stats, index)
    if call.topk_diffs is not None:
        call.topk_diffs.copy_(d.gather(1, entries(p)[0]))
    if spec.smoothing:
        # A sum of masked logits overflows, their mean does not.
        stats[Stat.MEAN] = d.mean(1, dtype=torch.float64)
    set_self_target(call)
    set_factor(call)
    set_loss(call, _self_diff(d, index))
    if call.grad is not None:
        assert call.scale is not None
        row_scale = call.scale if p.weight is None else call.scale * p.weight
        _write_gradient(call, row_scale.expand(d.shape[0]))


def fixup(call: RowCall) -> None:
    """Close the gate of rows whose SCORE is below the threshold: coefficient and loss."""
    p, spec, stats, index = call.inputs, call.spec, call.stats, call.index
    d = soft_capped(p.logits.to(stats.dtype), spec.softcap) - stats[Stat.MAX].unsqueeze(1)
    set_self_target(call)
    set_loss(call, _self_diff(d, index))


def gradient(call: RowCall) -> None:
    """Write row_scale * dloss/dlogits (N, V) from the record; rows that do not count get exactly 0.

    The classes in ``index`` may be -1: they lie in another shard of the vocabulary, whose entries
    are written there.
    """
    assert call.row_scale is not None
    _write_gradient(call, call.row_scale)


def takes_two_class(p: LossInputs, spec: LossSpec) -> bool:
    """Return False: two classes are rows like others here."""
    return False


def gradient_buffer(p: LossInputs, any_stride: bool = False) -> Tensor:
    """Return an uninitialised (N, V) for the gradient; contiguous unless ``any_stride``."""
    return torch.empty(p.logits.shape, dtype=p.logits.dtype, device=p.logits.device)


def scale_(grad: Tensor, upstream: Tensor) -> None:
    """Multiply the finished gradient by the upstream scalar, in place."""
    grad.mul_(upstream)


def _write_gradient(call: RowCall, row_scale: Tensor) -> None:
    p, spec, grad, stats, index = call.inputs, call.spec, call.grad, call.stats, call.index
    assert grad is not None
    z = soft_capped(p.logits.to(stats.dtype), spec.softcap)
    d = z - stats[Stat.MAX].unsqueeze(1)
    prob = (d - stats[Stat.LOGS].unsqueeze(1)).exp()
    a = stats[Stat.COEF].unsqueeze(1)
    mass = stats[Stat.MASS].unsqueeze(1)
    smooth = spec.smoothing
    slope = (1 - a) * mass + a
    if spec.z_loss:
        slope = slope + 2 * spec.z_loss * (stats[Stat.MAX] + stats[Stat.LOGS]).unsqueeze(1)
    g = slope * prob
    if smooth:
        g = g - (1 - a) * (smooth * mass / d.shape[1])
    if p.rest is not None:
        pull = (1 - a) * (1 - smooth) * p.rest.unsqueeze(1)
        outside = (d - (stats[Stat.LOGS] + stats[Stat.TAIL]).unsqueeze(1)).exp()
        g = g - torch.where(_in_topk(p) | (pull == 0), 0.0, pull * outside)
    # Targets are added up first: where p and the target are both 1, exactly 0 is left.
    target = (1 - a) * (1 - smooth) * dense_weak(p, stats.dtype)
    own = index[Index.SELF].unsqueeze(1)
    g = g - target.scatter_add(1, own.clamp_min(0), torch.where(own >= 0, a, 0.0))
    if spec.softcap:
        g = g * soft_cap_slope(p.logits.to(stats.dtype), spec.softcap)
    factor = stats[Stat.FACTOR] * row_scale
    counted = (p.counted() & (factor != 0)).unsqueeze(1)
    grad.copy_(torch.where(counted, g * factor.unsqueeze(1), 0.0))


def soft_capped(u: Tensor, softcap: float) -> Tensor:
    """Return softcap tanh(u / softcap), or u itself without a cap."""
    return softcap * torch.tanh(u / softcap) if softcap else u


def soft_cap_slope(u: Tensor, softcap: float) -> Tensor:
    """Return its derivative, 4 t / (1 + t)^2 for t = e^(-2|u|/softcap), exact where tanh is 1."""
    t = (-2 * (u / softcap).abs()).exp()
    return 4 * t / (1 + t).square()


def dense_weak(p: LossInputs, dtype: torch.dtype) -> Tensor:
    """Return (N, V) weak mass by class; the residual of sparse targets belongs to no class."""
    if p.probs is not None and p.ids is None:
        return p.probs.to(dtype)
    assert p.ids is not None
    out = torch.zeros(p.logits.shape, dtype=dtype, device=p.logits.device)
    ids, real = entries(p)
    probs = torch.ones_like(ids, dtype=dtype) if p.probs is None else p.probs.to(dtype)
    return out.scatter_add_(1, ids, torch.where(real, probs, 0.0))


def entries(p: LossInputs) -> tuple[Tensor, Tensor]:
    """Return ids with padding and ignored labels replaced by 0, and which entries are real."""
    assert p.ids is not None
    real = p.ids >= 0
    if p.kind == "hard":
        real = p.ids != p.ignore_index
    check_labels(p)
    return torch.where(real, p.ids, 0), real


def _in_topk(p: LossInputs) -> Tensor:
    ids, real = entries(p)
    hit = torch.zeros(p.logits.shape, dtype=torch.int32, device=ids.device)
    return hit.scatter_add_(1, ids, real.to(torch.int32)) > 0


def _softmax_stats(z: Tensor, stats: Tensor, index: Tensor) -> Tensor:
    top = z.amax(1, keepdim=True)
    d = z - top
    e = d.exp()
    s = e.sum(1)
    classes = torch.arange(z.shape[1], device=z.device).expand_as(z)
    first = torch.where((z == top) | top.isnan(), classes, z.shape[1] - 1).amin(1)
    stats[Stat.MAX] = top.squeeze(1)
    stats[Stat.LOGS] = s.log()
    # exp(-inf) * -inf is NaN, but a class of probability 0 has no entropy.
    stats[Stat.ENTROPY] = s.log() - torch.where(e > 0, e * d, e).sum(1) / s
    stats[Stat.SCORE] = z[:, 0] - z[:, 1] if z.shape[1] == 2 else 1 / s
    index[Index.ARGMAX] = first
    return d


def _target_stats(p: LossInputs, d: Tensor, stats: Tensor, index: Tensor) -> None:
    weak = dense_weak(p, d.dtype)
    stats[Stat.LINEAR] = torch.where((weak != 0) & (d != 0), weak * d, 0.0).sum(1)
    stats[Stat.MASS] = weak.sum(1)
    if p.kind == "sparse":
        ids, real = entries(p)
        assert p.probs is not None
        best = torch.where(real, p.probs, -1.0).argmax(1, keepdim=True)
        index[Index.WEAK] = ids.gather(1, best).squeeze(1)
    else:
        index[Index.WEAK] = weak.argmax(1)
    # A weak label with a NaN in it has no top class.
    nan = stats[Stat.MASS].isnan()
    index[Index.WEAK] = torch.where(nan, 0, index[Index.WEAK])
    chosen = d.gather(1, index[Index.WEAK].unsqueeze(1)).squeeze(1)
    stats[Stat.CHOSEN] = torch.where(nan, float("nan"), chosen)
    if p.rest is not None:
        stats[Stat.MASS] += p.rest
        stats[Stat.TAIL] = _tail(d, stats[Stat.LOGS], _in_topk(p))


def _tail(d: Tensor, logs: Tensor, in_topk: Tensor) -> Tensor:
    """Return (N,) log mass outside the top k, from the outside or from 1 - inside if small."""
    outside = torch.where(in_topk, float("-inf"), d).logsumexp(1) - logs
    share = torch.where(in_topk, (d - logs.unsqueeze(1)).exp(), 0.0).sum(1)
    return torch.where(share < 0.75, (-share).log1p(), outside)


def _self_diff(d: Tensor, index: Tensor) -> Tensor:
    return d.gather(1, index[Index.SELF].unsqueeze(1)).squeeze(1)


def set_self_target(call: RowCall) -> None:
    """Fill SELF and COEF from the rule and SCORE."""
    stats, index = call.stats, call.index
    aux = torch.as_tensor(call.spec.aux, dtype=stats.dtype, device=stats.device)
    if call.rule != RowRule.GIVEN:
        index[Index.SELF] = index[Index.ARGMAX]
    stats[Stat.COEF] = torch.zeros_like(aux) if call.rule == RowRule.NONE else aux
    if call.threshold is None:
        return
    above = stats[Stat.SCORE] >= call.threshold
    if call.rule == RowRule.GATE:
        stats[Stat.COEF] = torch.where(above, aux, 0.0)
    elif call.rule == RowRule.MARGIN:
        index[Index.SELF] = torch.where(above, 0, 1)


def set_factor(call: RowCall) -> None:
    """Fill FACTOR: focal and window factor of rows that count."""
    stats, spec = call.stats, call.spec
    factor = torch.ones_like(stats[Stat.LOGS])
    if spec.focal_gamma:
        miss = -torch.expm1(stats[Stat.CHOSEN] - stats[Stat.LOGS])
        factor = factor * miss.clamp_min(0) ** spec.focal_gamma
    if spec.max_confidence != float("inf"):
        # Not `<`: a NaN must show in the loss, be it in a logit or in a weak label.
        sure = (-stats[Stat.LOGS]).exp() >= spec.max_confidence
        factor = torch.where(sure & ~stats[Stat.MASS].isnan(), 0.0, factor)
    stats[Stat.FACTOR] = torch.where(call.inputs.counted(), factor, 0.0)


def set_loss(call: RowCall, self_diff: Tensor | float) -> None:
    """Fill LOSS from the rest of the record; ``self_diff`` is z - M of the self class."""
    stats, spec, rest = call.stats, call.spec, call.inputs.rest
    logs, mass, a = stats[Stat.LOGS], stats[Stat.MASS], stats[Stat.COEF]
    topk_mass = mass if rest is None else mass - rest
    weak = topk_mass * logs - stats[Stat.LINEAR]
    if rest is not None:
        weak = weak - torch.where(rest != 0, rest * stats[Stat.TAIL], 0.0)
    if spec.smoothing:
        even = spec.smoothing * mass
        uniform = torch.where(even != 0, even * (logs - stats[Stat.MEAN]), 0.0)
        weak = (1 - spec.smoothing) * weak + uniform
    # A coefficient of 1 removes an impossible label (+inf), but no NaN.
    removed = (a == 1) & weak.isinf() & mass.isfinite()
    row = torch.where(removed, 0.0, (1 - a) * weak)
    row = row + torch.where(a != 0, a * (logs - self_diff), 0.0)
    if spec.z_loss:
        row = row + spec.z_loss * (stats[Stat.MAX] + logs).square()
    # A factor of 0 excludes the row even where its weak label is impossible (loss +inf).
    stats[Stat.LOSS] = torch.where(stats[Stat.FACTOR] != 0, row * stats[Stat.FACTOR], 0.0)
