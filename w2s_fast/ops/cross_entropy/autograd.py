"""Two ways from autograd to the same row kernels.

For eager mean and sum the upstream factor of every row is known up to a common scalar, so the
forward pass also writes the gradient (one read, one write) and backward multiplies that buffer by
the scalar. fp16 is the exception: its small entries would be lost before a loss scale could save
them, so backward writes the gradient from the record once the scalar is known, rounded once (one
more read, but no pass over a finished gradient). Everything else (``reduction="none"``,
``torch.compile``, tensor subclasses) goes through the registered ``operators``. Two classes on a
GPU have a way of their own for fp16 and ``"none"``: ``late_pairs``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.ops.cross_entropy.algorithm import (
    BALANCED_CLASSES,
    NEW,
    check_spec,
    solve,
)
from w2s_fast.ops.cross_entropy.eager_call import CONSUMED, EagerCall, snapshot, weight_gradient
from w2s_fast.ops.cross_entropy.late_pairs import late_loss, serves
from w2s_fast.ops.cross_entropy.operators import TWICE, operator_arguments, reduced
from w2s_fast.ops.dispatch import backend
from w2s_fast.ops.loss_call import LossResult, LossSpec, RowCall, Stat
from w2s_fast.ops.results import check_reduction
from w2s_fast.ops.targets import LossInputs
from w2s_fast.ops.transforms import batched, needs_operators, refuse_batched


def differentiable_loss(
    p: LossInputs,
    spec: LossSpec,
    logits: Tensor,
    weight: Tensor | None,
    reduction: str,
    inplace: bool,
) -> tuple[Tensor, LossResult]:
    """Return the loss, differentiable in ``logits`` and ``weight``, and the result behind it."""
    check_reduction(reduction)
    if type(logits) is not Tensor or needs_operators():
        return _by_operators(p, spec, weight, reduction)
    dtype = None if weight is None else weight.dtype
    if (reduction == "none" or needs_upstream(logits.dtype)) and serves(p, spec):
        inplace = inplace and reduction != "none"
        if inplace and torch.is_grad_enabled() and logits.requires_grad:
            check_inplace(logits)
        return late_loss(logits, weight, EagerCall(p, spec, reduction, dtype, inplace))
    if reduction == "none":
        return _by_operators(p, spec, weight, reduction)
    mean = reduction == "mean"
    if not torch.is_grad_enabled() or not (
        logits.requires_grad or (weight is not None and weight.requires_grad)
    ):
        result = solve(p, spec, None, mean)
        return result.loss, result
    if inplace:
        check_inplace(logits)
    call = EagerCall(p, spec, reduction, dtype, inplace)
    loss = _apply(logits, weight, call)
    assert call.result is not None
    return loss, call.result


def _by_operators(
    p: LossInputs, spec: LossSpec, weight: Tensor | None, reduction: str
) -> tuple[Tensor, LossResult]:
    check_spec(spec, p, BALANCED_CLASSES)
    row, *record = torch.ops.w2s_fast.weak_ce(p.logits, *operator_arguments(p, spec))
    return reduced(p, spec, row, record, weight, reduction)


class FusedLoss(torch.autograd.Function):
    """Mean or sum with the gradient made in forward."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, weight: Tensor | None, call: EagerCall) -> Tensor:
        p, call.inputs = call.inputs, None
        assert p is not None
        needs_logits, needs_weight, _ = ctx.needs_input_grad
        late = needs_upstream(p.logits.dtype)
        if needs_weight or late:
            call.spec.record = True
        snapshot(call.spec)
        into = (p.logits if call.inplace else NEW) if needs_logits and not late else None
        call.result = result = solve(p, call.spec, into, call.mean)
        ctx.call, ctx.ignore_index = call, p.ignore_index
        if into is p.logits:
            # An op that saved these logits for its backward must see that they were overwritten.
            torch.autograd.graph.increment_version(logits)
            call.consumed = True
            ctx.save_for_backward(None, p.ids, p.probs, p.rest, p.weight)
        else:
            # Saved, not kept on ctx: freed by backward even where the loss lives on.
            ctx.save_for_backward(p.logits, p.ids, p.probs, p.rest, p.weight)
        # Not the tensor itself: it would own ctx, and ctx owns the result with the tensor.
        return result.loss.detach()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        if torch.is_grad_enabled():
            raise RuntimeError(TWICE.format("cross_entropy"))
        call: EagerCall = ctx.call
        result = call.result
        assert result is not None
        needs_logits, needs_weight, _ = ctx.needs_input_grad
        grad_weight = None
        if needs_weight:
            _, ids, probs, rest, weight = ctx.saved_tensors
            p = LossInputs(result.stats[Stat.LOSS], ids, probs, rest, weight, ctx.ignore_index)
            grad_weight = weight_gradient(p, result, call.mean, upstream, call.weight_dtype)
        if not needs_logits:
            return None, grad_weight, None
        grad = result.grads[0] if result.grads else None
        result.grads = ()
        if grad is None and call.consumed:
            raise RuntimeError(CONSUMED)
        if grad is None:
            logits, ids, probs, rest, weight = ctx.saved_tensors
            p = LossInputs(logits, ids, probs, rest, weight, ctx.ignore_index)
            if needs_upstream(p.logits.dtype):
                refuse_batched("cross_entropy in fp16", upstream)
                return _gradient_from_record(p, call, upstream), grad_weight, None
            # A later backward with retain_graph: the first one returned the stored gradient.
            grad = solve(p, call.spec, NEW, call.mean).grads[0]
            assert grad is not None
        return scaled(grad, upstream), grad_weight, None


