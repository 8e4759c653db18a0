r"""Divergences D(q, p) between a teacher's q and a student's p over all classes.

Each one gives its summands and two derivatives by class,

    A_v = p_v dD/dp_v,   B_v = q_v dD/dq_v,

from which the gradients by the logits z of p and t of q follow, whatever the divergence:

    dD/dz_v = A_v - p_v sum_u A_u,      dD/dt_v = B_v - q_v sum_u B_u.

A constant times p in A (times q in B) drops out; it is chosen so that both are small where p is
near q, and the differences above lose little. All are f-divergences; the list and their use in
weak-to-strong generalization are from arXiv 2506.03109, ``jsd`` with its weight beta from GKD
(arXiv 2306.13649, Eq. 1). The cross-entropy is forward KL plus the teacher's entropy.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from w2s_fast.ops.fused_linear.teacher.heads import CROSS_ENTROPY


class Pair(NamedTuple):
    """Rows of the student's p and the teacher's q, (n, V) each, and the options of a divergence."""

    log_p: Tensor
    log_q: Tensor
    p: Tensor
    q: Tensor
    beta: float
    smoothing: float


class Terms(NamedTuple):
    """Summands of D, and A and B of the formula above; (n, V) each."""

    summands: Tensor
    by_student: Tensor
    by_teacher: Tensor


def _times(p: Tensor, log_ratio: Tensor) -> Tensor:
    """Return p log_ratio, 0 where p is 0; a NaN stays one."""
    return torch.where(p == 0, 0.0, p * log_ratio)


def _cross_entropy(x: Pair) -> Terms:
    """-sum q log p, with label smoothing."""
    target, share = x.q, 1 - x.smoothing
    if x.smoothing:
        target = share * x.q + x.smoothing / x.q.shape[1]
    return Terms(-_times(target, x.log_p), -target, -share * _times(x.q, x.log_p))


def _forward_kl(x: Pair) -> Terms:
    """KL(q || p) = sum q log(q / p)."""
    value = _times(x.q, x.log_q - x.log_p)
    return Terms(value, -x.q, value)


def _reverse_kl(x: Pair) -> Terms:
    """KL(p || q) = sum p log(p / q)."""
    value = _times(x.p, x.log_p - x.log_q)
    return Terms(value, value, -x.p)


def _jsd(x: Pair) -> Terms:
    """beta KL(q || m) + (1 - beta) KL(p || m), m = beta q + (1 - beta) p."""
    log_m = torch.logaddexp(x.log_q + math.log(x.beta), x.log_p + math.log1p(-x.beta))
    by_teacher = x.beta * _times(x.q, x.log_q - log_m)
    by_student = (1 - x.beta) * _times(x.p, x.log_p - log_m)
    return Terms(by_teacher + by_student, by_student, by_teacher)


def _jeffreys(x: Pair) -> Terms:
    """KL(q || p) + KL(p || q)."""
    forward, reverse = _forward_kl(x), _reverse_kl(x)
    return Terms(*(a + b for a, b in zip(forward, reverse, strict=True)))


def _total_variation(x: Pair) -> Terms:
    """sum |p - q| / 2; its derivative is taken as 0 where p = q."""
    sign = torch.sign(x.p - x.q) / 2
    return Terms((x.p - x.q).abs() / 2, x.p * sign, -x.q * sign)


def _hellinger(x: Pair) -> Terms:
    """sum (sqrt p - sqrt q)^2, the squared Hellinger distance."""
    root_p, root_q = (x.log_p / 2).exp(), (x.log_q / 2).exp()
    gap = root_p - root_q
    return Terms(gap.square(), root_p * gap, -root_q * gap)


def _pearson(x: Pair) -> Terms:
    """sum (p - q)^2 / q, Pearson's chi-squared; large where the teacher's q is small."""
    excess = torch.where(x.p == x.q, 0.0, torch.expm1(x.log_p - x.log_q))  # p / q - 1
    gap = x.p - x.q
    return Terms(gap * excess, 2 * x.p * excess, -(gap + x.p * excess))


DIVERGENCES: dict[str, Callable[[Pair], Terms]] = {
    CROSS_ENTROPY: _cross_entropy,
    "forward_kl": _forward_kl,
    "reverse_kl": _reverse_kl,
    "jsd": _jsd,
    "jeffreys": _jeffreys,
    "total_variation": _total_variation,
    "hellinger": _hellinger,
    "pearson": _pearson,
}
