"""Pass, select, fix up: one loss call on one backend, without autograd.

1. pass: each row is read once, its record is filled, and (when a gradient is needed) the row's
   gradient is written once, with every self-target gate taken as open.
2. select: a batch threshold is an order statistic of N scores from that record.
3. fix-up: rows whose gate turns out closed get their few top-k entries overwritten, computed
   again in fp32 from the record.

Step 3 works because the dense part of a row's gradient is p times a number that the gate only
rescales. With a residual, smoothing or dense weak labels the gate reaches every entry in another
way, so those calls make one pass for the record, select, and then write the gradient in a second.
On the CPU, dense weak labels take the threshold of a sample of rows in the pass instead, and the
few rows that it misjudges are passed again.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from w2s_fast.errors import W2SError, nearest
from w2s_fast.ops import dispatch
from w2s_fast.ops.balanced import api as _balanced  # noqa: F401 - registers its operator
from w2s_fast.ops.checks import check_coefficient, check_total
from w2s_fast.ops.cross_entropy.ref import dense_weak, soft_capped
from w2s_fast.ops.loss_call import Index, LossResult, LossSpec, RowCall, Stat, new_record
from w2s_fast.ops.quantile import api as quantile_op
from w2s_fast.ops.targets import LossInputs

NEW = "new"
RULES = ("none", "prior", "median", "argmax", "fixed")
BATCH_RULES = ("prior", "median")  # their threshold is a statistic of the batch
BALANCED_CLASSES = 64  # most classes of rule "prior"; its work grows with their square
_LEAST_GUESSED = 256  # rows from which on a batch threshold is guessed from a sample
_NAMED_THRESHOLDS = ("prior", "median", "argmax")


def make_spec(
    p: LossInputs,
    aux: float | Tensor,
    threshold: str | float | None,
    smoothing: float,
    softcap: float,
    z_loss: float,
    record: bool = True,
    entropy: bool = True,
) -> LossSpec:
    """Return the spec of a public call, whose ``threshold`` is a rule name or a probability."""
    rule, fixed = "none", None
    # Coefficient 0 known in advance: the plain weak loss, no threshold to compute.
    if threshold is not None or isinstance(aux, Tensor) or aux != 0:
        rule, fixed = _named_rule(threshold, p)
    return LossSpec(rule, aux, fixed, smoothing, 0.0, math.inf, softcap, z_loss, record, entropy)


def _named_rule(threshold: str | float | None, p: LossInputs) -> tuple[str, Tensor | float | None]:
    two = p.logits.shape[1] == 2
    if threshold is None:
        return ("prior" if two else "argmax"), None
    if isinstance(threshold, str):
        if threshold not in _NAMED_THRESHOLDS:
            raise W2SError(
                f"threshold is {threshold!r}; expected a number or one of {_NAMED_THRESHOLDS}"
                f"{nearest(threshold, _NAMED_THRESHOLDS)}"
            )
        return threshold, None
    if not 0.0 <= threshold <= 1.0:
        raise W2SError(f"threshold is {threshold}; expected a probability in [0, 1] or a rule name")
    at = threshold
    if two:
        # P(class 1) > t  iff  z_0 - z_1 < log((1 - t) / t)
        return "fixed", (
            math.inf if at == 0 else -math.inf if at == 1 else math.log1p(-at) - math.log(at)
        )
    return "fixed", torch.full((), at, dtype=p.accumulator, device=p.logits.device)


def check_spec(r: LossSpec, p: LossInputs, most: int = 2) -> None:
    """Raise ``W2SError`` for a rule, coefficient or threshold that does not fit the inputs.

    ``most`` is the largest number of classes for which the caller can serve rule ``prior``.
    """
    v = p.logits.shape[1]
    if r.rule not in RULES:
        raise W2SError(
            f"rule {r.rule!r} is unknown; expected one of {RULES}{nearest(r.rule, RULES)}"
        )
    if isinstance(r.aux, Tensor):
        check_coefficient("aux", r.aux)
    elif not 0.0 <= r.aux <= 1.0:
        raise W2SError(f"aux is {r.aux}; expected a coefficient in [0, 1]")
    if r.rule == "prior" and not 2 <= v <= most:
        raise W2SError(
            f"threshold 'prior' is for 2 to {most} classes here, logits have {v}; use 'argmax', "
            "'median' or a float"
        )
    shape = tuple(r.threshold.shape) if isinstance(r.threshold, Tensor) else ()
    if r.threshold is not None and shape != (expected := (v,) if is_balanced(r.rule, v) else ()):
        raise W2SError(f"threshold has shape {shape}; rule {r.rule!r} expects {expected}")
    if r.rule == "argmax" and v == 2:
        raise W2SError("threshold 'argmax' is for more than two classes; use 0.5 for two")
    if r.rule == "fixed" and r.threshold is None:
        raise W2SError("rule 'fixed' needs a threshold")
    if not 0.0 <= r.smoothing < 1.0:
        raise W2SError(f"smoothing is {r.smoothing}; expected a number in [0, 1)")
    if not 0.0 <= r.softcap < math.inf:
        raise W2SError(f"softcap is {r.softcap}; expected a number in [0, inf)")
    if not r.focal_gamma >= 0:
        raise W2SError(f"focal_gamma is {r.focal_gamma}; expected a number of at least 0")
    if math.isnan(r.max_confidence):
        raise W2SError("max_confidence is nan; expected a probability, or inf for none")
    if not math.isfinite(r.z_loss):
        raise W2SError(f"z_loss is {r.z_loss}; expected a finite factor of lse^2")


def is_balanced(rule: str, v: int) -> bool:
    """Return whether hard classes come from a class bias (V,) instead of a 0-d threshold."""
    return rule == "prior" and v > 2


def normaliser(p: LossInputs, weight: Tensor | None = None) -> Tensor:
    """Return 0-d: the sum of the weights of rows that count (their number without weights).

    ``weight`` replaces ``p.weight`` where its gradient is needed.
    """
    n = p.logits.shape[0]
    weight = p.weight if weight is None else weight.to(p.accumulator)
    if weight is not None:
        return torch.where(p.counted(), weight, 0.0).sum()
    if p.kind != "hard":
        return torch.full((), float(n), dtype=p.accumulator, device=p.logits.device)
    return p.counted().sum(dtype=p.accumulator)


def reduce_rows(
    p: LossInputs, row: Tensor, weight: Tensor | None, reduction: str
) -> tuple[Tensor, Tensor]:
    """Return the loss (0-d, or (N,) for ``none``) and normaliser, differentiable in the weights."""
    total = normaliser(p, weight)
    loss = row if weight is None else row * weight.to(row.dtype)
    if reduction != "none":
        loss = loss.sum()
    if reduction == "mean":
        check_total(total)
        loss = torch.where(total > 0, loss / torch.where(total > 0, total, 1.0), 0.0)
    return loss, total


def weak_prior(p: LossInputs) -> Tensor:
    """Return 0-d: mean weak P(class 1) over the rows that count, in [0, 1]."""
    one = dense_weak(p, p.accumulator)[:, 1]
    counted = p.counted()
    total = torch.where(counted, one, 0.0).sum()
    return (total / counted.sum().clamp_min(1)).clamp(0.0, 1.0)


def class_mass(p: LossInputs) -> Tensor:
    """Return (V,): mean weak mass of each class over the rows that count."""
    counted = p.counted()
    total = torch.where(counted.unsqueeze(1), dense_weak(p, p.accumulator), 0.0).sum(0)
    return total / counted.sum().clamp_min(1)


def balance(p: LossInputs, bias: Tensor | None, softcap: float) -> tuple[Tensor, Tensor]:
    """Return class bias (V,) and hard classes (N,): of these rows, or for the given bias."""
    z = soft_capped(p.logits.detach().to(p.accumulator), softcap)
    if bias is not None:
        return bias, (z + bias).argmax(1)
    return torch.ops.w2s_fast.balanced_bias(z, class_mass(p), p.counted())


def batch_threshold(
    p: LossInputs, rule: str, stats: Tensor | None = None, softcap: float = 0.0
) -> Tensor:
    """Return the 0-d threshold in SCORE units, exact over counted rows; +inf if there are none.

    Rule ``prior`` with more than two classes: the class bias (V,) of ``balance``.
    """
    if is_balanced(rule, p.logits.shape[1]):
        return balance(p, None, softcap)[0]
    counted = p.counted()
    q = weak_prior(p) if rule == "prior" else 0.5
    if stats is not None:
        score = stats[Stat.SCORE]
    elif p.logits.shape[1] == 2 and not softcap:
        z = p.logits.detach().to(p.accumulator)
        score = z[:, 0] - z[:, 1]
    else:  # by the kernel that will compare: each rounds a tanh and a sum in its own way
        stats, index = new_record(p)
        dispatch.backend("cross_entropy", p.logits).rows(
            RowCall(p, LossSpec(softcap=softcap, entropy=False), stats, index)
        )
        score = stats[Stat.SCORE]
    return quantile_op.masked_quantile(score, q, counted)


def solve(p: LossInputs, spec: LossSpec, into: Tensor | str | None, mean: bool) -> LossResult:
    """Run one call.

    ``into`` (N, V) receives the gradient and may be the logits' own memory; ``NEW`` allocates it;
    with None no gradient is computed.
    """
    check_spec(spec, p, BALANCED_CLASSES)
    kernels, v = dispatch.backend("cross_entropy", p.logits), p.logits.shape[1]
    grad = kernels.gradient_buffer(p, any_stride=True) if isinstance(into, str) else into
    if in_one_call(p, spec, kernels):
        return kernels.two_class(p, spec, grad, mean)
    total = normaliser(p)
    threshold = spec.threshold_tensor(p)
    call = RowCall(
        p, spec, *new_record(p), spec.row_rule(v), grad=grad, scale=gradient_scale(total, mean)
    )
    if is_balanced(spec.rule, v):
        threshold, call.index[Index.SELF] = balance(p, threshold, spec.softcap)
        kernels.rows(call)
    elif threshold is None and spec.rule in BATCH_RULES and v > 2:
        threshold = _gate_after_pass(call, kernels)
    else:
        if threshold is None and spec.rule in BATCH_RULES:
            threshold = batch_threshold(p, spec.rule, softcap=spec.softcap)
        call.threshold = threshold
        kernels.rows(call)
    loss = total_loss(p, call.stats[Stat.LOSS], total if mean else None)
    return LossResult(call.stats, call.index, loss, total, threshold, (call.grad,))


def in_one_call(p: LossInputs, spec: LossSpec, kernels: Any) -> bool:
    """Return whether the ``two_class`` of a backend does a call as a whole."""
    return p.logits.shape[1] == 2 and p.kind != "sparse" and kernels.takes_two_class(p, spec)


def sums_in_one_call(p: LossInputs, spec: LossSpec) -> bool:
    """Return whether that call can also sum the statistics of its rows."""
    kernels = dispatch.backend("cross_entropy", p.logits)
    return kernels.SUMS_TWO_CLASS and in_one_call(p, spec, kernels)


def gradient_scale(total: Tensor, mean: bool) -> Tensor:
    """Return the 0-d factor of every row's gradient besides its weight: 1 / normaliser, or 1."""
    if not mean:
        return torch.ones_like(total)
    check_total(total)
    return torch.where(total > 0, 1 / total, 0.0)


