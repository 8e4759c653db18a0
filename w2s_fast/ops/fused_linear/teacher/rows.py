r"""The row pass of a divergence from a teacher's q, with the contract of a backend.

    L_i = (1 - a_i) D(q_i, p_i) + a_i (-log p_i,self) + z_loss lse_i^2

The record of the student's rows (maximum, sum, score, gate a_i) is made by the kernels of the
backend against the teacher's top class. D and both of its derivatives are computed in PyTorch, a
block of rows of a few MiB at a time, so no second buffer of the size of a chunk exists. The inputs
of a call hold the logits t of the teacher.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from w2s_fast.ops.cross_entropy.ref import soft_cap_slope, soft_capped
from w2s_fast.ops.dispatch import backend
from w2s_fast.ops.fused_linear.teacher.divergences import DIVERGENCES, Pair
from w2s_fast.ops.fused_linear.teacher.heads import Teacher, row_blocks
from w2s_fast.ops.loss_call import Index, RowCall, Stat


class DivergenceRows:
    """Row kernels of the teacher's divergence: ``rows`` and ``gradient``, as backends have them."""

    FIXES_ANY_MASS = False

    def __init__(self, teacher: Teacher) -> None:
        self.divergence = DIVERGENCES[teacher.divergence]
        self.beta, self.learned = teacher.beta, any(teacher.learned)

    def rows(self, call: RowCall) -> None:
        """Fill the record and, with ``grad``, write scale * dL/dlogits.

        With a learned scale, dL/dt takes the place of t (without scale and row weight).
        """
        _student_record(call)
        row_scale, weight = None, call.inputs.weight
        if call.grad is not None:
            assert call.scale is not None
            row_scale = (call.scale if weight is None else call.scale * weight).expand(
                call.inputs.logits.shape[0]
            )
        for at in row_blocks(call.inputs.logits):
            self._block(call, at, row_scale, self.learned)

    def gradient(self, call: RowCall) -> None:
        """Write row_scale * dL/dlogits from the record; rows that do not count get exactly 0."""
        for at in row_blocks(call.inputs.logits):
            self._block(call, at, call.row_scale, False)

    def _block(self, call: RowCall, at: slice, row_scale: Tensor | None, learned: bool) -> None:
        p, stats, t = call.inputs, call.stats, call.inputs.probs
        assert t is not None
        log_q = torch.log_softmax(t[at].to(stats.dtype), 1)
        u = p.logits[at].to(stats.dtype)
        top, logs, a, factor = (
            stats[s, at].unsqueeze(1) for s in (Stat.MAX, Stat.LOGS, Stat.COEF, Stat.FACTOR)
        )
        log_p = soft_capped(u, call.spec.softcap) - top - logs
        x = Pair(log_p, log_q, log_p.exp(), log_q.exp(), self.beta, call.spec.smoothing)
        terms = self.divergence(x)
        own = call.index[Index.SELF, at].unsqueeze(1)
        self._loss(call, at, terms.summands.sum(1), log_p.gather(1, own).squeeze(1))
        if call.grad is not None:
            assert row_scale is not None
            g = (1 - a) * (terms.by_student - x.p * terms.by_student.sum(1, keepdim=True))
            g += a * x.p
            g.scatter_add_(1, own, -a)
            if call.spec.z_loss:
                g += 2 * call.spec.z_loss * (top + logs) * x.p
            if call.spec.softcap:
                g *= soft_cap_slope(u, call.spec.softcap)
            by_row = factor * row_scale[at].unsqueeze(1)
            call.grad[at] = torch.where(by_row != 0, g * by_row, 0.0)
        if learned:
            g = (1 - a) * (terms.by_teacher - x.q * terms.by_teacher.sum(1, keepdim=True))
            t[at] = torch.where(factor != 0, g * factor, 0.0)

    @staticmethod
    def _loss(call: RowCall, at: slice, divergence: Tensor, own_log_p: Tensor) -> None:
        stats = call.stats
        a, factor = stats[Stat.COEF, at], stats[Stat.FACTOR, at]
        # A coefficient of 1 removes an infinite divergence.
        row = torch.where((a == 1) & divergence.isinf(), 0.0, (1 - a) * divergence)
        row = row - torch.where(a != 0, a * own_log_p, 0.0)
        if call.spec.z_loss:
            lse = stats[Stat.MAX, at] + stats[Stat.LOGS, at]
            row = row + call.spec.z_loss * lse.square()
        stats[Stat.LOSS, at] = torch.where(factor != 0, row * factor, 0.0)


def _student_record(call: RowCall) -> None:
    """Fill the record of the student's rows against the teacher's top class."""
    p, spec = call.inputs, dataclasses.replace(call.spec, smoothing=0.0)
    assert p.probs is not None
    top = p.probs.argmax(1, keepdim=True)
    inputs = p._replace(ids=top, probs=None, ignore_index=-1, probs_are_logits=False)
    backend("cross_entropy", p.logits).rows(
        dataclasses.replace(call, inputs=inputs, spec=spec, grad=None)
    )
