"""``cross_entropy`` with differentiable statistics: operators beside those of ``operators.py``.

The loss and the statistics of its rows share one backward pass, in which the gradient of both is
summed in fp32 and rounded once; see ``logprob/statistics.py`` for the formulas. The gradient is
written in backward for every reduction: the upstream of the statistics is known only there.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from w2s_fast.ops.cross_entropy.algorithm import BALANCED_CLASSES, check_spec, solve
from w2s_fast.ops.cross_entropy.operators import (
    SPEC,
    TARGETS,
    TERMS,
    fake_weak_ce,
    filled_record,
    from_backward,
    from_operator,
    operator_arguments,
    reduced,
    refuse,
    unit_column_stride,
)
from w2s_fast.ops.dispatch import LIBRARY, backend
from w2s_fast.ops.logprob.statistics import (
    RowValue,
    ValueGradient,
    margins,
    row_values,
    write_gradient,
)
from w2s_fast.ops.loss_call import Index, LossResult, LossSpec, RowCall
from w2s_fast.ops.results import Stats, check_reduction
from w2s_fast.ops.targets import LossInputs
from w2s_fast.ops.transforms import differentiable

LIBRARY.define(
    f"weak_ce_values(Tensor logits, {SPEC}) -> (Tensor loss, Tensor stats, Tensor index, "
    "Tensor threshold, Tensor values, Tensor second)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
LIBRARY.define(
    "weak_ce_values_backward(Tensor? upstream, Tensor? grad_values, Tensor logits, "
    f"{TARGETS}, Tensor stats, Tensor index, Tensor second, {TERMS}) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def loss_with_values(
    p: LossInputs, spec: LossSpec, weight: Tensor | None, reduction: str
) -> tuple[Tensor, LossResult, Tensor]:
    """Return loss, result and (4, N) statistics; the loss and the latter are differentiable."""
    check_reduction(reduction)
    check_spec(spec, p, BALANCED_CLASSES)
    row, *record, values, _ = torch.ops.w2s_fast.weak_ce_values(
        p.logits, *operator_arguments(p, spec)
    )
    return *reduced(p, spec, row, record, weight, reduction), values


def differentiable_stats(stats: Stats, values: Tensor) -> Stats:
    """Return the statistics of a call with those of the (4, N) ``values`` in their place."""
    return dataclasses.replace(
        stats,
        lse=values[RowValue.LSE],
        max_prob=values[RowValue.MAX_PROB],
        entropy=values[RowValue.ENTROPY],
        margin=values[RowValue.MARGIN],
    )


@torch.library.impl(LIBRARY, "weak_ce_values", "CompositeExplicitAutograd")
def _values(logits: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    p, spec = from_operator(unit_column_stride(logits), *arguments)
    record = filled_record(solve(p, spec, None, False), p, spec)
    _, stats, index, _ = record
    margin, second = margins(p.logits, index[Index.ARGMAX], spec.softcap)
    return *record, row_values(stats, margin), second


@torch.library.register_fake("w2s_fast::weak_ce_values")
def _values_fake(logits: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    loss, stats, index, at = fake_weak_ce(logits, *arguments)
    values = loss.new_empty((len(RowValue), loss.shape[0]))
    return loss, stats, index, at, values, index.new_empty(loss.shape)


@torch.library.impl(LIBRARY, "weak_ce_values_backward", "CompositeExplicitAutograd")
def _values_backward(
    upstream: Tensor | None, grad_values: Tensor | None, logits: Tensor, *arguments: Any
) -> Tensor:
    ids, probs, rest, weight, stats, index, second, *terms = arguments
    p, spec, stats, index = from_backward(
        unit_column_stride(logits), ids, probs, rest, weight, stats, index, *terms
    )
    kernels = backend("cross_entropy", p.logits)
    # The upstream already holds the row weights, and may be an expanded scalar.
    rows = torch.zeros_like(stats[0]) if upstream is None else upstream.to(stats.dtype).contiguous()
    grad = kernels.gradient_buffer(p)
    call = RowCall(p, spec, stats, index, grad=grad, row_scale=rows)
    if grad_values is None:
        kernels.gradient(call)
    else:
        write_gradient(call, ValueGradient(grad_values.to(stats.dtype), second))
    return grad


@torch.library.register_fake("w2s_fast::weak_ce_values_backward")
def _values_backward_fake(
    upstream: Tensor | None, grad_values: Tensor | None, logits: Tensor, *_: Any
) -> Tensor:
    return torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, ids, probs, rest, weight, _, _, _, *ctx.terms = inputs
    _, stats, index, threshold, _, second = output
    ctx.save_for_backward(logits, ids, probs, rest, weight, stats, index, second)
    ctx.mark_non_differentiable(stats, index, threshold, second)
    ctx.set_materialize_grads(False)


def _backward(
    ctx: Any, upstream: Tensor | None, *others: Tensor | None
) -> tuple[Tensor | None, ...]:
    grad, grad_values = None, others[3]
    if upstream is not None or grad_values is not None:
        grad = torch.ops.w2s_fast.weak_ce_values_backward(
            upstream, grad_values, *ctx.saved_tensors, *ctx.terms
        )
    return (grad, *(None,) * 13)


differentiable("weak_ce_values", "cross_entropy", _backward, _save)
differentiable("weak_ce_values_backward", "cross_entropy", refuse("cross_entropy"))
