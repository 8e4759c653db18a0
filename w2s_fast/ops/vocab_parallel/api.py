r"""The fused head with its vocabulary split over ranks: V / R rows of the head on each.

    lse = log sum_r exp(lse_r),   argmax, entropy and top probability from eleven numbers a row and
    rank,   dlogits_r as in ``cross_entropy`` with the merged record,
    dhidden = sum_r dlogits_r head_r,   dhead_r = dlogits_r^T hidden

Every rank passes the same hidden states and targets, as in tensor parallelism, and receives the
same loss and dhidden, and the gradient of its own head rows. Results equal those of the whole head
on one rank up to rounding. Messages: 88 bytes a row and rank for the record, 4 K for K top-k
classes, 8 for a teacher, and dhidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch.distributed as dist
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.ops.arguments import checked
from w2s_fast.ops.cross_entropy.algorithm import check_spec, make_spec
from w2s_fast.ops.fused_linear.chunks import HeadInputs, NeedsGrad, shape_only
from w2s_fast.ops.fused_linear.cross_entropy_autograd import EagerCall, Grads, apply_eagerly
from w2s_fast.ops.fused_linear.inputs import (
    cast_for_autocast,
    check_head,
    flat_rows,
    flat_targets,
)
from w2s_fast.ops.fused_linear.main_grad import find_main_grad, local_main_grad
from w2s_fast.ops.fused_linear.teacher.checks import check_target, make_teacher
from w2s_fast.ops.fused_linear.teacher.heads import Teacher, TeacherHead
from w2s_fast.ops.lazy_logits import Projected
from w2s_fast.ops.loss_call import LossResult, LossSpec
from w2s_fast.ops.quantile.distributed import check_group
from w2s_fast.ops.results import Stats, WeakLossOut, check_reduction, make_stats, with_stats
from w2s_fast.ops.targets import LossInputs, SparseTargets, attach_targets, without_targets
from w2s_fast.ops.transforms import refuse_transforms
from w2s_fast.ops.vocab_parallel.algorithm import gradients_from_rows, solve_vocab
from w2s_fast.ops.vocab_parallel.dtensor import (
    class_part,
    class_shard,
    has_dtensor,
    is_dtensor,
    labels_part,
    whole,
)
from w2s_fast.ops.vocab_parallel.shard import Shard, check_vocabulary


@checked
def vocab_parallel_cross_entropy(
    hidden: Tensor,
    head: Tensor,
    weak: Tensor | SparseTargets | None = None,
    *,
    group: Any,
    teacher: Sequence[TeacherHead] | None = None,
    temperature: float = 1.0,
    shard: tuple[int, int] | None = None,
    bias: Tensor | None = None,
    positions: Tensor | None = None,
    memory_mib: float | None = None,
    fp32_head_gradient: bool = True,
    main_grad: Tensor | bool = False,
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
        head: (V_r, D) this rank's rows. Gets gradients. Of a DTensor (V, D) sharded over its
            classes, the local part is taken; ``shard`` is read from it, and bias must be one too.
        weak: int (N,) and ``SparseTargets`` name classes of the whole vocabulary, the same on
            every rank; float (N, V_r) is this rank's part of the weak probabilities. Exactly one
            of ``weak`` and ``teacher`` is given.
        teacher: terms as there, with this rank's rows (V_r, D_m) of each head and of its bias; the
            loss is the cross-entropy. Plain tensors; a scale gets no gradient.
        temperature: of the teacher's softmax, above 0.
        group: ``torch.distributed`` process group over which the vocabulary is split, in rank
            order.
        shard: (first class, V) of this rank; None where all shards have V_r classes.
        bias: (V_r,) this rank's part.
        main_grad: as there, of this rank's rows.
        positions, memory_mib, fp32_head_gradient: see ``linear_cross_entropy``; the budget is a
            rank's own.
        weight, aux, threshold, smoothing, softcap, z_loss, ignore_index, reduction, return_stats:
            see ``linear_cross_entropy``. Needs V > 2.

    Returns:
        The loss, equal on every rank, or ``(loss, Stats)`` with global class ids.

    Raises:
        W2SError: as ``linear_cross_entropy``, and for a shard or group that does not fit.
        RuntimeError: on a second derivative, or a tangent of forward mode.
    """
    check_group(group)
    check_target(weak, teacher, temperature)
    added_to = find_main_grad(main_grad, head)
    if has_dtensor(hidden, head, weak, bias, positions, weight):
        shard, head, bias, weak = _local_classes(head, bias, weak, shard, group)
        hidden, weight = whole("hidden", hidden), whole("weight", weight)
        positions = whole("positions", positions)
    hidden, head, bias = cast_for_autocast(hidden, head, bias)
    labels, weight = flat_targets(hidden, weak, weight)
    rows = flat_rows(hidden, positions)
    check_head(rows, head, bias)
    at = _shard(head.shape[0], shard, group)
    p = _inputs(rows, labels, weight, ignore_index, at)
    terms = None if teacher is None else _teacher(teacher, rows, at, temperature)
    spec = make_spec(p, aux, threshold, smoothing, softcap, z_loss)
    check_spec(spec, p)
    check_reduction(reduction)
    refuse_transforms("vocab_parallel_cross_entropy", rows, head, bias, weight)
    added_to = local_main_grad(added_to, head)
    x = HeadInputs(
        rows, head, bias, memory_mib, fp32_head_gradient, main_grad=added_to, teacher=terms
    )
    loss, result = apply_eagerly(_ShardCall(p, spec, reduction, shard=at), x, weight)
    return (loss, make_stats(p, result)) if return_stats else loss


