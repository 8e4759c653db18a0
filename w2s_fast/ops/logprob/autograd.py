"""Log-probabilities of top-k classes on the row kernels of the cross-entropy.

One pass fills the record with all that is needed: z_id - M of the top-k classes, log S, and with a
residual the log of the mass outside them. Backward is the phase ``gradient`` with sparse targets
whose masses are minus the upstream gradients.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from w2s_fast.ops.cross_entropy.operators import unit_column_stride
from w2s_fast.ops.dispatch import LIBRARY, backend
from w2s_fast.ops.dtypes import accumulator
from w2s_fast.ops.loss_call import Index, LossSpec, RowCall, Stat, new_record
from w2s_fast.ops.targets import LossInputs
from w2s_fast.ops.transforms import differentiable

_TWICE = (
    "log-probabilities of w2s_fast are not differentiable twice: backward reads the forward's "
    "record as a constant; do not use create_graph=True through them"
)


def forward_call(shape: Tensor, ids: Tensor, softcap: float, with_tail: bool) -> RowCall:
    """Build the forward pass: mass 1 on every top-k class, a residual of 0 to get its log mass."""
    acc, device = accumulator(shape.dtype), shape.device
    ones = torch.ones(ids.shape, dtype=acc, device=device)
    rest = torch.zeros(ids.shape[0], dtype=acc, device=device) if with_tail else None
    p = LossInputs(shape, ids.contiguous(), ones, rest, None, -100)
    diffs = torch.empty(ids.shape, dtype=acc, device=device)
    return RowCall(p, LossSpec(softcap=softcap), *new_record(p), topk_diffs=diffs)


def read_off(call: RowCall) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return (logp (N, K), tail (N,), stats, index) after the pass, every entry defined."""
    p, stats, index, diffs = call.inputs, call.stats, call.index, call.topk_diffs
    assert p.ids is not None and diffs is not None
    logp = torch.where(p.ids >= 0, diffs - stats[Stat.LOGS].unsqueeze(1), 0.0)
    # Ids that do not fit, where the host has not checked them (see targets.check_labels).
    unfit = stats[Stat.MASS].isnan()
    logp = torch.where(unfit.unsqueeze(1), torch.nan, logp)
    stats[Stat.TAIL] = 0.0 if p.rest is None else torch.where(unfit, torch.nan, stats[Stat.TAIL])
    stats[Stat.MEAN] = 0.0
    return logp, stats[Stat.TAIL].clone(), stats, index


def backward_call(
    shape: Tensor,
    ids: Tensor,
    grad_logp: Tensor | None,
    grad_tail: Tensor | None,
    stats: Tensor,
    index: Tensor,
    softcap: float,
) -> RowCall:
    """Build the phase ``gradient`` that makes dlogits.

    A row whose upstream gradients are all 0 has row_scale 0: exactly 0 for any logits.
    """
    acc = stats.dtype
    up = torch.zeros(ids.shape, dtype=acc, device=stats.device)
    if grad_logp is not None:
        up = torch.where(ids >= 0, grad_logp.to(acc), 0.0)
    mass, used = up.sum(1), (up != 0).any(1)
    rest = None
    if grad_tail is not None:
        rest = -grad_tail.to(acc).contiguous()
        mass, used = mass - rest, used | (rest != 0)
    stats = stats.clone()
    mass = torch.where(stats[Stat.MASS].isnan(), torch.nan, mass)
    stats[Stat.MASS], stats[Stat.COEF], stats[Stat.FACTOR] = -mass, 0.0, 1.0
    p = LossInputs(shape, ids.contiguous(), (-up).contiguous(), rest, None, -100)
    return RowCall(p, LossSpec(softcap=softcap), stats, index, row_scale=used.to(acc))


LIBRARY.define(
    "topk_logp(Tensor logits, Tensor ids, float softcap, bool with_tail) "
    "-> (Tensor logp, Tensor tail, Tensor stats, Tensor index)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
LIBRARY.define(
    "topk_logp_backward(Tensor? grad_logp, Tensor? grad_tail, Tensor logits, Tensor ids, "
    "Tensor stats, Tensor index, float softcap) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


@torch.library.impl(LIBRARY, "topk_logp", "CompositeExplicitAutograd")
def _topk_logp(
    logits: Tensor, ids: Tensor, softcap: float, with_tail: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    call = forward_call(unit_column_stride(logits), ids, softcap, with_tail)
    backend("topk_logprob", logits).rows(call)
    return read_off(call)


@torch.library.register_fake("w2s_fast::topk_logp")
def _topk_logp_fake(
    logits: Tensor, ids: Tensor, softcap: float, with_tail: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return fake_rows(logits, ids)


def fake_rows(like: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return empty tensors in the form of ``read_off`` for rows of ``like``."""
    n, acc = like.shape[0], accumulator(like.dtype)
    return (
        like.new_empty(ids.shape, dtype=acc),
        like.new_empty((n,), dtype=acc),
        like.new_empty((len(Stat), n), dtype=acc),
        like.new_empty((len(Index), n), dtype=torch.int64),
    )


@torch.library.impl(LIBRARY, "topk_logp_backward", "CompositeExplicitAutograd")
def _topk_logp_backward(
    grad_logp: Tensor | None,
    grad_tail: Tensor | None,
    logits: Tensor,
    ids: Tensor,
    stats: Tensor,
    index: Tensor,
    softcap: float,
) -> Tensor:
    logits = unit_column_stride(logits)
    call = backward_call(logits, ids, grad_logp, grad_tail, stats, index, softcap)
    kernels = backend("topk_logprob", logits)
    call.grad = grad = kernels.gradient_buffer(call.inputs)
    kernels.gradient(call)
    return grad


@torch.library.register_fake("w2s_fast::topk_logp_backward")
def _topk_logp_backward_fake(
    grad_logp: Tensor | None, grad_tail: Tensor | None, logits: Tensor, *_: Any
) -> Tensor:
    return torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, ids, ctx.softcap, ctx.with_tail = inputs
    _, _, stats, index = output
    ctx.save_for_backward(logits, ids, stats, index)
    ctx.mark_non_differentiable(stats, index)
    ctx.set_materialize_grads(False)


def _backward(
    ctx: Any, grad_logp: Tensor | None, grad_tail: Tensor | None, *_: Any
) -> tuple[Tensor | None, ...]:
    grad_tail = grad_tail if ctx.with_tail else None
    grad = None
    if grad_logp is not None or grad_tail is not None:
        grad = torch.ops.w2s_fast.topk_logp_backward(
            grad_logp, grad_tail, *ctx.saved_tensors, ctx.softcap
        )
    return grad, None, None, None


def refuse(ctx: Any, *_: Any) -> None:
    """Raise: a backward has no derivative."""
    raise RuntimeError(_TWICE)


differentiable("topk_logp", "topk_logprob", _backward, _save)
differentiable("topk_logp_backward", "topk_logprob", refuse)
