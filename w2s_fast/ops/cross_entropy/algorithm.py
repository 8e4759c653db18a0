"""Sweep, select, fix up: one loss call on one backend, without autograd.

1. sweep: each row is read once, its record is filled, and (when a gradient is wanted) the row's
   gradient is written once, with every self-target gate taken as open.
2. select: a batch threshold is an order statistic of N scores from that record.
3. fix-up: rows whose gate turns out closed get their few listed entries overwritten, computed
   again in fp32 from the record.

Step 3 works because the dense part of a row's gradient is p times a number that the gate only
rescales. With a residual, smoothing or dense weak labels the gate reaches every entry in another
way, so those calls sweep for the record, select, and then write the gradient: one more read.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from w2s_fast.errors import W2SError, nearest
from w2s_fast.ops import dispatch
from w2s_fast.ops.balanced import api as _balanced  # noqa: F401 - registers its operator
from w2s_fast.ops.checks import check_coefficient
from w2s_fast.ops.cross_entropy.ref import dense_weak, soft_capped
from w2s_fast.ops.quantile import api as quantile_op
from w2s_fast.ops.results import Solution
from w2s_fast.ops.row_stats import Index, Knobs, Stat
from w2s_fast.ops.targets import Problem

NEW = "new"
_THRESHOLDS = ("prior", "median", "argmax")
RULES = ("none", "prior", "median", "argmax", "fixed")
BALANCED_CLASSES = 64  # most classes of rule "prior"; its work grows with their square


@dataclass(slots=True)
class Request:
    """The self-target and the row factors of one call; ``threshold`` is in SCORE units.

    For rule ``prior`` and more than two classes it is a class bias (V,) instead.

    Without ``record`` a backend may leave out the per-row record where it can do without.
    """

    rule: str = "none"
    aux: float | Tensor = 0.0
    threshold: Tensor | None = None
    smoothing: float = 0.0
    gamma: float = 0.0
    cap: float = float("inf")
    softcap: float = 0.0
    z_loss: float = 0.0
    record: bool = True


def make_request(threshold: str | float | None, aux: float | Tensor, p: Problem) -> Request:
    """The rule that the public ``threshold`` names."""
    two = p.logits.shape[1] == 2
    if threshold is None:
        return Request("prior" if two else "argmax", aux)
    if isinstance(threshold, str):
        if threshold not in _THRESHOLDS:
            raise W2SError(
                f"threshold is {threshold!r}; expected a number or one of {_THRESHOLDS}"
                f"{nearest(threshold, _THRESHOLDS)}"
            )
        return Request(threshold, aux)
    if not 0.0 <= threshold <= 1.0:
        raise W2SError(f"threshold is {threshold}; expected a probability in [0, 1] or a rule name")
    at = threshold
    if two:
        # P(class 1) > t  iff  z_0 - z_1 < log((1 - t) / t)
        at = math.inf if at == 0 else -math.inf if at == 1 else math.log1p(-at) - math.log(at)
    fixed = torch.full((), at, dtype=p.accumulator, device=p.logits.device)
    return Request("fixed", aux, fixed)


def check_request(r: Request, p: Problem, most: int = 2) -> None:
    """Raise ``W2SError`` for a rule, coefficient or threshold that does not fit the problem.

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
    shape = () if r.threshold is None else tuple(r.threshold.shape)
    if r.threshold is not None and shape != (wanted := (v,) if is_balanced(r.rule, v) else ()):
        raise W2SError(f"threshold has shape {shape}; rule {r.rule!r} expects {wanted}")
    if r.rule == "argmax" and v == 2:
        raise W2SError("threshold 'argmax' is for more than two classes; use 0.5 for two")
    if r.rule == "fixed" and r.threshold is None:
        raise W2SError("rule 'fixed' needs a threshold")
    if not 0.0 <= r.smoothing < 1.0:
        raise W2SError(f"smoothing is {r.smoothing}; expected a number in [0, 1)")
    if not 0.0 <= r.softcap < math.inf:
        raise W2SError(f"softcap is {r.softcap}; expected a number in [0, inf)")
    if not r.gamma >= 0:
        raise W2SError(f"focal_gamma is {r.gamma}; expected a number of at least 0")
    if math.isnan(r.cap):
        raise W2SError("max_confidence is nan; expected a probability, or inf for none")
    if not math.isfinite(r.z_loss):
        raise W2SError(f"z_loss is {r.z_loss}; expected a finite factor of lse^2")


