"""Two doors from autograd to the fused head.

Eager mean and sum make all gradients in forward, 6 N V D operations, and backward hands them over.
fp16 gradients wait for backward, where the loss scale is known (see ``cross_entropy/autograd.py``):
a batch of one chunk keeps its logits until then, several chunks are made again, 8 N V D.
``reduction="none"`` and ``torch.compile`` go through two registered operators; backward knows the
upstream of every row only then and makes the logits again, too. Neither is differentiable twice;
both say so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from w2s_fast.ops.cross_entropy.algorithm import Request, backend
from w2s_fast.ops.cross_entropy.autograd import (
    TWICE,
    fake_record,
    filled_record,
    needs_upstream,
    refuse,
    row_scale,
    scaled,
    snapshot,
    weight_gradient,
)
from w2s_fast.ops.dispatch import LIBRARY
from w2s_fast.ops.fused_linear.chunks import (
    Gradients,
    Head,
    Wanted,
    chunks,
    fits,
    shape_only,
    solve_linear,
    whole,
)
from w2s_fast.ops.results import LinearSolution
from w2s_fast.ops.row_stats import Knobs
from w2s_fast.ops.targets import Problem
from w2s_fast.ops.transforms import differentiable, refuse_batched


@dataclass(slots=True)
class LinearCall:
    """One eager call on its way through autograd; ``solution`` is filled by the forward."""

    problem: Problem | None
    request: Request
    memory_mib: float
    fp32_head_gradient: bool
    mean: bool
    weight_dtype: torch.dtype | None
    solution: LinearSolution | None = None


class FusedLinearLoss(torch.autograd.Function):
    """Mean or sum with the gradients of hidden, head and bias made in forward."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        head: Tensor,
        bias: Tensor | None,
        weight: Tensor | None,
        call: LinearCall,
    ) -> Tensor:
        p, call.problem = call.problem, None
        assert p is not None
        snapshot(call.request)
        ctx.call, ctx.ignore_index = call, p.ignore_index
        ctx.save_for_backward(hidden, head, bias, p.ids, p.probs, p.rest, p.weight)
        x = Head(hidden, head, bias, call.memory_mib, call.fp32_head_gradient)
        wanted = Wanted(*ctx.needs_input_grad[:3])
        keep = wanted.any and needs_upstream(hidden.dtype)
        if keep:
            wanted = Wanted()
        call.solution = solution = solve_linear(x, p, call.request, wanted, call.mean, keep)
        # Not the tensor itself: it would own ctx, and ctx owns the solution it lies in.
        return solution.total.detach()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(TWICE.format("linear_cross_entropy"))
        s: LinearSolution = ctx.call.solution
        wanted = Wanted(*ctx.needs_input_grad[:3])
        x, p = _saved(ctx)
        grad_weight = None
        if ctx.needs_input_grad[3]:
            dtype = ctx.call.weight_dtype
            grad_weight = weight_gradient(p, s, ctx.call.mean, upstream, dtype)
        if not wanted.any:
            return None, None, None, grad_weight, None
        if needs_upstream(x.hidden.dtype):
            refuse_batched("linear_cross_entropy in fp16", upstream)
            return (*_late_gradients(x, p, ctx.call, upstream, wanted), grad_weight, None)
        if s.hidden is None and s.head is None and s.bias is None:
            # The first backward has handed its gradients over: make them again.
            s = solve_linear(x, p, ctx.call.request, wanted, ctx.call.mean)
        grads = (s.hidden, s.head, s.bias)
        s.hidden = s.head = s.bias = None
        return (*(None if g is None else scaled(g, upstream) for g in grads), grad_weight, None)


def _late_gradients(
    x: Head, p: Problem, call: LinearCall, upstream: Tensor, wanted: Wanted
) -> tuple[Tensor | None, ...]:
    """Gradients from the record, and from the logits where the solution still has them."""
    s, r = call.solution, call.request
    assert s is not None
    logits, s.logits = s.logits, None
    scale = row_scale(p, s.normaliser, call.mean, upstream)
    knobs = Knobs(smoothing=r.smoothing, softcap=r.softcap, z_loss=r.z_loss)
    return gradients_from_record(x, p, knobs, s.stats, s.index, scale, wanted, logits)


def _saved(ctx: Any) -> tuple[Head, Problem]:
    hidden, head, bias, ids, probs, rest, weight = ctx.saved_tensors
    p = _problem(hidden, head, ids, probs, rest, weight, ctx.ignore_index)
    return Head(hidden, head, bias, ctx.call.memory_mib, ctx.call.fp32_head_gradient), p


def _problem(
    hidden: Tensor,
    head: Tensor,
    ids: Tensor | None,
    probs: Tensor | None,
    rest: Tensor | None,
    weight: Tensor | None,
    ignore_index: int,
) -> Problem:
    shape = shape_only(hidden.shape[0], head.shape[0], hidden)
    return Problem(shape, ids, probs, rest, weight, ignore_index)


