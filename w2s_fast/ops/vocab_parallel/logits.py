r"""The cross-entropy of logits whose classes are split over ranks: V / R columns on each.

The dense counterpart of ``vocab_parallel_cross_entropy``: the record of each row is merged over
ranks and dlogits_r written from it, so no logits are sent. Logits exist in full here, which makes a
threshold over the batch cheap: it is known before any gradient is written.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.ops.cross_entropy.algorithm import (
    check_spec,
    gradient_scale,
    make_spec,
    normaliser,
    total_loss,
)
from w2s_fast.ops.cross_entropy.ref import set_factor, set_loss, set_self_target
from w2s_fast.ops.fused_linear.chunks import HeadInputs, NeedsGrad, shape_only
from w2s_fast.ops.fused_linear.cross_entropy_autograd import EagerCall, Grads, apply_eagerly
from w2s_fast.ops.loss_call import LossResult, RowCall, Stat
from w2s_fast.ops.quantile import api as quantile_op
from w2s_fast.ops.results import Stats, check_reduction, check_return_stats, make_stats
from w2s_fast.ops.targets import LossInputs, SparseTargets, attach_targets, check_labels
from w2s_fast.ops.transforms import refuse_transforms
from w2s_fast.ops.vocab_parallel.algorithm import local_inputs, merged_call, write_gradient
from w2s_fast.ops.vocab_parallel.shard import Shard

_EVERY = slice(None)


def sharded_logits_cross_entropy(
    logits: Tensor,
    weak: Tensor | SparseTargets,
    shard: Shard,
    *,
    weight: Tensor | None = None,
    aux: float | Tensor = 0.0,
    threshold: str | float | None = None,
    smoothing: float = 0.0,
    softcap: float = 0.0,
    z_loss: float = 0.0,
    ignore_index: int = -100,
    reduction: str = "mean",
    inplace: bool = False,
    return_stats: bool | str = False,
) -> Tensor | tuple[Tensor, Stats]:
    """Compute ``cross_entropy`` of this rank's columns (N, V_r) of the logits. Eager only.

    Args:
        logits: (N, V_r) columns ``shard`` of the logits. Gets gradients.
        weak: int (N,) and ``SparseTargets`` name classes of all ranks; float (N, V_r) is this
            rank's part.
        shard: this rank's classes.
        weight, aux, threshold, smoothing, softcap, z_loss, ignore_index, reduction, return_stats:
            see ``cross_entropy``.
        inplace: must be False.

    Returns:
        The loss, equal on every rank, or ``(loss, Stats)`` with global class ids.

    Raises:
        W2SError: as ``cross_entropy``, and for ``inplace=True``.
        RuntimeError: on a second derivative, or inside ``torch.func`` transforms.
    """
    if check_return_stats(return_stats):
        raise W2SError(
            "return_stats is 'differentiable' for logits that are sharded over their classes; "
            "expected True or False"
        )
    if inplace:
        raise W2SError(
            "inplace is True for logits that are sharded over their classes; expected False"
        )
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    dense = isinstance(weak, Tensor) and weak.is_floating_point()
    n = logits.shape[0]
    shape = shape_only(n, shard.width if dense else shard.total, logits)
    p = attach_targets(shape, weak, weight, ignore_index)
    p = p._replace(logits=shape_only(n, shard.total, logits))
    spec = make_spec(p, aux, threshold, smoothing, softcap, z_loss)
    check_spec(spec, p)
    check_reduction(reduction)
    refuse_transforms("cross_entropy of sharded logits", logits, weight)
    # The logits take the place of hidden states; there is no head.
    x = HeadInputs(logits, logits.new_empty(0), None, 0.0)
    loss, result = apply_eagerly(_LogitsCall(p, spec, reduction, shard=shard), x, weight)
    return (loss, make_stats(p, result)) if return_stats else loss


@dataclass(slots=True, kw_only=True)
class _LogitsCall(EagerCall):
    shard: Shard

    name: ClassVar[str] = "cross_entropy"

    def solve(
        self, x: HeadInputs, p: LossInputs, needs: NeedsGrad, keep_logits: bool = False
    ) -> LossResult:
        check_labels(p)
        call = merged_call(local_inputs(p, _EVERY, x.hidden, self.shard), self.spec, self.shard)
        threshold = self.spec.threshold_tensor(p)
        if self.spec.rule == "median" and threshold is None:
            threshold = quantile_op.masked_quantile(call.stats[Stat.SCORE], 0.5, p.counted())
        call.rule, call.threshold = self.spec.row_rule(self.shard.total), threshold
        set_self_target(call)
        set_factor(call)
        set_loss(call, 0.0)  # the self class is the argmax, at z - M = 0
        total = normaliser(p)
        loss = total_loss(p, call.stats[Stat.LOSS], total if self.mean else None)
        grads: Grads = ()
        if needs.any:
            weight = call.inputs.weight
            assert weight is not None
            scale = gradient_scale(total, self.mean) * weight
            grads = (_gradient(call, scale, self.shard), None, None)
        return LossResult(call.stats, call.index, loss, total, threshold, grads)

    def gradients(self, x: HeadInputs, p: LossInputs, row_scale: Tensor, needs: NeedsGrad) -> Grads:
        assert self.result is not None
        inputs = local_inputs(p, _EVERY, x.hidden, self.shard)
        call = RowCall(inputs, self.spec, self.result.stats, self.result.index)
        return _gradient(call, row_scale.contiguous(), self.shard), None, None


def _gradient(call: RowCall, row_scale: Tensor, shard: Shard) -> Tensor:
    """Return dlogits; it is written over a copy of the logits."""
    z = torch.clone(call.inputs.logits, memory_format=torch.contiguous_format)
    copied = dataclasses.replace(call, inputs=call.inputs._replace(logits=z))
    return write_gradient(copied, row_scale, shard)