_FEW_CLASSES = 64  # a program of Triton for each row would have less to do than to start
# Function.apply without its handling of ``torch.func``: those calls go to the operators.
_apply = super(torch.autograd.Function, FusedLoss).apply


def needs_upstream(dtype: torch.dtype) -> bool:
    """Return whether a gradient of this dtype has to wait for its loss scale before rounding."""
    return dtype == torch.float16


def scaled(grad: Tensor, upstream: Tensor) -> Tensor:
    """Multiply by the upstream scalar, rounding once; in place, and without waiting for a GPU."""
    if batched(upstream):  # by is_grads_batched: a gradient for every scalar
        return (grad.to(upstream.dtype) * upstream).to(grad.dtype)
    if not grad.is_cpu:
        kernels = backend("cross_entropy", grad)
        kernels.scale_(_long_rows(grad), upstream)
    elif upstream.item() != 1.0:
        grad.mul_(upstream)
    return grad


def _long_rows(grad: Tensor) -> Tensor:
    """Return a finished gradient as a matrix; rows of a few classes as one, in wide accesses."""
    short = grad.dim() < 2 or grad.shape[1] <= _FEW_CLASSES
    if short and grad.is_contiguous() and grad.numel() <= 2**26:  # a grid of Triton ends there
        return grad.view(1, -1)
    return grad if grad.dim() == 2 else grad.unsqueeze(0)


def row_scale(p: LossInputs, normaliser: Tensor | float, mean: bool, upstream: Tensor) -> Tensor:
    """Return (N,) dloss/drow times the upstream scalar, in the precision of the record."""
    scale = upstream.to(p.accumulator)
    if mean:
        count = torch.as_tensor(normaliser, dtype=p.accumulator, device=scale.device)
        scale = torch.where(count > 0, scale / count, 0.0)
    return scale.expand(p.logits.shape[0]) if p.weight is None else scale * p.weight


def _gradient_from_record(p: LossInputs, call: EagerCall, upstream: Tensor) -> Tensor:
    """Write the gradient, rounded once; over the logits where the caller allows it."""
    result, kernels = call.result, backend("cross_entropy", p.logits)
    assert result is not None
    grad = p.logits if call.inplace else kernels.gradient_buffer(p, any_stride=True)
    weights = row_scale(p, result.normaliser, call.mean, upstream)
    kernels.gradient(
        RowCall(p, call.spec, result.stats, result.index, grad=grad, row_scale=weights)
    )
    if call.inplace:
        torch.autograd.graph.increment_version(grad)
        call.consumed = True
    return grad


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
