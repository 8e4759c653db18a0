"""Log-probabilities from hidden states and a head, a chunk of logits at a time.

Forward computes the logits once, 2 N V D operations, and keeps a few numbers a row. Backward gets
the upstream of every row only when it is called: it recomputes the logits for two GEMMs, 8 N V D
in all. Where half of the budget holds the logits of the whole call (few rows that count) they are
kept instead: 6 N V D, what the three bare GEMMs cost. Not differentiable twice; it raises.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from w2s_fast.ops.chunking import MIB
from w2s_fast.ops.dispatch import LIBRARY
from w2s_fast.ops.fused_linear.chunks import (
    Chunk,
    HeadInputs,
    NeedsGrad,
    chunks,
    pass_over_rows,
    shape_only,
)
from w2s_fast.ops.fused_linear.cross_entropy_autograd import (
    Grads,
    fake_gradients,
    gradients_from_record,
    without_none,
)
from w2s_fast.ops.logprob.autograd import (
    backward_call,
    fake_rows,
    forward_call,
    read_off,
    refuse,
)
from w2s_fast.ops.loss_call import RowCall
from w2s_fast.ops.transforms import differentiable, needs_operators

LIBRARY.define(
    "linear_topk_logp(Tensor hidden, Tensor head, Tensor? bias, Tensor ids, float softcap, "
    "bool with_tail, float? memory_mib, bool fp32_head_gradient, float alpha, bool keep) "
    "-> (Tensor logp, Tensor tail, Tensor stats, Tensor index, Tensor logits)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
LIBRARY.define(
    "linear_topk_logp_backward(Tensor? grad_logp, Tensor? grad_tail, Tensor hidden, Tensor head, "
    "Tensor? bias, Tensor ids, Tensor stats, Tensor index, Tensor logits, float softcap, "
    "float? memory_mib, bool fp32_head_gradient, float alpha, bool[3] needs_grad) "
    "-> (Tensor hidden, Tensor head, Tensor bias)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def linear_topk(
    x: HeadInputs, ids: Tensor, softcap: float, with_tail: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return logp (N, K) and tail (N,), differentiable, and the record (stats and index)."""
    logp, tail, stats, index, _ = torch.ops.w2s_fast.linear_topk_logp(
        *x[:3], ids, softcap, with_tail, x.memory_argument, x.fp32_head_gradient, x.alpha,
        keeps_logits(x),
    )  # fmt: skip
    return logp, tail, stats, index


def keeps_logits(x: HeadInputs) -> bool:
    """Return whether forward keeps the logits of the whole call for backward."""
    n, row = x.hidden.shape[0], x.head.shape[0] * x.hidden.dtype.itemsize
    # Backward needs a second buffer: kept logits and their gradient must fit the budget together.
    return (
        not needs_operators()
        and 2 * n * row <= x.chunk_mib(x.hidden.dtype.itemsize) * MIB
        and torch.is_grad_enabled()
        and any(t is not None and t.requires_grad for t in (x.hidden, x.head, x.bias))
    )


def pass_over_chunks(x: HeadInputs, call: RowCall, keep: bool) -> Iterator[Chunk]:
    """Fill the record of a call, yielding each chunk after its pass; ``keep``: there is one."""
    if keep:  # the caller has checked that they fit
        shape = call.inputs.logits
        x = x._replace(
            memory_mib=max(
                x.chunk_mib(shape.dtype.itemsize), (shape.numel() + 1) * shape.dtype.itemsize / MIB
            )
        )
    for chunk in chunks(x, call.inputs):
        pass_over_rows(call, chunk)
        yield chunk


@torch.library.impl(LIBRARY, "linear_topk_logp", "CompositeExplicitAutograd")
def _linear_topk_logp(
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    shape = shape_only(hidden.shape[0], head.shape[0], hidden)
    call = forward_call(shape, ids, softcap, with_tail)
    x = HeadInputs(hidden, head, bias, memory_mib, alpha=alpha)
    logits = hidden.new_empty((0, head.shape[0]))
    for chunk in pass_over_chunks(x, call, keep):
        logits = chunk.inputs.logits if keep else logits
    return *read_off(call), logits


@torch.library.register_fake("w2s_fast::linear_topk_logp")
def _linear_topk_logp_fake(
    hidden: Tensor, head: Tensor, bias: Tensor | None, ids: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    n_saved = hidden.shape[0] if rest[-1] else 0
    return *fake_rows(hidden, ids), hidden.new_empty((n_saved, head.shape[0]))


@torch.library.impl(LIBRARY, "linear_topk_logp_backward", "CompositeExplicitAutograd")
def _linear_topk_logp_backward(
    grad_logp: Tensor | None,
    grad_tail: Tensor | None,
    hidden: Tensor,
    head: Tensor,
    bias: Tensor | None,
    ids: Tensor,
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
    x = HeadInputs(hidden, head, bias, memory_mib, fp32_head_gradient, alpha)
    saved = None
    if logits.shape[0]:  # not in place: a second backward needs the kept logits unchanged
        saved, call.grad = logits, torch.empty_like(logits)
    return without_none(gradients_from_record(x, call, NeedsGrad(*needs_grad), saved), hidden)


@torch.library.register_fake("w2s_fast::linear_topk_logp_backward")
def _linear_topk_logp_backward_fake(
    grad_logp: Tensor | None,
    grad_tail: Tensor | None,
    hidden: Tensor,
    head: Tensor,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    return fake_gradients(hidden, head, rest[-1])


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    hidden, head, bias, ids, softcap, ctx.with_tail, memory_mib, fp32, alpha, _ = inputs
    _, _, stats, index, logits = output
    ctx.save_for_backward(hidden, head, bias, ids, stats, index, logits)
    ctx.constants = softcap, memory_mib, fp32, alpha
    ctx.mark_non_differentiable(stats, index, logits)
    ctx.set_materialize_grads(False)


def _backward(
    ctx: Any, grad_logp: Tensor | None, grad_tail: Tensor | None, *_: Any
) -> tuple[Tensor | None, ...]:
    grad_tail = grad_tail if ctx.with_tail else None
    needs = [bool(n) for n in ctx.needs_input_grad[:3]]
    grads: Grads = (None, None, None)
    if any(needs) and not (grad_logp is None and grad_tail is None):
        made = torch.ops.w2s_fast.linear_topk_logp_backward(
            grad_logp, grad_tail, *ctx.saved_tensors, *ctx.constants, needs
        )
        grads = tuple(g if n else None for g, n in zip(made, needs, strict=True))
    return (*grads, *(None,) * 7)


differentiable("linear_topk_logp", "linear_logprob", _backward, _save)
differentiable("linear_topk_logp_backward", "linear_logprob", refuse)
