"""Two ways from autograd to InfoNCE.

Eager mean and sum make both gradients in forward, 6 N M D operations, and backward returns them.
``reduction="none"``, ``torch.func`` and ``torch.compile`` go through two registered operators: only
backward has the upstream of every row, so it computes the similarities again, 8 N M D. Neither is
differentiable twice; both raise.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from w2s_fast.ops.cross_entropy.operators import refuse
from w2s_fast.ops.dispatch import LIBRARY
from w2s_fast.ops.info_nce.algorithm import mean_of, normaliser, solve
from w2s_fast.ops.info_nce.call import EXCLUDED, Negatives, Pairs, Stat, new_stats
from w2s_fast.ops.transforms import batched, differentiable, needs_operators

NAME = "info_nce"
_TWICE = (
    "w2s_fast.info_nce is not differentiable twice: its backward returns gradients that are "
    "constants; do not use create_graph=True through it"
)
_PAIRS = (
    "Tensor queries, Tensor documents, Tensor positives, Tensor? query_groups, "
    "Tensor? document_groups, Tensor? mask, bool within, float margin, float temperature, "
    "float focal_gamma, float memory_mib"
)
LIBRARY.define(
    f"info_nce({_PAIRS}) -> (Tensor loss, Tensor stats)", tags=(torch.Tag.pt2_compliant_tag,)
)
LIBRARY.define(
    f"info_nce_backward(Tensor upstream, {_PAIRS}, bool[2] needs_grad) "
    "-> (Tensor queries, Tensor documents)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def loss_and_stats(x: Pairs, weight: Tensor | None, reduction: str) -> tuple[Tensor, Tensor]:
    """Return the loss, differentiable in queries, documents and ``weight``, and the record."""
    if reduction == "none" or needs_operators() or type(x.queries) is not Tensor:
        row, stats = torch.ops.w2s_fast.info_nce(*_arguments(x))
        return _reduced(x, row, weight, reduction), stats
    inputs = (x.queries, x.documents, weight)
    if not torch.is_grad_enabled() or not any(t is not None and t.requires_grad for t in inputs):
        stats = solve(x).stats
        return _reduced(x, stats[Stat.LOSS], weight, reduction), stats
    record: list[Tensor] = []
    return _Eager.apply(*inputs, x, reduction == "mean", record), record[0]


def _arguments(x: Pairs) -> tuple[Any, ...]:
    """Return the arguments ``_PAIRS`` of an operator."""
    return (
        *x[:3], *x.negatives, float(x.temperature), float(x.focal_gamma), float(x.memory_mib),
    )  # fmt: skip


def _pairs(*arguments: Any) -> Pairs:
    """Return the call whose ``_arguments`` these are."""
    queries, documents, positives, *rules = arguments[:8]
    temperature, focal_gamma, memory_mib = arguments[8:]
    rest = (temperature, focal_gamma, memory_mib)
    return Pairs(queries, documents, positives, Negatives(*rules), *rest)


def _reduced(x: Pairs, row: Tensor, weight: Tensor | None, reduction: str) -> Tensor:
    loss = row if weight is None else row * weight.to(row.dtype)
    if reduction == "none":
        return loss
    total = loss.sum()
    return total if reduction == "sum" else mean_of(total, normaliser(x.positives, weight))


class _Eager(torch.autograd.Function):
    """Mean or sum, with the gradients made in forward."""

    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        documents: Tensor,
        weight: Tensor | None,
        x: Pairs,
        mean: bool,
        record: list[Tensor],
    ) -> Tensor:
        needs = (ctx.needs_input_grad[0], ctx.needs_input_grad[1])
        solution = solve(x, weight, needs, mean)
        record.append(solution.stats)
        rows, count = solution.stats[Stat.LOSS], normaliser(x.positives, weight)
        loss = _reduced(x, rows, weight, "mean" if mean else "sum")
        ctx.grads, ctx.mean = (solution.queries, solution.documents), mean
        tensors = (*x[:3], *x.negatives[:3], weight)
        ctx.save_for_backward(*tensors, rows, loss, count)
        ctx.constants = (*x.negatives[3:], *x[4:])
        return loss.clone()  # the saved one would be the output, which owns ctx

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(_TWICE)
        *tensors, weight, rows, loss, count = ctx.saved_tensors
        x = _pairs(*tensors, *ctx.constants)
        needs = (ctx.needs_input_grad[0], ctx.needs_input_grad[1])
        grad_weight = None
        if ctx.needs_input_grad[2]:
            slope = rows
            if ctx.mean:
                counted = (x.positives >= 0) & (count > 0)
                slope = torch.where(counted, (rows - loss) / count, 0.0)
            grad_weight = (slope * upstream).to(weight.dtype)
        grads, ctx.grads = ctx.grads, None
        if grads is None:  # the first backward returned the stored gradients: make them again
            solution = solve(x, weight, needs, ctx.mean)
            grads = (solution.queries, solution.documents)
        made = [None if g is None else _scaled(g, upstream, x.queries.dtype) for g in grads]
        return (*made, grad_weight, None, None, None)


def _scaled(grad: Tensor, upstream: Tensor, dtype: torch.dtype) -> Tensor:
    """Multiply by the upstream scalar, in place, and round once."""
    if batched(upstream):  # by is_grads_batched: a gradient for every scalar
        return (grad * upstream).to(dtype)
    if grad.device.type != "cpu" or upstream.item() != 1.0:
        grad.mul_(upstream)
    return grad.to(dtype)


@torch.library.impl(LIBRARY, "info_nce", "CompositeExplicitAutograd")
def _info_nce(*arguments: Any) -> tuple[Tensor, Tensor]:
    stats = solve(_pairs(*arguments)).stats
    return stats[Stat.LOSS].clone(), stats


@torch.library.register_fake("w2s_fast::info_nce")
def _info_nce_fake(queries: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    stats = new_stats(queries)
    return stats.new_empty((queries.shape[0],)), stats


@torch.library.impl(LIBRARY, "info_nce_backward", "CompositeExplicitAutograd")
def _info_nce_backward(upstream: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    *pairs, needs_grad = arguments
    x = _pairs(*pairs)
    # The upstream holds the row weights, and may be an expanded scalar.
    weight = upstream.to(new_stats(x.queries[:0]).dtype).contiguous()
    x = x._replace(positives=torch.where(weight != 0, x.positives, EXCLUDED))
    solution = solve(x, weight, (needs_grad[0], needs_grad[1]))
    empty = x.queries.new_empty(0)
    grads = (solution.queries, solution.documents)
    one, two = (empty.clone() if g is None else g.to(x.queries.dtype) for g in grads)
    return one, two


@torch.library.register_fake("w2s_fast::info_nce_backward")
def _info_nce_backward_fake(
    upstream: Tensor, queries: Tensor, documents: Tensor, *arguments: Any
) -> tuple[Tensor, Tensor]:
    needs = arguments[-1]
    one, two = (
        x.new_empty(x.shape if n else 0) for x, n in zip((queries, documents), needs, strict=True)
    )
    return one, two


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:6])
    ctx.constants = inputs[6:]
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, upstream: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    needs = [bool(n) for n in ctx.needs_input_grad[:2]]
    grads: tuple[Tensor | None, ...] = (None, None)
    if any(needs) and upstream is not None:
        made = torch.ops.w2s_fast.info_nce_backward(
            upstream, *ctx.saved_tensors, *ctx.constants, needs
        )
        grads = tuple(g if n else None for g, n in zip(made, needs, strict=True))
    return (*grads, *(None,) * 9)


differentiable("info_nce", NAME, _backward, _save)
differentiable("info_nce_backward", NAME, refuse(NAME))
