"""The records of a loss call: its spec, one pass of a row kernel, and the result.

A call starts as ``LossInputs`` (logits and targets, see ``targets``) and a ``LossSpec``. Every
backend function takes one ``RowCall``, reads its inputs and fills its buffers. ``LossResult`` is
what the solver returns to autograd.

Every backend writes the same record: twelve numbers and three class ids a row. All statistics, the
loss after a late threshold, and the gradient follow from the record and the logits alone. M is the
row maximum, S = sum_v exp(z_v - M); logits appear only as differences from M, so nothing is lost at
|z| = 1e4.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor

from w2s_fast.ops.dtypes import DTYPE_CODES
from w2s_fast.ops.targets import LossInputs


class Stat(IntEnum):
    """Rows of the (12, N) floating point record."""

    LOSS = 0  # row loss, without the row weight; exactly 0 on rows that do not count
    MAX = 1  # M
    LOGS = 2  # log S, so lse = M + log S
    ENTROPY = 3  # of the student's distribution, nats; only where the spec wants it
    MASS = 4  # total weak mass, the residual included
    LINEAR = 5  # sum_v q_v (z_v - M), q the weak mass without the residual
    MEAN = 6  # mean_v (z_v - M); written only when label smoothing is on
    CHOSEN = 7  # z_c - M for the weak label's top class c
    TAIL = 8  # log of the student's mass outside the top-k classes; only with a residual
    COEF = 9  # self-target coefficient a of this row, after its gate
    FACTOR = 10  # focal and window factor; 0 on rows that do not count
    SCORE = 11  # compared with thresholds: z_0 - z_1 for two classes, else max_v p_v


class Index(IntEnum):
    """Rows of the (3, N) int64 record."""

    ARGMAX = 0  # first class with the largest logit
    WEAK = 1  # the weak label's top class
    SELF = 2  # the hard class of the self-target


class RowRule(IntEnum):
    """How a row gets its self-target; ``w2s::Rule`` in csrc/w2s.h."""

    NONE = 0  # a = 0
    ARGMAX = 1  # a on every row
    GATE = 2  # a where SCORE >= threshold
    MARGIN = 3  # two classes: a on every row, hard class 0 iff SCORE >= threshold
    GIVEN = 4  # a on every row, whose hard class the caller has written into SELF


class ThresholdFrom(IntEnum):
    """Where the threshold of two classes comes from; ``w2s::Select`` in csrc/w2s.h."""

    GIVEN = 0  # the number or tensor of the spec, or none is needed
    PRIOR = 1  # quantile of the margins at the mean weak P(class 1)
    MEDIAN = 2


@dataclass(slots=True)
class LossSpec:
    """Coefficients and self-target of a call. ``threshold`` is in SCORE units.

    For rule ``prior`` and more than two classes the threshold is a class bias (V,) instead. None
    stands for the statistic of the batch. Of two classes it may be a number, which ``two_class``
    takes without a tensor on the device.
    """

    rule: str = "none"
    aux: float | Tensor = 0.0
    threshold: Tensor | float | None = None
    smoothing: float = 0.0
    focal_gamma: float = 0.0
    max_confidence: float = math.inf
    softcap: float = 0.0
    z_loss: float = 0.0
    record: bool = True  # False: a backend may skip the per-row record where it does not need it
    entropy: bool = True  # False: nothing reads ENTROPY, and a backend may leave it 0
    sums: bool = False  # True: ``two_class`` of a backend with SUMS_TWO_CLASS also sums statistics

    def row_rule(self, n_classes: int) -> RowRule:
        """Return the rule of a row, once the threshold of the batch is known."""
        if self.rule == "none":
            return RowRule.NONE
        if n_classes == 2:
            return RowRule.MARGIN
        if self.rule == "prior":
            return RowRule.GIVEN
        return RowRule.ARGMAX if self.rule == "argmax" else RowRule.GATE

    def threshold_tensor(self, p: LossInputs) -> Tensor | None:
        """Return the threshold as a tensor in the precision of the record, on its device."""
        if isinstance(self.threshold, float):
            return torch.full((), self.threshold, dtype=p.accumulator, device=p.logits.device)
        return self.threshold

    def threshold_and_number(self) -> tuple[Tensor | None, float | None]:
        """Return the threshold as a tensor on its device, or as a number."""
        at = self.threshold
        return (None, at) if isinstance(at, float) else (at, None)

    def threshold_from(self) -> ThresholdFrom:
        """Return where a call over two classes takes its threshold from."""
        if self.threshold is not None:
            return ThresholdFrom.GIVEN
        return _BATCH_STATISTIC.get(self.rule, ThresholdFrom.GIVEN)


_BATCH_STATISTIC = {"prior": ThresholdFrom.PRIOR, "median": ThresholdFrom.MEDIAN}


@dataclass(slots=True)
class RowCall:
    """One pass of a row kernel: the inputs it reads, its parameters, the buffers it fills."""

    inputs: LossInputs
    spec: LossSpec
    stats: Tensor  # (12, N), rows as in ``Stat``; may be empty in ``two_class``
    index: Tensor  # (3, N) int64, rows as in ``Index``
    rule: RowRule = RowRule.NONE
    threshold: Tensor | None = None  # 0-d; None: every gate is open
    grad: Tensor | None = None  # (N, V) in the dtype of the logits; may be their memory
    scale: Tensor | None = None  # 0-d factor of the gradient besides the row weight; None for 1
    row_scale: Tensor | None = None  # (N,), phase ``gradient``: replaces scale and weight
    topk_diffs: Tensor | None = None  # (N, K) z_id - M, written for ``fixup``

    def packed(
        self,
        make: Callable[..., Any],
        aux: float,
        threshold: float,
        scale: float,
        aux_at: int = 0,
        threshold_at: int = 0,
        scale_at: int = 0,
    ) -> Any:
        """Return the C struct ``w2s::RowCall`` of this call; the order is that of csrc/w2s.h.

        Args:
            make: constructor that a compiled module exports.
            aux_at, threshold_at, scale_at: addresses in device memory, 0 for the number.
        """
        p, spec, row_scale, topk, grad = (
            self.inputs, self.spec, self.row_scale, self.topk_diffs, self.grad
        )  # fmt: skip
        logits, ids, probs, rest, weight, ignore_index, probs_are_logits = p
        n, v = logits.shape
        # No helper for null pointers: a loss of 8 rows takes 10 us, and calls would add 5 %.
        return make(
            n, v, 0 if ids is None else ids.shape[1],
            logits.data_ptr(), logits.stride(0), DTYPE_CODES[logits.dtype],
            0 if ids is None else ids.data_ptr(),
            0 if probs is None else probs.data_ptr(),
            0 if probs is None else probs.stride(0),
            0 if probs is None else DTYPE_CODES[probs.dtype], probs_are_logits, spec.entropy,
            0 if rest is None else rest.data_ptr(),
            0 if weight is None else weight.data_ptr(),
            ignore_index, self.rule, aux, threshold,
            spec.smoothing, spec.focal_gamma, spec.max_confidence, spec.softcap, spec.z_loss, scale,
            0 if row_scale is None else row_scale.data_ptr(),
            0 if row_scale is None else row_scale.stride(0),
            self.stats.data_ptr(), self.index.data_ptr(),
            0 if topk is None else topk.data_ptr(),
            0 if grad is None else grad.data_ptr(),
            0 if grad is None else grad.stride(0), aux_at, threshold_at, scale_at,
        )  # fmt: skip


def new_record(p: LossInputs) -> tuple[Tensor, Tensor]:
    """Return ``stats`` (12, N), zeroed, and ``index`` (3, N) for a pass to fill."""
    n, device = p.logits.shape[0], p.logits.device
    stats = torch.zeros((len(Stat), n), dtype=p.accumulator, device=device)
    return stats, torch.empty((len(Index), n), dtype=torch.int64, device=device)


def empty_record(p: LossInputs, wanted: bool) -> tuple[Tensor, Tensor]:
    """Return ``stats`` and ``index`` for a kernel that writes every entry; empty if not wanted."""
    n, device = p.logits.shape[0] if wanted else 0, p.logits.device
    stats = torch.empty((len(Stat), n), dtype=p.accumulator, device=device)
    return stats, torch.empty((len(Index), n), dtype=torch.int64, device=device)


@dataclass(slots=True)
class LossResult:
    """What one call computed.

    The CPU's two-class call returns plain numbers for ``normaliser`` and ``threshold``: a tensor of
    each costs more than the loss of a small batch.
    """

    stats: Tensor  # the record; empty if spec.record is False
    index: Tensor
    loss: Tensor  # 0-d
    normaliser: Tensor | float
    threshold: Tensor | float | None
    # Gradients for upstream 1: of the logits, or of hidden, head and bias. None where not needed.
    grads: tuple[Tensor | None, ...] = ()
    logits: Tensor | None = None  # (N, V), on request, where one chunk holds them all
    slopes: Tensor | None = None  # (M, N) derivatives of row losses by the scales of a teacher
    # (3,) loss, normaliser and threshold on a GPU, for ``two_class_gradient``.
    scalars: Tensor | None = None
    sums: Tensor | None = None  # (4,) of ``StatSums``, where the spec wants them