LIBRARY.define(
    "linear_weak_ce(Tensor hidden, Tensor head, Tensor? bias, Tensor? ids, Tensor? probs, "
    "Tensor? rest, Tensor? weight, Tensor aux, Tensor? threshold, str rule, int ignore_index, "
    "float smoothing, float gamma, float cap, float softcap, float z_loss, float memory_mib, "
    "bool fp32_head_gradient) -> (Tensor loss, Tensor stats, Tensor index, Tensor threshold)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
LIBRARY.define(
    "linear_weak_ce_backward(Tensor upstream, Tensor hidden, Tensor head, Tensor? bias, "
    "Tensor? ids, Tensor? probs, Tensor? rest, Tensor? weight, Tensor stats, Tensor index, "
    "int ignore_index, float smoothing, float softcap, float z_loss, float memory_mib, "
    "bool fp32_head_gradient, bool[3] wanted) -> (Tensor hidden, Tensor head, Tensor bias)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


@torch.library.impl(LIBRARY, "linear_weak_ce", "CompositeExplicitAutograd")
def _linear_weak_ce(
    hidden: Tensor,
    head: Tensor,
    bias: Tensor | None,
    ids: Tensor | None,
    probs: Tensor | None,
    rest: Tensor | None,
    weight: Tensor | None,
    aux: Tensor,
    threshold: Tensor | None,
    rule: str,
    ignore_index: int,
    smoothing: float,
    gamma: float,
    cap: float,
    softcap: float,
    z_loss: float,
    memory_mib: float,
    fp32_head_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    p = _problem(hidden, head, ids, probs, rest, weight, ignore_index)
    request = Request(rule, aux, threshold, smoothing, gamma, cap, softcap, z_loss)
    s = solve_linear(Head(hidden, head, bias, memory_mib), p, request, Wanted(), False)
    return filled_record(s.stats, s.index, s.threshold, smoothing, rest)


@torch.library.register_fake("w2s_fast::linear_weak_ce")
def _linear_weak_ce_fake(hidden: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return fake_record(hidden)


@torch.library.impl(LIBRARY, "linear_weak_ce_backward", "CompositeExplicitAutograd")
def _linear_weak_ce_backward(
    upstream: Tensor,
    hidden: Tensor,
    head: Tensor,
    bias: Tensor | None,
    ids: Tensor | None,
    probs: Tensor | None,
    rest: Tensor | None,
    weight: Tensor | None,
    stats: Tensor,
    index: Tensor,
    ignore_index: int,
    smoothing: float,
    softcap: float,
    z_loss: float,
    memory_mib: float,
    fp32_head_gradient: bool,
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    p = _problem(hidden, head, ids, probs, rest, weight, ignore_index)
    x = Head(hidden, head, bias, memory_mib, fp32_head_gradient)
    knobs = Knobs(smoothing=smoothing, softcap=softcap, z_loss=z_loss)
    # The upstream already holds the row weights, and may be an expanded scalar.
    upstream = upstream.to(stats.dtype).contiguous()
    grads = gradients_from_record(x, p, knobs, stats, index, upstream, Wanted(*wanted))
    a, b, c = (hidden.new_empty(0) if g is None else g for g in grads)
    return a, b, c


def gradients_from_record(
    x: Head,
    p: Problem,
    knobs: Knobs,
    stats: Tensor,
    index: Tensor,
    row_scale: Tensor,
    wanted: Wanted,
    logits: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of hidden, head and bias from the record and logits made again.

    ``logits`` (N, V) of all rows, where a forward has kept them, are overwritten instead.
    """
    grads = Gradients(x, wanted, chunked=logits is None and not fits(x, p))
    for chunk in chunks(x, p) if logits is None else [whole(x, p, logits)]:
        z, at = chunk.problem.logits, chunk.rows
        some, few = stats[:, at].contiguous(), index[:, at].contiguous()
        backend(chunk.problem).gradient(chunk.problem, knobs, some, few, row_scale[at], z)
        grads.add(z, at)
    return grads.result()


@torch.library.register_fake("w2s_fast::linear_weak_ce_backward")
def _linear_weak_ce_backward_fake(
    upstream: Tensor, hidden: Tensor, head: Tensor, bias: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    wanted = rest[-1]
    return (
        torch.empty_like(hidden) if wanted[0] else hidden.new_empty(0),
        torch.empty_like(head) if wanted[1] else hidden.new_empty(0),
        head.new_empty(head.shape[0]) if wanted[2] else hidden.new_empty(0),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    hidden, head, bias, ids, probs, rest, weight, *_ = inputs
    _, stats, index, threshold = output
    ctx.save_for_backward(hidden, head, bias, ids, probs, rest, weight, stats, index)
    ignore_index, smoothing, _, _, softcap, z_loss, memory_mib, fp32 = inputs[10:]
    ctx.constants = ignore_index, smoothing, softcap, z_loss, memory_mib, fp32
    ctx.mark_non_differentiable(stats, index, threshold)
    ctx.set_materialize_grads(False)


def _rows_backward(ctx: Any, upstream: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    wanted = [bool(w) for w in ctx.needs_input_grad[:3]]
    grads: tuple[Tensor | None, ...] = (None, None, None)
    if upstream is not None and any(wanted):
        made = torch.ops.w2s_fast.linear_weak_ce_backward(
            upstream, *ctx.saved_tensors, *ctx.constants, wanted
        )
        grads = tuple(g if w else None for g, w in zip(made, wanted, strict=True))
    return (*grads, *(None,) * 15)


differentiable("linear_weak_ce", "linear_cross_entropy", _rows_backward, _save)
differentiable("linear_weak_ce_backward", "linear_cross_entropy", refuse("linear_cross_entropy"))