def total_loss(p: LossInputs, rows: Tensor, divisor: Tensor | None) -> Tensor:
    """Sum or average in fp64: N numbers cost nothing, and the mean of one row is that row."""
    value = (rows.double() if p.weight is None else rows.double() * p.weight).sum()
    if divisor is not None:
        value = torch.where(divisor > 0, value / divisor, 0.0)
    return value.to(rows.dtype)


def _gate_after_pass(call: RowCall, kernels: Any) -> Tensor:
    """Make one pass with open gates, select the threshold, and close gates; return the threshold.

    On return ``call.grad`` holds the gradient if one is needed.
    """
    p, spec, grad = call.inputs, call.spec, call.grad
    assert call.scale is not None
    if kernels.GUESSES_GATES and _may_guess(call):
        return _gate_by_guess(call, kernels)
    repairable = p.kind != "dense" and p.rest is None and spec.smoothing == 0
    if not (repairable and kernels.FIXES_IN_PLACE):
        call.grad = None
    if call.grad is not None and p.ids is not None:
        # In place the logits are overwritten before the fix-up: keep the ones it needs.
        call.topk_diffs = torch.empty(p.ids.shape, dtype=p.accumulator, device=p.ids.device)
    kernels.rows(call)
    call.threshold = batch_threshold(p, spec.rule, call.stats)
    kernels.fixup(call)
    if grad is not None and call.grad is None:
        call.grad, n = grad, p.logits.shape[0]
        call.row_scale = call.scale.expand(n) if p.weight is None else call.scale * p.weight
        kernels.gradient(call)
    return call.threshold


