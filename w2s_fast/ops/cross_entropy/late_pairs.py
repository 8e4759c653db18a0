"""Two classes on a GPU where the gradient waits for its upstream: two launches, one a direction.

A loss for each row has an upstream factor for each row, and in fp16 the loss scale has to be known
before a gradient is rounded. The forward pass computes threshold, normaliser and losses, and the
backward pass the gradient, from the logits again: with two classes that is as cheap as a record.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from w2s_fast.ops.cross_entropy.algorithm import BALANCED_CLASSES, check_spec, in_one_call
from w2s_fast.ops.cross_entropy.eager_call import CONSUMED, EagerCall, snapshot, weight_gradient
from w2s_fast.ops.cross_entropy.operators import TWICE
from w2s_fast.ops.dispatch import backend
from w2s_fast.ops.loss_call import LossResult, LossSpec
from w2s_fast.ops.targets import LossInputs
from w2s_fast.ops.transforms import batched, refuse_batched


def serves(p: LossInputs, spec: LossSpec) -> bool:
    """Return whether a call is one of two classes that its backend can finish in backward."""
    kernels = backend("cross_entropy", p.logits)
    return kernels.LATE_TWO_CLASS and in_one_call(p, spec, kernels)


def late_loss(logits: Tensor, weight: Tensor | None, call: EagerCall) -> tuple[Tensor, LossResult]:
    """Return the loss, 0-d or (N,), differentiable in logits and weight, and the result behind it.

    ``call.inputs`` are those that ``serves`` accepted.
    """
    p = call.inputs
    assert p is not None
    check_spec(call.spec, p, BALANCED_CLASSES)
    needed = logits.requires_grad or (weight is not None and weight.requires_grad)
    loss = _apply(logits, weight, call) if needed and torch.is_grad_enabled() else _forward(p, call)
    assert call.result is not None
    return loss, call.result


def _forward(p: LossInputs, call: EagerCall) -> Tensor:
    kernels, losses = backend("cross_entropy", p.logits), None
    if call.reduction == "none":
        losses = torch.empty(p.logits.shape[0], dtype=p.accumulator, device=p.logits.device)
    call.result = kernels.two_class(p, call.spec, None, call.mean, losses)
    return call.result.loss.detach() if losses is None else losses


class LateLoss(torch.autograd.Function):
    """Losses in forward, their gradient in backward."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, weight: Tensor | None, call: EagerCall) -> Tensor:
        p, call.inputs, spec = call.inputs, None, call.spec
        assert p is not None
        if ctx.needs_input_grad[1]:
            spec.record = True
        snapshot(spec)
        loss = _forward(p, call)
        assert call.result is not None
        ctx.call, ctx.ignore_index = call, p.ignore_index
        ctx.save_for_backward(p.logits, p.ids, p.probs, p.weight, call.result.scalars)
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        if torch.is_grad_enabled():
            raise RuntimeError(TWICE.format("cross_entropy"))
        call: EagerCall = ctx.call
        if call.consumed:
            raise RuntimeError(CONSUMED)
        logits, ids, probs, weight, scalars = ctx.saved_tensors
        p = LossInputs(logits, ids, probs, None, weight, ctx.ignore_index)
        needs_logits, needs_weight, _ = ctx.needs_input_grad
        assert call.result is not None
        grad_weight = None
        if needs_weight:
            grad_weight = weight_gradient(p, call.result, call.mean, upstream, call.weight_dtype)
        return _gradient(p, call, scalars, upstream) if needs_logits else None, grad_weight, None


# Function.apply without its handling of ``torch.func``: those calls go to the operators.
_apply = super(torch.autograd.Function, LateLoss).apply


def _gradient(p: LossInputs, call: EagerCall, scalars: Tensor, upstream: Tensor) -> Tensor:
    """Return the gradient of the logits, rounded once; over them where the caller allows it."""
    kernels, mean = backend("cross_entropy", p.logits), call.mean
    if batched(upstream):  # by is_grads_batched: a factor of each row for every sample
        if call.reduction != "none":
            refuse_batched("cross_entropy in fp16", upstream)
        whole = p._replace(logits=p.logits.float())
        unit = kernels.gradient_buffer(whole)
        kernels.two_class_gradient(whole, call.spec, scalars, scalars.new_ones(()), mean, unit)
        up = upstream.unsqueeze(-1)
        return torch.where(up == 0, 0.0, unit * up).to(p.logits.dtype)
    grad = p.logits if call.inplace else kernels.gradient_buffer(p, any_stride=True)
    kernels.two_class_gradient(p, call.spec, scalars, upstream.to(p.accumulator), mean, grad)
    if call.inplace:
        torch.autograd.graph.increment_version(grad)
        call.consumed = True
    return grad
