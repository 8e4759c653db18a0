"""``topk_logprob`` with differentiable statistics: operators beside those of ``autograd.py``.

They are operators of their own so that a call without statistics saves and computes what it always
did. The record has entropy and lse already; the second largest logit takes one more pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from w2s_fast.ops.cross_entropy.operators import unit_column_stride
from w2s_fast.ops.dispatch import LIBRARY, backend
from w2s_fast.ops.logprob.autograd import (
    backward_call,
    fake_rows,
    forward_call,
    read_off,
    refuse,
)
from w2s_fast.ops.logprob.statistics import (
    RowValue,
    ValueGradient,
    margins,
    row_values,
    write_gradient,
)
from w2s_fast.ops.loss_call import Index
from w2s_fast.ops.transforms import differentiable

LIBRARY.define(
    "topk_logp_values(Tensor logits, Tensor ids, float softcap) "
    "-> (Tensor logp, Tensor tail, Tensor values, Tensor second, Tensor stats, Tensor index)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
LIBRARY.define(
    "topk_logp_values_backward(Tensor? grad_logp, Tensor? grad_tail, Tensor? grad_values, "
    "Tensor logits, Tensor ids, Tensor second, Tensor stats, Tensor index, float softcap) "
    "-> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


@torch.library.impl(LIBRARY, "topk_logp_values", "CompositeExplicitAutograd")
def _topk_logp_values(logits: Tensor, ids: Tensor, softcap: float) -> tuple[Tensor, ...]:
    logits = unit_column_stride(logits)
    call = forward_call(logits, ids, softcap, with_tail=True)
    backend("topk_logprob", logits).rows(call)
    logp, tail, stats, index = read_off(call)
    margin, second = margins(logits, index[Index.ARGMAX], softcap)
    return logp, tail, row_values(stats, margin), second, stats, index


@torch.library.register_fake("w2s_fast::topk_logp_values")
def _topk_logp_values_fake(logits: Tensor, ids: Tensor, softcap: float) -> tuple[Tensor, ...]:
    return fake_values(logits, ids)


def fake_values(like: Tensor, ids: Tensor) -> tuple[Tensor, ...]:
    """Return empty tensors in the form of the forward's results for rows of ``like``."""
    logp, tail, stats, index = fake_rows(like, ids)
    values = tail.new_empty((len(RowValue), tail.shape[0]))
    return logp, tail, values, index.new_empty(tail.shape), stats, index


@torch.library.impl(LIBRARY, "topk_logp_values_backward", "CompositeExplicitAutograd")
def _topk_logp_values_backward(
    grad_logp: Tensor | None,
    grad_tail: Tensor | None,
    grad_values: Tensor | None,
    logits: Tensor,
    ids: Tensor,
    second: Tensor,
    stats: Tensor,
    index: Tensor,
    softcap: float,
) -> Tensor:
    logits = unit_column_stride(logits)
    call = backward_call(logits, ids, grad_logp, grad_tail, stats, index, softcap)
    kernels = backend("topk_logprob", logits)
    call.grad = grad = kernels.gradient_buffer(call.inputs)
    extra = value_gradient(grad_values, second, stats)
    if extra is None:
        kernels.gradient(call)
    else:
        write_gradient(call, extra)
    return grad


def value_gradient(upstream: Tensor | None, second: Tensor, stats: Tensor) -> ValueGradient | None:
    """Return the upstream of the statistics in the precision of the record; None without one."""
    return None if upstream is None else ValueGradient(upstream.to(stats.dtype), second)


@torch.library.register_fake("w2s_fast::topk_logp_values_backward")
def _topk_logp_values_backward_fake(
    grad_logp: Tensor | None,
    grad_tail: Tensor | None,
    grad_values: Tensor | None,
    logits: Tensor,
    *_: Any,
) -> Tensor:
    return torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, ids, ctx.softcap = inputs
    _, _, _, second, stats, index = output
    ctx.save_for_backward(logits, ids, second, stats, index)
    ctx.mark_non_differentiable(second, stats, index)
    ctx.set_materialize_grads(False)


def _backward(
    ctx: Any,
    grad_logp: Tensor | None,
    grad_tail: Tensor | None,
    grad_values: Tensor | None,
    *_: Any,
) -> tuple[Tensor | None, ...]:
    upstream = grad_logp, grad_tail, grad_values
    if all(g is None for g in upstream):
        return None, None, None
    grad = torch.ops.w2s_fast.topk_logp_values_backward(*upstream, *ctx.saved_tensors, ctx.softcap)
    return grad, None, None


differentiable("topk_logp_values", "topk_logprob", _backward, _save)
differentiable("topk_logp_values_backward", "topk_logprob", refuse)
