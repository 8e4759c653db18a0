"""The loss of a teacher that is a sum of heads by its definition: all logits at once, and autograd.

It shares no code with the op. Run it in fp64.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from w2s_fast.ops.fused_linear.teacher.heads import TeacherHead
from w2s_fast.ops.reference import Own


def teacher_reference(
    hidden: Tensor,
    head: Tensor,
    teacher: list[TeacherHead],
    *,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    divergence: str = "cross_entropy",
    beta: float = 0.5,
    weight: Tensor | None = None,
    own: Own | None = None,
    smoothing: float = 0.0,
    softcap: float = 0.0,
    z_loss: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """Compute the loss of ``linear_cross_entropy(teacher=...)`` in the dtype of the inputs.

    Logits are made in the inputs' dtype and everything after them in fp32, or fp64 for fp64.

    Args:
        own: self-target of every row, decided elsewhere; None for no self-target.

    Returns:
        0-d loss, or (N,) for ``reduction="none"``; differentiable in every part of the student, the
        weights and the teacher's scales.
    """
    z = _capped(torch.nn.functional.linear(hidden, head, bias), softcap)
    log_q = teacher_log_probs(teacher, z.dtype, temperature)
    log_p = z.log_softmax(1)
    row = divergence_of(divergence, log_p, log_q, beta, smoothing)
    if own is not None:
        a = own.coefficient.to(z.dtype)
        own_log_p = log_p.gather(1, own.hard_class.unsqueeze(1)).squeeze(1)
        row = torch.where(a == 1, 0.0, (1 - a) * row) - torch.where(a != 0, a * own_log_p, 0.0)
    if z_loss:
        row = row + z_loss * z.logsumexp(1) ** 2
    if weight is None:
        weight = torch.ones_like(row)
    counted = weight != 0
    weight = torch.where(counted, weight, 0.0).to(row.dtype)  # excluded rows get no gradient
    row = torch.where(counted, row, 0.0) * weight
    if reduction == "none":
        return row
    total = weight.sum()
    loss = row.sum()
    return loss if reduction == "sum" else loss / total if bool(total > 0) else loss * 0


def teacher_log_probs(teacher: list[TeacherHead], dtype: torch.dtype, temperature: float) -> Tensor:
    """Return (N, V): the log-softmax of the sum of the terms."""
    logits = torch.zeros((), dtype=dtype)
    for scale, hidden, head, bias, softcap in teacher:
        term = _capped(torch.nn.functional.linear(hidden, head, bias), softcap)
        logits = logits + scale * term.to(dtype)
    return (logits / temperature).log_softmax(1)


def divergence_of(
    name: str, log_p: Tensor, log_q: Tensor, beta: float = 0.5, smoothing: float = 0.0
) -> Tensor:
    """Return (N,) divergences of the student's p from the teacher's q."""
    p, q = log_p.exp(), log_q.exp()

    def kl(a: Tensor, log_a: Tensor, log_b: Tensor) -> Tensor:
        return torch.where(a == 0, 0.0, a * (log_a - log_b)).sum(1)

    if name == "cross_entropy":
        target = (1 - smoothing) * q + smoothing / q.shape[1]
        return -torch.where(target == 0, 0.0, target * log_p).sum(1)
    if name == "forward_kl":
        return kl(q, log_q, log_p)
    if name == "reverse_kl":
        return kl(p, log_p, log_q)
    if name == "jeffreys":
        return kl(q, log_q, log_p) + kl(p, log_p, log_q)
    if name == "jsd":
        log_m = torch.logaddexp(log_q + math.log(beta), log_p + math.log(1 - beta))
        return beta * kl(q, log_q, log_m) + (1 - beta) * kl(p, log_p, log_m)
    if name == "total_variation":
        return (p - q).abs().sum(1) / 2
    if name == "hellinger":
        return ((log_p / 2).exp() - (log_q / 2).exp()).square().sum(1)
    assert name == "pearson"
    return ((p - q).square() / q).sum(1)


def _capped(logits: Tensor, softcap: float) -> Tensor:
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return softcap * torch.tanh(logits / softcap) if softcap else logits
