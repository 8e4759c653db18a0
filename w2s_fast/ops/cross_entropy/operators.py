"""The registered operators of the weak-to-strong cross-entropy, for everything that is not eager.

Forward works from the logits, backward from the logits and the record. Neither is differentiable
twice; both raise.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from w2s_fast.ops.cross_entropy.algorithm import is_balanced, reduce_rows, solve
from w2s_fast.ops.dispatch import LIBRARY, backend
from w2s_fast.ops.dtypes import accumulator
from w2s_fast.ops.loss_call import Index, LossResult, LossSpec, RowCall, Stat
from w2s_fast.ops.targets import LossInputs
from w2s_fast.ops.transforms import differentiable

TWICE = (
    "w2s_fast.{} is not differentiable twice: its targets are detached, so a second "
    "derivative would be silently incomplete; do not use create_graph=True through it"
)
# Parts of the operators' schemas, shared with the operators of the fused head.
TARGETS = "Tensor? ids, Tensor? probs, Tensor? rest, Tensor? weight"
TERMS = (
    "int ignore_index, float smoothing, float focal_gamma, float max_confidence, float softcap, "
    "float z_loss"
)
SPEC = f"{TARGETS}, Tensor aux, Tensor? threshold, str rule, {TERMS}"

LIBRARY.define(
    f"weak_ce(Tensor logits, {SPEC}) "
    "-> (Tensor loss, Tensor stats, Tensor index, Tensor threshold)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
LIBRARY.define(
    f"weak_ce_backward(Tensor upstream, Tensor logits, {TARGETS}, Tensor stats, Tensor index, "
    f"{TERMS}) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def operator_arguments(p: LossInputs, spec: LossSpec) -> tuple[Any, ...]:
    """Return the arguments ``SPEC`` of an operator."""
    aux = torch.as_tensor(spec.aux, dtype=p.accumulator, device=p.logits.device)
    return (
        p.ids, p.probs, p.rest, p.weight, aux, spec.threshold_tensor(p), spec.rule, p.ignore_index,
        spec.smoothing, spec.focal_gamma, spec.max_confidence, spec.softcap, spec.z_loss,
    )  # fmt: skip


def from_operator(logits: Tensor, *arguments: Any) -> tuple[LossInputs, LossSpec]:
    """Return the call whose ``operator_arguments`` these are."""
    ids, probs, rest, weight, aux, threshold, rule, ignore_index, *terms = arguments
    p = LossInputs(logits, ids, probs, rest, weight, ignore_index)
    return p, LossSpec(rule, aux, threshold, *terms)


def reduced(
    p: LossInputs,
    spec: LossSpec,
    row: Tensor,
    record: list[Tensor],
    weight: Tensor | None,
    reduction: str,
) -> tuple[Tensor, LossResult]:
    """Reduce the row losses of an operator, differentiably, and bundle its other outputs."""
    stats, index, at = record
    loss, total = reduce_rows(p, row, weight, reduction)
    threshold = None if spec.rule in ("none", "argmax") else at
    return loss, LossResult(stats, index, loss, total.detach(), threshold)


@torch.library.impl(LIBRARY, "weak_ce", "CompositeExplicitAutograd")
def _weak_ce(logits: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    p, spec = from_operator(unit_column_stride(logits), *arguments)
    return filled_record(solve(p, spec, None, False), p, spec)


def filled_record(
    s: LossResult, p: LossInputs, spec: LossSpec
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return (loss, stats, index, threshold) of an operator, every entry defined."""
    # Rows of the record that this call leaves undefined.
    if not spec.smoothing:
        s.stats[Stat.MEAN] = 0.0
    if p.rest is None:
        s.stats[Stat.TAIL] = 0.0
    at = s.stats.new_full((), float("inf"))
    if s.threshold is not None:
        # A copy: outputs of an operator must not be its inputs.
        at = torch.as_tensor(s.threshold, dtype=s.stats.dtype, device=s.stats.device).clone()
    return s.stats[Stat.LOSS].clone(), s.stats, s.index, at


@torch.library.register_fake("w2s_fast::weak_ce")
def fake_weak_ce(logits: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return empty tensors in the form of the operator's results."""
    loss, stats, index, at = fake_record(logits)
    if is_balanced(arguments[6], logits.shape[1]):
        at = at.new_empty((logits.shape[1],))
    return loss, stats, index, at


def fake_record(like: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return empty tensors in the form of ``filled_record`` for the rows of ``like``."""
    n = like.shape[0]
    acc = accumulator(like.dtype)
    stats = like.new_empty((len(Stat), n), dtype=acc)
    index = like.new_empty((len(Index), n), dtype=torch.int64)
    return like.new_empty((n,), dtype=acc), stats, index, like.new_empty((), dtype=acc)


@torch.library.impl(LIBRARY, "weak_ce_backward", "CompositeExplicitAutograd")
def _weak_ce_backward(upstream: Tensor, logits: Tensor, *arguments: Any) -> Tensor:
    p, spec, stats, index = from_backward(unit_column_stride(logits), *arguments)
    kernels = backend("cross_entropy", p.logits)
    grad = kernels.gradient_buffer(p)
    # The upstream already holds the row weights, and may be an expanded scalar.
    rows = upstream.to(stats.dtype).contiguous()
    kernels.gradient(RowCall(p, spec, stats, index, grad=grad, row_scale=rows))
    return grad


def from_backward(logits: Tensor, *arguments: Any) -> tuple[LossInputs, LossSpec, Tensor, Tensor]:
    """Return inputs, spec and record from ``TARGETS``, stats, index and ``TERMS``."""
    ids, probs, rest, weight, stats, index, ignore_index, *terms = arguments
    p = LossInputs(logits, ids, probs, rest, weight, ignore_index)
    return p, LossSpec("none", 0.0, None, *terms), stats, index


@torch.library.register_fake("w2s_fast::weak_ce_backward")
def _weak_ce_backward_fake(upstream: Tensor, logits: Tensor, *_: Any) -> Tensor:
    return torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)


def unit_column_stride(logits: Tensor) -> Tensor:
    """Copy logits whose columns are not adjacent."""
    return logits if logits.stride(1) == 1 or logits.shape[1] == 1 else logits.contiguous()


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, ids, probs, rest, weight, _, _, _, *ctx.terms = inputs
    _, stats, index, threshold = output
    ctx.save_for_backward(logits, ids, probs, rest, weight, stats, index)
    ctx.mark_non_differentiable(stats, index, threshold)
    ctx.set_materialize_grads(False)


def _rows_backward(ctx: Any, upstream: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    grad = None
    if upstream is not None:
        grad = torch.ops.w2s_fast.weak_ce_backward(upstream, *ctx.saved_tensors, *ctx.terms)
    return (grad, *(None,) * 13)


def refuse(name: str) -> Any:
    """Return a backward that raises: ``name`` has no second derivative."""

    def backward(ctx: Any, *_: Any) -> None:
        raise RuntimeError(TWICE.format(name))

    return backward


differentiable("weak_ce", "cross_entropy", _rows_backward, _save)
differentiable("weak_ce_backward", "cross_entropy", refuse("cross_entropy"))
