"""Two ways from autograd to the fused head.

Eager mean and sum make all gradients in forward, 6 N V D operations, and backward returns them.
fp16 gradients wait for backward, where the loss scale is known (see ``cross_entropy/autograd.py``),
and so does a gradient that is added to a buffer (``main_grad.py``): a batch of one chunk keeps its
logits until then, several chunks are recomputed, 8 N V D.
``reduction="none"`` and ``torch.compile`` go through two registered operators; only backward has
the upstream of every row, so it recomputes the logits. Neither is differentiable twice; both raise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from w2s_fast.ops.cross_entropy.algorithm import check_spec
from w2s_fast.ops.cross_entropy.autograd import needs_upstream, row_scale, scaled
from w2s_fast.ops.cross_entropy.eager_call import snapshot, weight_gradient
from w2s_fast.ops.cross_entropy.operators import (
    SPEC,
    TARGETS,
    TERMS,
    TWICE,
    fake_record,
    filled_record,
    from_backward,
    from_operator,
    operator_arguments,
    reduced,
    refuse,
)
from w2s_fast.ops.dispatch import LIBRARY
from w2s_fast.ops.fused_linear.chunks import (
    Chunk,
    Gradients,
    HeadInputs,
    NeedsGrad,
    chunk_count,
    chunk_inputs,
    chunks,
    row_kernels,
    shape_only,
)
from w2s_fast.ops.fused_linear.solve import solve_linear
from w2s_fast.ops.fused_linear.teacher.heads import Teacher
from w2s_fast.ops.logprob.statistics import ValueGradient, write_gradient
from w2s_fast.ops.loss_call import LossResult, LossSpec, RowCall, Stat
from w2s_fast.ops.results import check_reduction
from w2s_fast.ops.targets import LossInputs
from w2s_fast.ops.transforms import differentiable, needs_operators, refuse_batched

Grads = tuple[Tensor | None, ...]  # of hidden, head and bias


def differentiable_loss(
    x: HeadInputs, p: LossInputs, spec: LossSpec, weight: Tensor | None, reduction: str
) -> tuple[Tensor, LossResult]:
    """Return the loss, differentiable in the head's parts and ``weight``, and the rest."""
    check_reduction(reduction)
    in_operators = reduction == "none" or type(x.hidden) is not Tensor
    if x.main_grad is None and (in_operators or needs_operators()):
        check_spec(spec, p)
        memory = x.memory_argument, x.fp32_head_gradient
        if x.teacher is None:
            op, arguments = torch.ops.w2s_fast.linear_weak_ce, operator_arguments(p, spec)
        else:
            op = torch.ops.w2s_fast.linear_teacher_loss
            arguments = (*x.teacher, *operator_arguments(p, spec))
        row, *record = op(*x[:3], *arguments, *memory)
        return reduced(p, spec, row, record[:3], weight, reduction)
    inputs = (*x[:3], weight, None if x.teacher is None else x.teacher.scales)
    if not torch.is_grad_enabled() or not any(t is not None and t.requires_grad for t in inputs):
        result = solve_linear(x, p, spec, NeedsGrad(), reduction == "mean")
        return result.loss, result
    return apply_eagerly(EagerCall(p, spec, reduction), x, weight)


def apply_eagerly(
    call: EagerCall, x: HeadInputs, weight: Tensor | None
) -> tuple[Tensor, LossResult]:
    """Run a call through autograd and return its loss and result."""
    call.memory = x[3:-1]
    call.weight_dtype = None if weight is None else weight.dtype
    call.teacher = x.teacher
    loss = FusedLinearLoss.apply(
        *x[:3], weight, None if x.teacher is None else x.teacher.scales, call
    )
    assert call.result is not None
    return loss, call.result


@dataclass(slots=True)
class EagerCall:
    """One eager call on its way through autograd; the forward fills ``result``.

    A subclass solves for a head whose classes are sharded over ranks.
    """

    inputs: LossInputs | None
    spec: LossSpec
    reduction: str
    memory: tuple[Any, ...] = ()  # the fields of ``HeadInputs`` between bias and teacher
    weight_dtype: torch.dtype | None = None
    teacher: Teacher | None = None
    result: LossResult | None = None

    name: ClassVar[str] = "linear_cross_entropy"

    @property
    def mean(self) -> bool:
        """Whether the loss is divided by its normaliser."""
        return self.reduction == "mean"

    def in_forward(self, x: HeadInputs) -> bool:
        """Return whether forward makes the gradients: the upstream is a scalar applied later."""
        scalar = self.reduction != "none" and not needs_upstream(x.hidden.dtype)
        return scalar and x.main_grad is None

    def solve(
        self, x: HeadInputs, p: LossInputs, needs: NeedsGrad, keep_logits: bool = False
    ) -> LossResult:
        """Compute loss, record and gradients."""
        return solve_linear(x, p, self.spec, needs, self.mean, keep_logits)

    def gradients(self, x: HeadInputs, p: LossInputs, row_scale: Tensor, needs: NeedsGrad) -> Grads:
        """Compute the gradients from the record, for an upstream (N,) of row losses."""
        result = self.result
        assert result is not None
        logits, result.logits = result.logits, None
        call = RowCall(p, self.spec, result.stats, result.index, row_scale=row_scale)
        return gradients_from_record(x, call, needs, logits)