def _may_guess(call: RowCall) -> bool:
    """Return whether rows can be passed again: dense labels, and logits that outlive the pass."""
    p, grad = call.inputs, call.grad
    apart = grad is not None and grad.data_ptr() != p.logits.data_ptr()
    return apart and p.kind == "dense" and p.logits.shape[0] >= _LEAST_GUESSED


def _gate_by_guess(call: RowCall, kernels: Any) -> Tensor:
    """Make one pass with the threshold of a sample of rows, and pass again the rows it misjudges.

    With dense labels a gate changes every entry of its row: after a pass with open gates all rows
    would have to be read a second time. The rows that lie between the two medians are few.
    """
    p, spec, n = call.inputs, call.spec, call.inputs.logits.shape[0]
    step = min(32, n // 32)
    sample = _inputs_of(p, slice(0, None, step))
    stats, index = new_record(sample)
    kernels.rows(RowCall(sample, spec, stats, index, call.rule))
    guess = batch_threshold(sample, spec.rule, stats)
    call.threshold = guess
    kernels.rows(call)
    threshold = batch_threshold(p, spec.rule, call.stats)
    score = call.stats[Stat.SCORE]
    misjudged = ((score >= threshold) != (score >= guess)).nonzero().squeeze(1)
    call.threshold = threshold
    if misjudged.numel() > n // 8:
        kernels.rows(call)
    elif misjudged.numel():
        _pass_again(call, misjudged, kernels)
    return threshold


def _pass_again(call: RowCall, rows: Tensor, kernels: Any) -> None:
    """Replace record and gradient of these rows by those for the threshold of the call."""
    assert call.grad is not None
    part = _inputs_of(call.inputs, rows)
    stats, index = new_record(part)
    grad = torch.empty_like(part.logits)
    kernels.rows(
        RowCall(part, call.spec, stats, index, call.rule, call.threshold, grad, call.scale)
    )
    call.stats[:, rows], call.index[:, rows], call.grad[rows] = stats, index, grad


def _inputs_of(p: LossInputs, rows: slice | Tensor) -> LossInputs:
    """Return the inputs of some rows with dense labels."""
    assert p.probs is not None
    weight = None if p.weight is None else p.weight[rows].contiguous()
    return p._replace(logits=p.logits[rows], probs=p.probs[rows], weight=weight)