def is_balanced(rule: str, v: int) -> bool:
    """Whether hard classes come from a class bias (V,) instead of a 0-d threshold."""
    return rule == "prior" and v > 2


def normaliser(p: Problem, weight: Tensor | None = None) -> Tensor:
    """0-d: the sum of the weights of kept rows (their number without weights).

    ``weight`` replaces ``p.weight`` where its gradient is wanted.
    """
    n = p.logits.shape[0]
    weight = p.weight if weight is None else weight.to(p.accumulator)
    if weight is not None:
        return torch.where(p.keep(), weight, 0.0).sum()
    if p.kind != "hard":
        return torch.full((), float(n), dtype=p.accumulator, device=p.logits.device)
    return p.keep().sum(dtype=p.accumulator)


def reduce_rows(
    p: Problem, row: Tensor, weight: Tensor | None, reduction: str
) -> tuple[Tensor, Tensor]:
    """Weighted loss (0-d, or (N,) for ``none``) and normaliser; differentiable in the weights."""
    total = normaliser(p, weight)
    loss = row if weight is None else row * weight.to(row.dtype)
    if reduction != "none":
        loss = loss.sum()
    if reduction == "mean":
        loss = torch.where(total > 0, loss / torch.where(total > 0, total, 1.0), 0.0)
    return loss, total


def weak_prior(p: Problem) -> Tensor:
    """0-d: mean weak P(class 1) over kept rows of a two-class problem, in [0, 1]."""
    one = dense_weak(p, p.accumulator)[:, 1]
    kept = p.keep()
    total = torch.where(kept, one, 0.0).sum()
    return (total / kept.sum().clamp_min(1)).clamp(0.0, 1.0)


def class_mass(p: Problem) -> Tensor:
    """(V,) mean weak mass of each class over kept rows."""
    kept = p.keep()
    total = torch.where(kept.unsqueeze(1), dense_weak(p, p.accumulator), 0.0).sum(0)
    return total / kept.sum().clamp_min(1)


def balance(p: Problem, bias: Tensor | None, softcap: float) -> tuple[Tensor, Tensor]:
    """Class bias (V,) and hard classes (N,): of these rows, or of the bias that is given."""
    z = soft_capped(p.logits.detach().to(p.accumulator), softcap)
    if bias is not None:
        return bias, (z + bias).argmax(1)
    return torch.ops.w2s_fast.balanced_bias(z, class_mass(p), p.keep())


def batch_threshold(
    p: Problem, rule: str, stats: Tensor | None = None, softcap: float = 0.0
) -> Tensor:
    """0-d threshold in SCORE units, exact over the kept rows; +inf if there are none.

    Rule ``prior`` with more than two classes: the class bias (V,) of ``balance``.
    """
    if is_balanced(rule, p.logits.shape[1]):
        return balance(p, None, softcap)[0]
    kept = p.keep()
    q = weak_prior(p) if rule == "prior" else 0.5
    if stats is not None:
        score = stats[Stat.SCORE]
    elif p.logits.shape[1] == 2 and not softcap:
        z = p.logits.detach().to(p.accumulator)
        score = z[:, 0] - z[:, 1]
    else:  # by the kernel that will decide: each rounds a tanh and a sum in its own way
        stats, index = record(p)
        sweep(p, Knobs(softcap=softcap), stats, index, None)
        score = stats[Stat.SCORE]
    return quantile_op.masked_quantile(score, q, kept)


def record(p: Problem) -> tuple[Tensor, Tensor]:
    """(12, N) and (3, N) for a sweep to fill; what it does not need stays 0, not chance."""
    n, device = p.logits.shape[0], p.logits.device
    stats = torch.zeros((len(Stat), n), dtype=p.accumulator, device=device)
    return stats, torch.empty((len(Index), n), dtype=torch.int64, device=device)


def backend(p: Problem) -> Any:
    """The module that serves this problem."""
    return dispatch.OPS["cross_entropy"].backend(p.logits.device, p.logits.dtype)


def gradient_buffer(p: Problem, serve: Any, any_stride: bool = False) -> Tensor:
    """Uninitialised (N, V) in the dtype of the logits, contiguous unless ``any_stride``."""
    if any_stride and hasattr(serve, "buffer_in_step"):
        return serve.buffer_in_step(p)
    allocate = getattr(serve, "gradient_buffer", None)
    if allocate is not None:
        return allocate(p)
    return torch.empty(p.logits.shape, dtype=p.logits.dtype, device=p.logits.device)