class FusedLinearLoss(torch.autograd.Function):
    """Mean and sum make their gradients in forward; none, and fp16, in backward."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        head: Tensor,
        bias: Tensor | None,
        weight: Tensor | None,
        scales: Tensor | None,
        call: EagerCall,
    ) -> Tensor:
        p, call.inputs = call.inputs, None
        teacher, call.teacher = call.teacher, None
        assert p is not None
        snapshot(call.spec)
        ctx.call, ctx.n_classes, ctx.ignore_index = call, p.logits.shape[1], p.ignore_index
        saved = [] if teacher is None else teacher.tensors()
        ctx.save_for_backward(hidden, head, bias, p.ids, p.probs, p.rest, p.weight, *saved)
        # Only what is no tensor: those must be freed by backward even where the loss lives on.
        ctx.teacher = None if teacher is None else teacher.with_tensors([None] * len(saved))
        needs = NeedsGrad(*ctx.needs_input_grad[:3])
        x = HeadInputs(hidden, head, bias, *call.memory)._replace(teacher=teacher)
        late = not call.in_forward(x)
        result = call.solve(x, p, NeedsGrad() if late else needs, late and needs.any)
        call.result = result
        if call.reduction == "none":
            rows = result.stats[Stat.LOSS]
            return rows.clone() if p.weight is None else rows * p.weight
        # Not the tensor itself: it would own ctx, and ctx owns the result with the tensor.
        return result.loss.detach()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        call: EagerCall = ctx.call
        if torch.is_grad_enabled():
            raise RuntimeError(TWICE.format(call.name))
        result = call.result
        assert result is not None
        needs = NeedsGrad(*ctx.needs_input_grad[:3])
        hidden, head, bias, *saved = ctx.saved_tensors
        (ids, probs, rest, weight), terms = saved[:4], saved[4:]
        teacher = None if ctx.teacher is None else ctx.teacher.with_tensors(terms)
        x = HeadInputs(hidden, head, bias, *call.memory)._replace(teacher=teacher)
        shape = shape_only(hidden.shape[0], ctx.n_classes, hidden)
        p = LossInputs(shape, ids, probs, rest, weight, ctx.ignore_index)
        grad_weight = grad_scales = None
        if ctx.needs_input_grad[3]:
            grad_weight = weight_gradient(p, result, call.mean, upstream, call.weight_dtype)
        if ctx.needs_input_grad[4]:
            assert result.slopes is not None
            rows = row_scale(p, result.normaliser, call.mean, upstream)
            grad_scales = (result.slopes * rows).sum(1)
        others = grad_weight, grad_scales, None
        if not needs.any:
            return None, None, None, *others
        if not call.in_forward(x):
            late = " in fp16" if needs_upstream(hidden.dtype) else ""
            refuse_batched(call.name + late, upstream)
            rows = row_scale(p, result.normaliser, call.mean, upstream)
            made, grad_head, grad_bias = call.gradients(x, p, rows, needs)
            if x.main_grad is not None and needs.head:
                grad_head = x.main_grad.gradient(head)
            return made, grad_head, grad_bias, *others
        grads, result.grads = result.grads, ()
        if not grads:  # the first backward returned the stored gradients: make them again
            grads = call.solve(x, p, needs).grads
        return *(None if g is None else scaled(g, upstream) for g in grads), *others


def _shape_of(hidden: Tensor, head: Tensor) -> Tensor:
    return shape_only(hidden.shape[0], head.shape[0], hidden)


LIBRARY.define(
    f"linear_weak_ce(Tensor hidden, Tensor head, Tensor? bias, {SPEC}, float? memory_mib, "
    "bool fp32_head_gradient) -> (Tensor loss, Tensor stats, Tensor index, Tensor threshold)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
LIBRARY.define(
    f"linear_weak_ce_backward(Tensor upstream, Tensor hidden, Tensor head, Tensor? bias, {TARGETS},"
    f" Tensor stats, Tensor index, {TERMS}, float? memory_mib, bool fp32_head_gradient, "
    "bool[3] needs_grad) -> (Tensor hidden, Tensor head, Tensor bias)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


@torch.library.impl(LIBRARY, "linear_weak_ce", "CompositeExplicitAutograd")
def _linear_weak_ce(
    hidden: Tensor, head: Tensor, bias: Tensor | None, *arguments: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    *loss, memory_mib, _ = arguments
    p, spec = from_operator(_shape_of(hidden, head), *loss)
    result = solve_linear(HeadInputs(hidden, head, bias, memory_mib), p, spec, NeedsGrad(), False)
    return filled_record(result, p, spec)


@torch.library.register_fake("w2s_fast::linear_weak_ce")
def _linear_weak_ce_fake(hidden: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return fake_record(hidden)


@torch.library.impl(LIBRARY, "linear_weak_ce_backward", "CompositeExplicitAutograd")
def _linear_weak_ce_backward(
    upstream: Tensor, hidden: Tensor, head: Tensor, bias: Tensor | None, *arguments: Any
) -> tuple[Tensor, Tensor, Tensor]:
    *loss, memory_mib, fp32_head_gradient, needs_grad = arguments
    p, spec, stats, index = from_backward(_shape_of(hidden, head), *loss)
    x = HeadInputs(hidden, head, bias, memory_mib, fp32_head_gradient)
    # The upstream already holds the row weights, and may be an expanded scalar.
    call = RowCall(p, spec, stats, index, row_scale=upstream.to(stats.dtype).contiguous())
    return without_none(gradients_from_record(x, call, NeedsGrad(*needs_grad)), hidden)


def without_none(grads: Grads, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Replace None by empty tensors: an operator cannot return None."""
    hidden, head, bias = (like.new_empty(0) if g is None else g for g in grads)
    return hidden, head, bias