def sharded_projected_loss(
    logits: Projected,
    weak: Tensor | SparseTargets,
    weight: Tensor | None,
    spec: LossSpec,
    ignore_index: int,
    reduction: str,
    shard: Shard,
) -> WeakLossOut:
    """Compute ``weak_loss`` of lazy logits whose head is a DTensor, sharded over its classes.

    Hidden states, labels of all classes and weights are plain, and the same on every rank.
    """
    head = class_part("head", logits.weight, shard, 0)
    bias = class_part("bias", logits.bias, shard, 0)
    hidden, head, bias = cast_for_autocast(logits.hidden, head, bias)
    check_head(hidden, head, bias)
    p = _inputs(hidden, labels_part(weak, shard), weight, ignore_index, shard)
    spec.softcap = logits.softcap
    check_spec(spec, p)
    x = HeadInputs(hidden, head, bias, logits.memory_mib)
    loss, result = apply_eagerly(_ShardCall(p, spec, reduction, shard=shard), x, weight)
    return with_stats(loss, p, result)


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
    memory_mib: float | None = None,
    ignore_index: int = -100,
) -> Tensor:
    """Compute (N,) log-probabilities of ``tokens`` (N,), 0 if ignored; see ``linear_logprob``.

    Every rank passes the same hidden states and tokens, and its own rows of the head.
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
    check_vocabulary(total)
    return Shard(first, width, total, group)


def _local_classes(
    head: Any,
    bias: Tensor | None,
    weak: Tensor | SparseTargets | None,
    shard: tuple[int, int] | None,
    group: Any,
) -> tuple[tuple[int, int] | None, Tensor, Tensor | None, Tensor | SparseTargets | None]:
    """Return (first class, V) and the local parts of head, bias and weak labels."""
    if not is_dtensor(head):
        return shard, head, whole("bias", bias), whole("weak", weak)
    at = class_shard("head", head, 0)
    if (
        at is None
        or shard is not None
        or dist.get_process_group_ranks(group) != dist.get_process_group_ranks(at.group)
    ):
        raise W2SError(
            f"head is a DTensor with placements {tuple(head.placements)}; expected Shard(0) over "
            "the ranks of group, and shard=None: pass group=head.device_mesh.get_group(), or call "
            "linear_cross_entropy"
        )
    local_weak = labels_part(weak, at) if has_dtensor(weak) else weak
    return (at.first, at.total), head.to_local(), class_part("bias", bias, at, 0), local_weak


def _inputs(
    rows: Tensor,
    weak: Tensor | SparseTargets | None,
    weight: Tensor | None,
    ignore_index: int,
    shard: Shard,
) -> LossInputs:
    """Check targets: class ids against the whole vocabulary, dense labels against a shard."""
    n = rows.shape[0]
    if weak is None:  # a teacher makes them chunk by chunk
        return without_targets(shape_only(n, shard.total, rows), weight)
    dense = isinstance(weak, Tensor) and weak.is_floating_point()
    if isinstance(weak, Tensor) and not dense:
        weak = weak.flatten()
    if weight is not None:
        weight = weight.flatten()
    shape = shape_only(n, shard.width if dense else shard.total, rows)
    p = attach_targets(shape, weak, weight, ignore_index)
    return p._replace(logits=shape_only(n, shard.total, rows))


def _teacher(
    terms: Sequence[TeacherHead], rows: Tensor, shard: Shard, temperature: float
) -> Teacher:
    made = make_teacher(terms, rows.shape[0], shard.width, rows, temperature)
    if any(made.learned):
        raise W2SError(
            f"teacher[{made.learned.index(True)}].scale requires grad; expected a number or a "
            "constant: linear_cross_entropy learns scales"
        )
    return made


@dataclass(slots=True, kw_only=True)
class _ShardCall(EagerCall):
    shard: Shard

    name: ClassVar[str] = "vocab_parallel_cross_entropy"

    def solve(
        self, x: HeadInputs, p: LossInputs, needs: NeedsGrad, keep_logits: bool = False
    ) -> LossResult:
        return solve_vocab(x, p, self.spec, needs, self.mean, self.shard)

    def gradients(self, x: HeadInputs, p: LossInputs, row_scale: Tensor, needs: NeedsGrad) -> Grads:
        assert self.result is not None
        rows = row_scale.contiguous()
        return gradients_from_rows(x, p, self.spec, self.result, rows, needs, self.shard)
