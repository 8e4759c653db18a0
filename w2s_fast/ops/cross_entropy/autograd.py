"""Two doors from autograd to the same sweep.

Eager mean and sum know the upstream factor of every row but for a common scalar, so the forward
sweep also writes the gradient (one read, one write) and backward multiplies that buffer by the
scalar. fp16 is the exception: its small entries would be lost before a loss scale could save them,
so backward writes the gradient from the record once the scalar is known, rounded once (one more
read, but no pass over a finished gradient). Everything else (``reduction="none"``,
``torch.compile``, tensor subclasses) goes through two registered operators, forward from the logits
and backward from the logits and the record. Neither is differentiable twice; both say so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.ops.cross_entropy.algorithm import (
    NEW,
    Request,
    backend,
    gradient_buffer,
    is_balanced,
    scale,
    solve,
)
from w2s_fast.ops.dispatch import LIBRARY
from w2s_fast.ops.results import Solution
from w2s_fast.ops.row_stats import Index, Knobs, Stat
from w2s_fast.ops.targets import Problem
from w2s_fast.ops.transforms import batched, differentiable, refuse_batched

TWICE = (
    "w2s_fast.{} is not differentiable twice: its targets are detached, so a second "
    "derivative would be silently incomplete; do not use create_graph=True through it"
)
_CONSUMED = (
    "second backward through w2s_fast.cross_entropy(inplace=True): the logits were overwritten by "
    "their gradient, which the first backward handed over; use inplace=False with retain_graph=True"
)


@dataclass(slots=True)
class Call:
    """One eager call on its way through autograd; ``solution`` is filled by the forward."""

    problem: Problem | None
    request: Request
    mean: bool
    inplace: bool
    weight_dtype: torch.dtype | None
    solution: Solution | None = None
    consumed: bool = False  # the logits now hold their gradient


class FusedLoss(torch.autograd.Function):
    """Mean or sum with the gradient made in forward."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, weight: Tensor | None, call: Call) -> Tensor:
        p, call.problem = call.problem, None
        assert p is not None
        wanted, for_weight, _ = ctx.needs_input_grad
        late = needs_upstream(p.logits.dtype)
        if for_weight or late:
            call.request.record = True
        snapshot(call.request)
        grad = (p.logits if call.inplace else NEW) if wanted and not late else None
        call.solution = solution = solve(p, call.request, grad, call.mean)
        ctx.call, ctx.ignore_index = call, p.ignore_index
        if grad is p.logits:
            # Whoever saved these logits for its own backward must notice that they are gone.
            torch.autograd.graph.increment_version(logits)
            call.consumed = True
            ctx.save_for_backward(None, p.ids, p.probs, p.rest, p.weight)
        else:
            # Saved, not kept on ctx: freed by backward even where the loss lives on.
            ctx.save_for_backward(p.logits, p.ids, p.probs, p.rest, p.weight)
        # Not the tensor itself: it would own ctx, and ctx owns the solution it lies in.
        return solution.total.detach()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        if torch.is_grad_enabled():
            raise RuntimeError(TWICE.format("cross_entropy"))
        solution: Solution = ctx.call.solution
        wanted, for_weight, _ = ctx.needs_input_grad
        grad_weight = None
        if for_weight:
            _, ids, probs, rest, weight = ctx.saved_tensors
            assert solution.stats is not None
            p = Problem(solution.stats[Stat.LOSS], ids, probs, rest, weight, ctx.ignore_index)
            dtype = ctx.call.weight_dtype
            grad_weight = weight_gradient(p, solution, ctx.call.mean, upstream, dtype)
        if not wanted:
            return None, grad_weight, None
        grad, solution.grad = solution.grad, None
        if grad is None and ctx.call.consumed:
            raise RuntimeError(_CONSUMED)
        if grad is None:
            p = _saved_problem(ctx)
            if needs_upstream(p.logits.dtype):
                refuse_batched("cross_entropy in fp16", upstream)
                return _written(p, ctx.call, upstream), grad_weight, None
            # A later backward with retain_graph: the first one has handed the gradient over.
            grad = solve(p, ctx.call.request, NEW, ctx.call.mean).grad
            assert grad is not None
        return scaled(grad, upstream), grad_weight, None