def gradients_from_record(
    x: HeadInputs,
    call: RowCall,
    needs: NeedsGrad,
    logits: Tensor | None = None,
    extra: ValueGradient | None = None,
) -> Grads:
    """Compute the gradients of hidden, head and bias from a record and recomputed logits.

    ``logits`` (N, V) of all rows, if the forward kept them, are used instead; the gradient
    overwrites them unless the call has a ``grad``. ``extra`` is the upstream of statistics.
    """
    p, stats, index, row_scale = call.inputs, call.stats, call.index, call.row_scale
    assert row_scale is not None
    parts = 1 if logits is not None else chunk_count(x, p)
    grads = Gradients(x, needs, parts, _used(call, extra) if needs.head else None)
    every = slice(0, p.logits.shape[0])
    whole = None if logits is None else [Chunk(every, chunk_inputs(x, p, every, logits))]
    kernels = row_kernels(x)
    for at, part in whole or chunks(x, p):
        dlogits = part.logits if call.grad is None else call.grad
        some, few = stats[:, at].contiguous(), index[:, at].contiguous()
        gradient = RowCall(part, call.spec, some, few, grad=dlogits, row_scale=row_scale[at])
        if extra is None:
            kernels.gradient(gradient)
        else:
            write_gradient(gradient, extra.of_rows(at))
        grads.add(dlogits, at)
        del part, dlogits  # before the next logits are allocated
    return grads.result()


def _used(call: RowCall, extra: ValueGradient | None) -> Tensor:
    """Return (N,) bool: rows that count and have an upstream gradient."""
    assert call.row_scale is not None
    used = call.row_scale != 0
    if extra is not None:
        used = used | (extra.upstream != 0).any(0)
    counted = call.inputs.some_counted()
    return used if counted is None else used & counted


@torch.library.register_fake("w2s_fast::linear_weak_ce_backward")
def _linear_weak_ce_backward_fake(
    upstream: Tensor, hidden: Tensor, head: Tensor, bias: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return fake_gradients(hidden, head, rest[-1])


def fake_gradients(
    hidden: Tensor, head: Tensor, needs: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return empty tensors in the form of ``without_none``."""
    return (
        torch.empty_like(hidden) if needs[0] else hidden.new_empty(0),
        torch.empty_like(head) if needs[1] else hidden.new_empty(0),
        head.new_empty(head.shape[0]) if needs[2] else hidden.new_empty(0),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    hidden, head, bias, ids, probs, rest, weight, _, _, _, *ctx.constants = inputs
    _, stats, index, threshold = output
    ctx.save_for_backward(hidden, head, bias, ids, probs, rest, weight, stats, index)
    ctx.mark_non_differentiable(stats, index, threshold)
    ctx.set_materialize_grads(False)


def _rows_backward(ctx: Any, upstream: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    needs = [bool(n) for n in ctx.needs_input_grad[:3]]
    grads: Grads = (None, None, None)
    if upstream is not None and any(needs):
        made = torch.ops.w2s_fast.linear_weak_ce_backward(
            upstream, *ctx.saved_tensors, *ctx.constants, needs
        )
        grads = tuple(g if n else None for g, n in zip(made, needs, strict=True))
    return (*grads, *(None,) * 15)


differentiable("linear_weak_ce", "linear_cross_entropy", _rows_backward, _save)
differentiable("linear_weak_ce_backward", "linear_cross_entropy", refuse("linear_cross_entropy"))