def scale(grad: Tensor, upstream: Tensor) -> None:
    """Multiply a finished gradient by the upstream scalar, in place and without a host sync."""
    dispatch.OPS["cross_entropy"].backend(grad.device, grad.dtype).scale_(grad, upstream)


def sweep(
    p: Problem,
    knobs: Knobs,
    stats: Tensor,
    index: Tensor,
    grad: Tensor | None,
    scale: Tensor | float = 1.0,
) -> None:
    """One pass over the rows on the chosen backend."""
    if not isinstance(scale, Tensor):
        scale = torch.full((), scale, dtype=p.accumulator, device=p.logits.device)
    backend(p).rows(p, knobs, stats, index, grad, scale)


def knobs_for(p: Problem, r: Request, threshold: Tensor | None) -> Knobs:
    """The per-row rule once the threshold is known (None: gates open)."""
    if r.rule == "none":
        rule = "none"
    elif p.logits.shape[1] == 2:
        rule = "margin"
    elif r.rule == "prior":
        rule, threshold = "given", None
    else:
        rule = "argmax" if r.rule == "argmax" else "gate"
    return Knobs(rule, r.aux, threshold, r.smoothing, r.gamma, r.cap, r.softcap, r.z_loss)


def solve(p: Problem, r: Request, into: Tensor | str | None, mean: bool) -> Solution:
    """Run one call.

    ``into`` (N, V) receives the gradient and may be the logits' own memory; ``NEW`` allocates it,
    None leaves it out.
    """
    check_request(r, p, BALANCED_CLASSES)
    serve = backend(p)
    grad = gradient_buffer(p, serve, any_stride=True) if isinstance(into, str) else into
    two_class = getattr(serve, "two_class", None)
    plain = p.logits.shape[1] == 2 and p.kind != "sparse" and not (r.softcap or r.z_loss)
    if two_class is not None and plain:
        return two_class(p, r, grad, mean)
    total = normaliser(p)
    scale = torch.where(total > 0, 1 / total, 0.0) if mean else torch.ones_like(total)
    stats, index = record(p)
    late = r.rule in ("prior", "median") and r.threshold is None
    threshold = r.threshold
    if is_balanced(r.rule, p.logits.shape[1]):
        threshold, index[Index.SELF] = balance(p, threshold, r.softcap)
        late = False
    elif late and p.logits.shape[1] == 2:
        threshold, late = batch_threshold(p, r.rule, softcap=r.softcap), False
    if not late:
        serve.rows(p, knobs_for(p, r, threshold), stats, index, grad, scale)
    else:
        threshold = _late_gate(p, r, serve, stats, index, grad, scale)
    loss = total_loss(p, stats[Stat.LOSS], total if mean else None)
    return Solution(stats, index, loss, total, threshold, grad)


def total_loss(p: Problem, rows: Tensor, divisor: Tensor | None) -> Tensor:
    """Sum or mean in fp64: N numbers cost nothing, and the mean of one row is that row."""
    value = (rows.double() if p.weight is None else rows.double() * p.weight).sum()
    if divisor is not None:
        value = torch.where(divisor > 0, value / divisor, 0.0)
    return value.to(rows.dtype)


def _late_gate(
    p: Problem,
    r: Request,
    serve: Any,
    stats: Tensor,
    index: Tensor,
    grad: Tensor | None,
    scale: Tensor,
) -> Tensor:
    one_sweep = p.kind != "dense" and p.rest is None and r.smoothing == 0
    first = grad if one_sweep and serve.FIXES_IN_PLACE else None
    listed = None
    if first is not None and p.ids is not None:
        # In place the logits are gone by the time of the fix-up: keep the ones it needs.
        listed = torch.empty(p.ids.shape, dtype=p.accumulator, device=p.ids.device)
    serve.rows(p, knobs_for(p, r, None), stats, index, first, scale, listed)
    threshold = batch_threshold(p, r.rule, stats)
    knobs = knobs_for(p, r, threshold)
    serve.fixup(p, knobs, stats, index, first, scale, listed)
    if grad is not None and first is None:
        row_scale = scale.expand(stats.shape[1]) if p.weight is None else scale * p.weight
        serve.gradient(p, knobs, stats, index, row_scale, grad)
    return threshold
