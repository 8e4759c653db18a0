"""Log-probabilities with differentiable statistics from hidden states and a head.

Each chunk of logits is read once more for its second largest logit. Backward recomputes it, turns
it into the gradient of log-probabilities and statistics together, and multiplies: no more memory
than without statistics but for five numbers a row.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from w2s_fast.ops.dispatch import LIBRARY
from w2s_fast.ops.fused_linear.chunks import HeadInputs, NeedsGrad, shape_only
from w2s_fast.ops.fused_linear.cross_entropy_autograd import (
    Grads,
    fake_gradients,
    gradients_from_record,
    without_none,
)
from w2s_fast.ops.fused_linear.logprob_autograd import keeps_logits, pass_over_chunks
from w2s_fast.ops.logprob.autograd import backward_call, forward_call, read_off, refuse
from w2s_fast.ops.logprob.statistics import margins, row_values
from w2s_fast.ops.logprob.statistics_autograd import fake_values, value_gradient
from w2s_fast.ops.loss_call import Index
from w2s_fast.ops.transforms import differentiable

LIBRARY.define(
    "linear_topk_logp_values(Tensor hidden, Tensor head, Tensor? bias, Tensor ids, float softcap, "
    "bool with_tail, float? memory_mib, bool fp32_head_gradient, float alpha, bool keep) "
    "-> (Tensor logp, Tensor tail, Tensor values, Tensor second, Tensor stats, Tensor index, "
    "Tensor logits)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
LIBRARY.define(
    "linear_topk_logp_values_backward(Tensor? grad_logp, Tensor? grad_tail, Tensor? grad_values, "
    "Tensor hidden, Tensor head, Tensor? bias, Tensor ids, Tensor second, Tensor stats, "
    "Tensor index, Tensor logits, float softcap, float? memory_mib, bool fp32_head_gradient, "
    "float alpha, bool[3] needs_grad) -> (Tensor hidden, Tensor head, Tensor bias)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def linear_topk_values(
    x: HeadInputs, ids: Tensor, softcap: float, with_tail: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return logp (N, K), tail (N,) and values (4, N), all differentiable, and the index."""
    logp, tail, values, _, _, index, _ = torch.ops.w2s_fast.linear_topk_logp_values(
        *x[:3], ids, softcap, with_tail, x.memory_argument, x.fp32_head_gradient, x.alpha,
        keeps_logits(x),
    )  # fmt: skip
    return logp, tail, values, index


@torch.library.impl(LIBRARY, "linear_topk_logp_values", "CompositeExplicitAutograd")
def _linear_topk_logp_values(
    hidden: Tensor,
    head: Tensor,
    bias: Tensor | None,
    ids: Tensor,
    softcap: float,
    with_tail: bool,
    memory_mib: float | None,
    fp32_head_gradient: bool,
    alpha: float,
    keep: bool,
) -> tuple[Tensor, ...]:
    call = forward_call(shape_only(hidden.shape[0], head.shape[0], hidden), ids, softcap, with_tail)
    parts = []  # margins and second classes of every chunk
    kept = hidden.new_empty((0, head.shape[0]))
    x = HeadInputs(hidden, head, bias, memory_mib, alpha=alpha)
    for chunk in pass_over_chunks(x, call, keep):
        first = call.index[Index.ARGMAX, chunk.rows]
        parts.append(margins(chunk.inputs.logits, first, softcap))
        kept = chunk.inputs.logits if keep else kept
    logp, tail, stats, index = read_off(call)
    margin, second = stats.new_empty(0), index.new_empty(0)
    if parts:  # there may be no rows
        margin, second = map(torch.cat, zip(*parts, strict=True))
    return logp, tail, row_values(stats, margin), second, stats, index, kept


@torch.library.register_fake("w2s_fast::linear_topk_logp_values")
def _linear_topk_logp_values_fake(
    hidden: Tensor, head: Tensor, bias: Tensor | None, ids: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    n_saved = hidden.shape[0] if rest[-1] else 0
    return *fake_values(hidden, ids), hidden.new_empty((n_saved, head.shape[0]))


@torch.library.impl(LIBRARY, "linear_topk_logp_values_backward", "CompositeExplicitAutograd")
def _linear_topk_logp_values_backward(
    grad_logp: Tensor | None,
    grad_tail: Tensor | None,
    grad_values: Tensor | None,
    hidden: Tensor,
    head: Tensor,
    bias: Tensor | None,
    ids: Tensor,
    second: Tensor,
    stats: Tensor,
    index: Tensor,
    logits: Tensor,
    softcap: float,
    memory_mib: float | None,
    fp32_head_gradient: bool,
    alpha: float,
    needs_grad: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    shape = shape_only(hidden.shape[0], head.shape[0], hidden)
    call = backward_call(shape, ids, grad_logp, grad_tail, stats, index, softcap)
    assert call.row_scale is not None
    call.row_scale = alpha * call.row_scale
    extra = value_gradient(grad_values, second, stats)
    if extra is not None:
        extra.upstream = alpha * extra.upstream
    x = HeadInputs(hidden, head, bias, memory_mib, fp32_head_gradient, alpha)
    saved = None
    if logits.shape[0]:  # not in place: a second backward needs the kept logits unchanged
        saved, call.grad = logits, torch.empty_like(logits)
    grads = gradients_from_record(x, call, NeedsGrad(*needs_grad), saved, extra)
    return without_none(grads, hidden)


@torch.library.register_fake("w2s_fast::linear_topk_logp_values_backward")
def _linear_topk_logp_values_backward_fake(
    grad_logp: Tensor | None,
    grad_tail: Tensor | None,
    grad_values: Tensor | None,
    hidden: Tensor,
    head: Tensor,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    return fake_gradients(hidden, head, rest[-1])


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    hidden, head, bias, ids, softcap, ctx.with_tail, memory_mib, fp32, alpha, _ = inputs
    _, _, _, second, stats, index, logits = output
    ctx.save_for_backward(hidden, head, bias, ids, second, stats, index, logits)
    ctx.constants = softcap, memory_mib, fp32, alpha
    ctx.mark_non_differentiable(second, stats, index, logits)
    ctx.set_materialize_grads(False)


def _backward(
    ctx: Any,
    grad_logp: Tensor | None,
    grad_tail: Tensor | None,
    grad_values: Tensor | None,
    *_: Any,
) -> tuple[Tensor | None, ...]:
    upstream = grad_logp, grad_tail if ctx.with_tail else None, grad_values
    needs = [bool(n) for n in ctx.needs_input_grad[:3]]
    grads: Grads = (None, None, None)
    if any(needs) and any(g is not None for g in upstream):
        made = torch.ops.w2s_fast.linear_topk_logp_values_backward(
            *upstream, *ctx.saved_tensors, *ctx.constants, needs
        )
        grads = tuple(g if n else None for g, n in zip(made, needs, strict=True))
    return (*grads, *(None,) * 7)


differentiable("linear_topk_logp_values", "linear_logprob", _backward, _save)
differentiable("linear_topk_logp_values_backward", "linear_logprob", refuse)
