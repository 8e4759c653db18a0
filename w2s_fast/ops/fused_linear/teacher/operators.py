"""The registered operators of a loss whose target is a teacher: per-row losses, and compiled calls.

They differ from those of the fused head with given targets (``cross_entropy_autograd.py``) in the
lists of the teacher's tensors and in the gradient of its scales, which follows from derivatives
that forward has collected.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from w2s_fast.ops.cross_entropy.operators import (
    SPEC,
    TERMS,
    fake_record,
    filled_record,
    from_backward,
    from_operator,
    refuse,
)
from w2s_fast.ops.dispatch import LIBRARY
from w2s_fast.ops.dtypes import accumulator
from w2s_fast.ops.fused_linear.chunks import HeadInputs, NeedsGrad, shape_only
from w2s_fast.ops.fused_linear.cross_entropy_autograd import (
    fake_gradients,
    gradients_from_record,
    without_none,
)
from w2s_fast.ops.fused_linear.solve import solve_linear
from w2s_fast.ops.fused_linear.teacher.heads import Teacher
from w2s_fast.ops.loss_call import RowCall
from w2s_fast.ops.transforms import batched_by_backward, differentiable, refuse_batched

_TEACHER = (
    "Tensor scales, Tensor[] teacher_hidden, Tensor[] teacher_heads, Tensor?[] teacher_biases, "
    "float[] softcaps, bool[] learned, float temperature, str divergence, float beta"
)
_N_TEACHER = len(Teacher._fields)
_HEAD = "Tensor hidden, Tensor head, Tensor? bias"

LIBRARY.define(
    f"linear_teacher_loss({_HEAD}, {_TEACHER}, {SPEC}, float? memory_mib, bool fp32_head_gradient) "
    "-> (Tensor loss, Tensor stats, Tensor index, Tensor threshold, Tensor slopes)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
LIBRARY.define(
    f"linear_teacher_loss_backward(Tensor upstream, {_HEAD}, {_TEACHER}, Tensor? weight, "
    f"Tensor stats, Tensor index, Tensor slopes, {TERMS}, float? memory_mib, "
    "bool fp32_head_gradient, bool[3] needs_grad) "
    "-> (Tensor hidden, Tensor head, Tensor bias, Tensor scales)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


@torch.library.impl(LIBRARY, "linear_teacher_loss", "CompositeExplicitAutograd")
def _loss(hidden: Tensor, head: Tensor, bias: Tensor | None, *arguments: Any) -> tuple[Tensor, ...]:
    teacher, (*loss, memory_mib, _) = Teacher(*arguments[:_N_TEACHER]), arguments[_N_TEACHER:]
    p, spec = from_operator(shape_only(hidden.shape[0], head.shape[0], hidden), *loss)
    x = HeadInputs(hidden, head, bias, memory_mib, teacher=teacher)
    result = solve_linear(x, p, spec, NeedsGrad(), False)
    slopes = result.stats.new_empty(0) if result.slopes is None else result.slopes
    return *filled_record(result, p, spec), slopes


@torch.library.register_fake("w2s_fast::linear_teacher_loss")
def _loss_fake(hidden: Tensor, head: Tensor, bias: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
    learned = any(rest[Teacher._fields.index("learned")])
    shape = (rest[0].shape[0], hidden.shape[0]) if learned else (0,)
    return *fake_record(hidden), hidden.new_empty(shape, dtype=accumulator(hidden.dtype))


@torch.library.impl(LIBRARY, "linear_teacher_loss_backward", "CompositeExplicitAutograd")
def _backward(
    upstream: Tensor, hidden: Tensor, head: Tensor, bias: Tensor | None, *arguments: Any
) -> tuple[Tensor, ...]:
    teacher, rest = Teacher(*arguments[:_N_TEACHER]), arguments[_N_TEACHER:]
    weight, stats, index, slopes, *terms, memory_mib, fp32_head_gradient, needs_grad = rest
    shape = shape_only(hidden.shape[0], head.shape[0], hidden)
    p, spec, _, _ = from_backward(shape, None, None, None, weight, stats, index, *terms)
    x = HeadInputs(hidden, head, bias, memory_mib, fp32_head_gradient, teacher=teacher)
    # The upstream already holds the row weights, and may be an expanded scalar.
    rows = upstream.to(stats.dtype).contiguous()
    grads: tuple[Tensor | None, ...] = (None, None, None)
    if any(needs_grad):
        call = RowCall(p, spec, stats, index, row_scale=rows)
        grads = gradients_from_record(x, call, NeedsGrad(*needs_grad))
    scales = (slopes * rows).sum(1) if slopes.numel() else torch.zeros_like(teacher.scales)
    return *without_none(grads, hidden), scales


@torch.library.register_fake("w2s_fast::linear_teacher_loss_backward")
def _backward_fake(
    upstream: Tensor, hidden: Tensor, head: Tensor, bias: Tensor | None, *rest: Any
) -> tuple[Tensor, ...]:
    return *fake_gradients(hidden, head, rest[-1]), torch.empty_like(rest[0])


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    hidden, head, bias, *rest = inputs
    teacher, loss = Teacher(*rest[:_N_TEACHER]), rest[_N_TEACHER:]
    _, stats, index, threshold, slopes = output
    weight, ctx.constants = loss[3], loss[7:]
    tensors = teacher.tensors()
    ctx.save_for_backward(hidden, head, bias, weight, stats, index, slopes, *tensors)
    ctx.teacher = teacher.with_tensors([None] * len(tensors))
    ctx.mark_non_differentiable(stats, index, threshold, slopes)
    ctx.set_materialize_grads(False)


def _rows_backward(ctx: Any, upstream: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    needs = [bool(n) for n in ctx.needs_input_grad[:3]]
    grads: tuple[Tensor | None, ...] = (None,) * 4
    if upstream is not None and (any(needs) or ctx.needs_input_grad[3]):
        # Batched gradients reach operators through a fallback that knows no lists of tensors.
        if batched_by_backward(upstream):
            refuse_batched("linear_cross_entropy with a teacher", upstream)
        hidden, head, bias, weight, *saved = ctx.saved_tensors
        record, teacher = saved[:3], ctx.teacher.with_tensors(saved[3:])
        made = torch.ops.w2s_fast.linear_teacher_loss_backward(
            upstream, hidden, head, bias, *teacher, weight, *record, *ctx.constants, needs
        )
        wanted = (*needs, ctx.needs_input_grad[3])
        grads = tuple(g if n else None for g, n in zip(made, wanted, strict=True))
    return *grads, *(None,) * (len(ctx.needs_input_grad) - 4)


differentiable("linear_teacher_loss", "linear_cross_entropy", _rows_backward, _save)
differentiable(
    "linear_teacher_loss_backward", "linear_cross_entropy", refuse("linear_cross_entropy")
)