# Function.apply, less what it spends on ``torch.func``: callers have sent that to the operators.
apply = super(torch.autograd.Function, FusedLoss).apply


def needs_upstream(dtype: torch.dtype) -> bool:
    """Whether a gradient of this dtype must not be rounded before its loss scale is known."""
    return dtype == torch.float16


def scaled(grad: Tensor, upstream: Tensor) -> Tensor:
    """grad times the upstream scalar, rounded once; in place, and without waiting for a GPU."""
    if batched(upstream):  # by is_grads_batched: a gradient for every scalar
        return (grad.to(upstream.dtype) * upstream).to(grad.dtype)
    if grad.device.type != "cpu":
        scale(grad if grad.dim() == 2 else grad.unsqueeze(0), upstream)
    elif upstream.item() != 1.0:
        grad.mul_(upstream)
    return grad


def row_scale(p: Problem, normaliser: Tensor | float, mean: bool, upstream: Tensor) -> Tensor:
    """(N,) dtotal/drow times the upstream scalar, in the precision of the record."""
    scale = upstream.to(p.accumulator)
    if mean:
        count = torch.as_tensor(normaliser, dtype=p.accumulator, device=scale.device)
        scale = torch.where(count > 0, scale / count, 0.0)
    return scale.expand(p.logits.shape[0]) if p.weight is None else scale * p.weight


def weight_gradient(
    p: Problem, s: Any, mean: bool, upstream: Tensor, dtype: torch.dtype | None
) -> Tensor:
    """(N,) gradient of the row weights from a solution's record; ``p`` gives the kept rows."""
    rows = s.stats[Stat.LOSS]
    if mean:
        count = torch.as_tensor(s.normaliser, dtype=rows.dtype, device=rows.device)
        rows = torch.where(p.keep() & (count > 0), (rows - s.total) / count, 0.0)
    return (rows * upstream).to(dtype)


def snapshot(r: Request) -> None:
    """A later backward solves again: schedules and rolling thresholds may have moved on by then."""
    if isinstance(r.aux, Tensor):
        r.aux = r.aux.clone()
    if isinstance(r.threshold, Tensor):
        r.threshold = r.threshold.clone()


def _saved_problem(ctx: Any) -> Problem:
    logits, ids, probs, rest, weight = ctx.saved_tensors
    return Problem(logits, ids, probs, rest, weight, ctx.ignore_index)


def _written(p: Problem, call: Call, upstream: Tensor) -> Tensor:
    """The gradient from the record, rounded once; over the logits where the caller allows it."""
    s, r = call.solution, call.request
    assert s is not None and s.stats is not None and s.index is not None
    serve = backend(p)
    grad = p.logits if call.inplace else gradient_buffer(p, serve, any_stride=True)
    knobs = Knobs(smoothing=r.smoothing, softcap=r.softcap, z_loss=r.z_loss)
    scale = row_scale(p, s.normaliser, call.mean, upstream)
    serve.gradient(p, knobs, s.stats, s.index, scale, grad)
    if call.inplace:
        torch.autograd.graph.increment_version(grad)
        call.consumed = True
    return grad


