r"""Weak-to-strong cross-entropy of a language-model head, without ever storing its logits.

    logits = hidden head^T + bias                 (N, V), in chunks of a memory budget
    L, dL/dlogits as in ``cross_entropy``
    dL/dhidden = dL/dlogits head,   dL/dhead = dL/dlogits^T hidden,   dL/dbias = sum_i dL/dlogits_i

With ``teacher`` the targets are made in the same chunks, from the hidden states of other models:

    q = softmax(sum_m a_m h_m W_m^T / T),   L = D(q, softmax(logits)),   cross-entropy or another D

N rows, D hidden size, V classes. With mean or sum every gradient is made in forward: 6 N V D
operations, the same as three bare GEMMs, and memory for one chunk of logits beside the gradients.
A threshold over the whole batch is exact. For hard labels, and for top-k labels of mass 1 without
a residual, it costs rank-1 corrections instead of a second pass; see
``solve.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from w2s_fast.ops.arguments import checked
from w2s_fast.ops.cross_entropy.algorithm import check_spec, make_spec
from w2s_fast.ops.dispatch import Cost
from w2s_fast.ops.fused_linear.chunks import HeadInputs, shape_only
from w2s_fast.ops.fused_linear.cross_entropy_autograd import differentiable_loss
from w2s_fast.ops.fused_linear.inputs import (
    cast_for_autocast,
    check_head,
    flat_rows,
    flat_targets,
)
from w2s_fast.ops.fused_linear.main_grad import find_main_grad, local_main_grad
from w2s_fast.ops.fused_linear.solve import threshold_from_scores
from w2s_fast.ops.fused_linear.teacher import operators as _operators  # noqa: F401 - registers
from w2s_fast.ops.fused_linear.teacher.checks import check_options, check_target, make_teacher
from w2s_fast.ops.fused_linear.teacher.heads import TeacherHead
from w2s_fast.ops.lazy_logits import Projected
from w2s_fast.ops.loss_call import LossSpec
from w2s_fast.ops.results import Stats, WeakLossOut, make_stats, with_stats
from w2s_fast.ops.targets import LossInputs, SparseTargets, attach_targets, without_targets
from w2s_fast.ops.vocab_parallel.dtensor import class_shard, is_dtensor, whole
from w2s_fast.ops.vocab_parallel.entry import linear_takes_dtensors


@checked
@linear_takes_dtensors
def linear_cross_entropy(
    hidden: Tensor,
    head: Tensor,
    weak: Tensor | SparseTargets | None = None,
    *,
    teacher: Sequence[TeacherHead] | None = None,
    temperature: float = 1.0,
    divergence: str = "cross_entropy",
    beta: float = 0.5,
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
    """Compute ``cross_entropy(hidden @ head.T + bias, weak, ...)`` without storing logits.

    Args:
        hidden: (N, D) last hidden states, or (B, T, D); fp32, bf16, fp16 or fp64. Gets gradients.
        head: (V, D) weight of the language-model head, same dtype. Gets gradients; a frozen head
            or frozen hidden states skip their GEMM.
        weak: weak labels of the rows: int (N,) or (B, T), float (N, V) or (B, T, V), or
            ``SparseTargets``, whose tensors may have (B, T) in the place of N as well. Exactly one
            of ``weak`` and ``teacher`` is given.
        teacher: terms ``TeacherHead(scale, hidden, head, bias, softcap)``, or tuples in that order,
            over the student's vocabulary. The target is the softmax of the sum of their scaled
            logits; it is computed for one chunk at a time. Hidden states have the rows of ``weak``.
            A scale that is a tensor gets a gradient if it requires one, the rest gets none.
        temperature: T of the teacher's softmax, above 0; the student's stays 1.
        divergence: of the student from the teacher: ``"cross_entropy"``, ``"forward_kl"`` (the same
            gradient; its value is less by the teacher's entropy), ``"reverse_kl"``, ``"jsd"``,
            ``"jeffreys"``, ``"total_variation"``, ``"hellinger"`` or ``"pearson"``, see
            ``teacher/divergences.py``.
        beta: weight of the teacher in the mixture of ``"jsd"``, in (0, 1).
        bias: (V,) of the head. Gets gradients.
        positions: (M,) integer rows of the flattened hidden states that carry labels, e.g. one
            answer token a sequence; ``weak`` and ``weight`` are then of M rows, and no other row
            is touched. None: every row.
        memory_mib: what the logits of a chunk may take, in MiB; a teacher's target may take as
            much again. None: 64 on a CPU; on a GPU 1024, or what 1024 rows take if that is more,
            but at most a quarter of the free memory. Fewer rows starve the GEMMs of a GPU.
        fp32_head_gradient: sum a 16-bit head's gradient over chunks in fp32 and round once; costs
            4 V D bytes where there are several chunks (more than two on a CPU that multiplies in
            16 bits). False rounds once a chunk.
        main_grad: fp32 (V, D) buffer to which backward adds the head's gradient (fp64 for an fp64
            head), or True for ``head.main_grad``, as Megatron keeps it. ``head.grad`` then stays
            None. Only a head that has Megatron's flag ``grad_added_to_main_grad`` gets a
            gradient, of zeros, and the flag is set. Eager only.
        weight, aux, threshold, smoothing, softcap, z_loss, ignore_index, reduction, return_stats:
            see ``cross_entropy``.

    Under autocast hidden, head and bias are cast to its dtype, as ``F.linear`` would.
    ``reduction="none"``, ``main_grad`` and ``torch.compile`` make the logits a second time in
    backward.

    A DTensor head of placement Shard(0) takes ``vocab_parallel_cross_entropy``. Hidden states are
    then a DTensor on the same mesh, replicated or sharded, and labels, weights and positions are
    the same on every rank, or DTensors; the loss is a plain tensor, equal on every rank.

    Returns:
        0-d fp32 loss ((N,) for ``"none"``), or ``(loss, Stats)``.

    Raises:
        W2SError: for shapes, dtypes, devices, coefficients or a budget that do not fit.
        RuntimeError: on a second derivative, or a tangent of forward mode.
    """
    added_to = find_main_grad(main_grad, head)
    hidden, head, bias = cast_for_autocast(hidden, head, bias)
    check_target(weak, teacher, temperature, divergence, smoothing)
    weak, weight = flat_targets(hidden, weak, weight)
    hidden = flat_rows(hidden, positions)
    check_head(hidden, head, bias)
    shape = shape_only(hidden.shape[0], head.shape[0], hidden)
    added_to = local_main_grad(added_to, head)
    x = HeadInputs(hidden, head, bias, memory_mib, fp32_head_gradient, main_grad=added_to)
    if teacher is not None:
        n, v = shape.shape
        terms = make_teacher(teacher, n, v, hidden, temperature, divergence, beta)
        x, p = x._replace(teacher=terms), without_targets(shape, weight)
    else:
        check_options(temperature, divergence, beta)
        assert weak is not None
        p = attach_targets(shape, weak, weight, ignore_index)
    spec = make_spec(p, aux, threshold, smoothing, softcap, z_loss, entropy=bool(return_stats))
    loss, result = differentiable_loss(x, p, spec, weight, reduction)
    return (loss, make_stats(p, result)) if return_stats else loss


def projected_loss(
    logits: Projected,
    weak: Tensor | SparseTargets,
    weight: Tensor | None,
    spec: LossSpec,
    ignore_index: int,
    reduction: str,
) -> WeakLossOut:
    """Compute ``weak_loss`` of lazy logits; gradients go to hidden, weight and bias.

    Beside plain hidden states, which are then the same on every rank, the weight may be a DTensor.
    """
    if is_dtensor(logits.weight):
        shard = class_shard("head", logits.weight, 0)
        if shard is not None:
            from w2s_fast.ops.vocab_parallel.api import sharded_projected_loss

            return sharded_projected_loss(
                logits, weak, weight, spec, ignore_index, reduction, shard
            )
        weight_and_bias = whole("head", logits.weight), whole("bias", logits.bias)
        logits = replace(logits, weight=weight_and_bias[0], bias=weight_and_bias[1])
    x, p = _projected(logits, weak, weight, ignore_index)
    spec.softcap = logits.softcap
    loss, result = differentiable_loss(x, p, spec, weight, reduction)
    return with_stats(loss, p, result)


@torch.no_grad()
def projected_threshold(
    logits: Projected,
    weak: Tensor | SparseTargets,
    rule: str,
    weight: Tensor | None,
    ignore_index: int,
) -> Tensor:
    """Compute ``batch_threshold`` of lazy logits."""
    x, p = _projected(logits.detach(), weak, weight, ignore_index)
    spec = LossSpec(rule, softcap=logits.softcap)
    check_spec(spec, p)
    return threshold_from_scores(x, p, spec)


def _projected(
    logits: Projected, weak: Tensor | SparseTargets, weight: Tensor | None, ignore_index: int
) -> tuple[HeadInputs, LossInputs]:
    hidden, head, bias = cast_for_autocast(logits.hidden, logits.weight, logits.bias)
    check_head(hidden, head, bias)
    n, v = logits.shape
    p = attach_targets(shape_only(n, v, hidden), weak, weight, ignore_index)
    return HeadInputs(hidden, head, bias, logits.memory_mib), p


def cost(n: int, v: int, dtype: torch.dtype, d: int = 1024) -> Cost:
    """Return the cost: three GEMMs; hidden, head and their gradients are read or written once."""
    return Cost(bytes=2 * (n + v) * d * dtype.itemsize, flops=6 * n * v * d + 26 * n * v)


def reference(hidden: Tensor, head: Tensor, weak: Any, bias: Any = None, **kwargs: Any) -> Tensor:
    """Compute the logits in full, then ``cross_entropy_reference``."""
    from w2s_fast.ops.reference import cross_entropy_reference

    logits = torch.nn.functional.linear(hidden, head, bias)
    return cross_entropy_reference(logits, weak, **kwargs)
