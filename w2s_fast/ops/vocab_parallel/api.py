r"""The fused head with its vocabulary split over ranks: V / R rows of the head on each.

    lse = log sum_r exp(lse_r),   argmax, entropy and top probability from eleven numbers a row and
    rank,   dlogits_r as in ``cross_entropy`` with the merged record,
    dhidden = sum_r dlogits_r head_r,   dhead_r = dlogits_r^T hidden

Every rank gives the same hidden states and targets, as tensor parallelism leaves them, and gets the
same loss and dhidden, and the gradient of its own head rows. Results equal those of the whole head
on one rank up to rounding. Messages: 88 bytes a row and rank for the record, 4 K for K top-k
classes, and dhidden.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.ops.arguments import checked
from w2s_fast.ops.chunking import DEFAULT_MEMORY_MIB
from w2s_fast.ops.cross_entropy.algorithm import check_spec, make_spec
from w2s_fast.ops.cross_entropy.autograd import (
    TWICE,
    needs_upstream,
    row_scale,
    scaled,
    snapshot,
    weight_gradient,
)
from w2s_fast.ops.fused_linear.chunks import HeadInputs, NeedsGrad, shape_only
from w2s_fast.ops.fused_linear.cross_entropy import cast_for_autocast, check_head, flat_rows
from w2s_fast.ops.loss_call import LossResult, LossSpec, Stat
from w2s_fast.ops.quantile.distributed import check_group
from w2s_fast.ops.results import Stats, check_reduction, make_stats
from w2s_fast.ops.targets import LossInputs, SparseTargets, attach_targets
from w2s_fast.ops.transforms import refuse_batched, refuse_transforms
from w2s_fast.ops.vocab_parallel.algorithm import Shard, gradients_from_rows, solve_vocab


@checked
def vocab_parallel_cross_entropy(
    hidden: Tensor,
    head: Tensor,
    weak: Tensor | SparseTargets,
    *,
    group: Any,
    shard: tuple[int, int] | None = None,
    bias: Tensor | None = None,
    positions: Tensor | None = None,
    memory_mib: float = DEFAULT_MEMORY_MIB,
    fp32_head_gradient: bool = True,
    weight: Tensor | None = None,
    aux: float | Tensor = 0.0,
    threshold: str | float | None = None,
    smoothing: float = 0.0,
    softcap: float = 0.0,
    z_loss: float = 0.0,
    ignore_index: int = -100,
    reduction: str = "mean",
    return_stats: bool = False,
) -> Tensor | tuple[Tensor, Stats]:
    """Compute ``linear_cross_entropy`` with this rank's rows of the head. Eager only.

    Args:
        hidden: (N, D) or (B, T, D), the same on every rank. Gets the sum of all ranks' gradients.
        head: (V_r, D) this rank's rows. Gets gradients.
        weak: int (N,) and ``SparseTargets`` name classes of the whole vocabulary, the same on
            every rank; float (N, V_r) is this rank's part of the weak probabilities.
        group: ``torch.distributed`` process group over which the vocabulary is split, in rank
            order.
        shard: (first class, V) of this rank; None where all shards have V_r classes.
        bias: (V_r,) this rank's part.
        positions, memory_mib, fp32_head_gradient, weight, aux, threshold, smoothing, softcap,
            z_loss, ignore_index, reduction, return_stats: see ``linear_cross_entropy``; the budget
            is a rank's own. Needs V > 2.

    Returns:
        The loss, equal on every rank, or ``(loss, Stats)`` with global class ids.

    Raises:
        W2SError: as ``linear_cross_entropy``, and for a shard or group that does not fit.
        RuntimeError: on a second derivative, or a tangent of forward mode.
    """
    check_group(group)
    hidden, head, bias = cast_for_autocast(hidden, head, bias)
    rows = flat_rows(hidden, positions)
    check_head(rows, head, bias)
    at = _shard(head.shape[0], shard, group)
    p = _inputs(rows, weak, weight, ignore_index, at)
    spec = make_spec(p, aux, threshold, smoothing, softcap, z_loss)
    check_spec(spec, p)
    check_reduction(reduction)
    dtype = None if weight is None else weight.dtype
    call = _EagerCall(p, spec, at, (memory_mib, fp32_head_gradient), reduction, dtype)
    refuse_transforms("vocab_parallel_cross_entropy", rows, head, bias, weight)
    loss = _VocabLoss.apply(rows, head, bias, weight, call)
    assert call.result is not None
    return (loss, make_stats(p, call.result)) if return_stats else loss


@checked
def vocab_parallel_logprob(
    hidden: Tensor,
    head: Tensor,
    tokens: Tensor,
    *,
    group: Any,
    shard: tuple[int, int] | None = None,
    bias: Tensor | None = None,
    softcap: float = 0.0,
    memory_mib: float = DEFAULT_MEMORY_MIB,
    ignore_index: int = -100,
) -> Tensor:
    """(N,) log-probabilities of ``tokens`` (N,), 0 for ignored ones; see ``linear_logprob``.

    Every rank gives the same hidden states and tokens and its own rows of the head.
    """
    loss = vocab_parallel_cross_entropy(
        hidden, head, tokens, group=group, shard=shard, bias=bias, softcap=softcap,
        memory_mib=memory_mib, ignore_index=ignore_index, reduction="none",
    )  # fmt: skip
    assert isinstance(loss, Tensor)
    return -loss


def _shard(width: int, shard: tuple[int, int] | None, group: Any) -> Shard:
    ranks = dist.get_world_size(group)
    first, total = shard or (dist.get_rank(group) * width, ranks * width)
    if not 0 <= first <= first + width <= total:
        raise W2SError(
            f"shard is {(first, total)} for {width} rows of the head; expected (first class, V) "
            f"with 0 <= first and first + {width} <= V"
        )
    if total <= 2:
        raise W2SError(f"the vocabulary has {total} classes; a split needs more than two")
    return Shard(first, width, total, group)


def _inputs(
    rows: Tensor,
    weak: Tensor | SparseTargets,
    weight: Tensor | None,
    ignore_index: int,
    shard: Shard,
) -> LossInputs:
    """Check targets: class ids against the whole vocabulary, dense labels against a shard."""
    n = rows.shape[0]
    dense = isinstance(weak, Tensor) and weak.is_floating_point()
    if isinstance(weak, Tensor) and not dense:
        weak = weak.flatten()
    if weight is not None:
        weight = weight.flatten()
    shape = shape_only(n, shard.width if dense else shard.total, rows)
    p = attach_targets(shape, weak, weight, ignore_index)
    return p._replace(logits=shape_only(n, shard.total, rows))


@dataclass(slots=True)
class _EagerCall:
    inputs: LossInputs
    spec: LossSpec
    shard: Shard
    memory: tuple[float, bool]  # memory_mib, fp32_head_gradient
    reduction: str
    weight_dtype: torch.dtype | None
    result: LossResult | None = None

    @property
    def mean(self) -> bool:
        return self.reduction == "mean"

    def in_forward(self, hidden: Tensor) -> bool:
        """Whether forward makes the gradients: the upstream is a scalar that may come later."""
        return self.reduction != "none" and not needs_upstream(hidden.dtype)

    def solve(self, x: HeadInputs, needs: NeedsGrad) -> LossResult:
        return solve_vocab(x, self.inputs, self.spec, needs, self.mean, self.shard)


class _VocabLoss(torch.autograd.Function):
    """Mean and sum make their gradients in forward; none, and fp16, in backward."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        head: Tensor,
        bias: Tensor | None,
        weight: Tensor | None,
        call: _EagerCall,
    ) -> Tensor:
        snapshot(call.spec)
        ctx.call = call
        ctx.save_for_backward(hidden, head, bias)
        x = HeadInputs(hidden, head, bias, *call.memory)
        needs = NeedsGrad(*ctx.needs_input_grad[:3])
        call.result = result = call.solve(x, needs if call.in_forward(hidden) else NeedsGrad())
        if call.reduction != "none":
            return result.loss.detach()
        rows = result.stats[Stat.LOSS]
        return rows.clone() if call.inputs.weight is None else rows * call.inputs.weight

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(TWICE.format("vocab_parallel_cross_entropy"))
        call: _EagerCall = ctx.call
        result, p = call.result, call.inputs
        assert result is not None
        hidden, head, bias = ctx.saved_tensors
        x = HeadInputs(hidden, head, bias, *call.memory)
        needs = NeedsGrad(*ctx.needs_input_grad[:3])
        grad_weight = None
        if ctx.needs_input_grad[3]:
            if call.reduction == "none":
                grad_weight = (result.stats[Stat.LOSS] * upstream).to(call.weight_dtype)
            else:
                grad_weight = weight_gradient(p, result, call.mean, upstream, call.weight_dtype)
        if not call.in_forward(hidden):
            refuse_batched("vocab_parallel_cross_entropy", upstream)
            rows = row_scale(p, result.normaliser, call.mean, upstream).contiguous()
            grads = gradients_from_rows(x, p, call.spec, result, rows, needs, call.shard)
            return (*grads, grad_weight, None)
        made, result.grads = result.grads, ()
        if not made:  # the first backward has handed its gradients over: make them again
            made = call.solve(x, needs).grads
        return (*(None if g is None else scaled(g, upstream) for g in made), grad_weight, None)