LIBRARY.define(
    "weak_ce(Tensor logits, Tensor? ids, Tensor? probs, Tensor? rest, Tensor? weight, Tensor aux, "
    "Tensor? threshold, str rule, int ignore_index, float smoothing, float gamma, float cap, "
    "float softcap, float z_loss) "
    "-> (Tensor loss, Tensor stats, Tensor index, Tensor threshold)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
LIBRARY.define(
    "weak_ce_backward(Tensor upstream, Tensor logits, Tensor? ids, Tensor? probs, Tensor? rest, "
    "Tensor? weight, Tensor stats, Tensor index, int ignore_index, float smoothing, "
    "float softcap, float z_loss) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


@torch.library.impl(LIBRARY, "weak_ce", "CompositeExplicitAutograd")
def _weak_ce(
    logits: Tensor,
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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    p = Problem(_columns(logits), ids, probs, rest, weight, ignore_index)
    s = solve(p, Request(rule, aux, threshold, smoothing, gamma, cap, softcap, z_loss), None, False)
    assert s.stats is not None and s.index is not None
    return filled_record(s.stats, s.index, s.threshold, smoothing, rest)


def filled_record(
    stats: Tensor, index: Tensor, threshold: Any, smoothing: float, rest: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(loss, stats, index, threshold) as an operator returns them: everything defined."""
    # Rows of the record that this call has no use for.
    if not smoothing:
        stats[Stat.MEAN] = 0.0
    if rest is None:
        stats[Stat.TAIL] = 0.0
    at = stats.new_full((), float("inf"))
    if threshold is not None:
        # A copy: outputs of an operator must not be its inputs.
        at = torch.as_tensor(threshold, dtype=stats.dtype, device=stats.device).clone()
    return stats[Stat.LOSS].clone(), stats, index, at


@torch.library.register_fake("w2s_fast::weak_ce")
def _weak_ce_fake(logits: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    loss, stats, index, at = fake_record(logits)
    if is_balanced(others[6], logits.shape[1]):
        at = at.new_empty((logits.shape[1],))
    return loss, stats, index, at


def fake_record(like: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What ``filled_record`` returns for the rows of ``like``, without values."""
    n = like.shape[0]
    acc = torch.float64 if like.dtype == torch.float64 else torch.float32
    stats = like.new_empty((len(Stat), n), dtype=acc)
    index = like.new_empty((len(Index), n), dtype=torch.int64)
    return like.new_empty((n,), dtype=acc), stats, index, like.new_empty((), dtype=acc)


@torch.library.impl(LIBRARY, "weak_ce_backward", "CompositeExplicitAutograd")
def _weak_ce_backward(
    upstream: Tensor,
    logits: Tensor,
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
) -> Tensor:
    p = Problem(_columns(logits), ids, probs, rest, weight, ignore_index)
    serve = backend(p)
    grad = gradient_buffer(p, serve)
    knobs = Knobs(smoothing=smoothing, softcap=softcap, z_loss=z_loss)
    # The upstream already holds the row weights, and may be an expanded scalar.
    serve.gradient(p, knobs, stats, index, upstream.to(stats.dtype).contiguous(), grad)
    return grad


@torch.library.register_fake("w2s_fast::weak_ce_backward")
def _weak_ce_backward_fake(upstream: Tensor, logits: Tensor, *_: Any) -> Tensor:
    return torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)


def _columns(logits: Tensor) -> Tensor:
    return logits if logits.stride(1) == 1 or logits.shape[1] == 1 else logits.contiguous()


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, ids, probs, rest, weight, *_ = inputs
    _, stats, index, threshold = output
    ctx.save_for_backward(logits, ids, probs, rest, weight, stats, index)
    smoothing, _, _, softcap, z_loss = inputs[9:]
    ctx.constants = inputs[8], smoothing, softcap, z_loss
    ctx.mark_non_differentiable(stats, index, threshold)
    ctx.set_materialize_grads(False)


def _rows_backward(ctx: Any, upstream: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    grad = None
    if upstream is not None:
        grad = torch.ops.w2s_fast.weak_ce_backward(upstream, *ctx.saved_tensors, *ctx.constants)
    return (grad, *(None,) * 13)


def refuse(name: str) -> Any:
    """A backward that says that ``name`` has no second derivative."""

    def backward(ctx: Any, *_: Any) -> None:
        raise RuntimeError(TWICE.format(name))

    return backward


differentiable("weak_ce", "cross_entropy", _rows_backward, _save)
differentiable("weak_ce_backward", "cross_entropy", refuse("cross_entropy"))


def check_inplace(logits: Tensor) -> None:
    """Raise ``W2SError`` where overwriting the logits would be wrong or undefined."""
    if logits.is_leaf and logits.requires_grad:
        raise W2SError("inplace=True on leaf logits that require grad; pass the output of a model")
    if logits.stride(1) != 1 and logits.shape[1] > 1:
        raise W2SError(
            f"inplace=True on logits with column stride {logits.stride(1)}; "
            "call .contiguous() first or use inplace=False"
        )
    if logits.shape[0] > 1 and logits.stride(0) < logits.shape[1]:
        raise W2SError(
            f"inplace=True on logits with overlapping rows (strides {logits.stride()}); "
            "call .contiguous() first or use inplace=False"
        )
