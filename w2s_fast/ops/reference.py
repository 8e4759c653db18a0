"""The reference that backends are tested against, and inputs that break usual assumptions.

``cross_entropy_reference`` shares no code with any backend: it builds the detached target of every
row in full, takes ``log_softmax``, and leaves the gradient to autograd. Run it in fp64.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from w2s_fast.ops.balanced.api import balanced_bias
from w2s_fast.ops.targets import SparseTargets

KINDS = ("hard", "dense", "sparse", "rest")
REGIMES = ("plain", "huge", "confident", "ties", "masked")


class Own(NamedTuple):
    """The self-target of each row, and the score and threshold behind it."""

    coefficient: Tensor  # (N,)
    hard_class: Tensor  # (N,) int64
    score: Tensor  # (N,) margin z_0 - z_1 for two classes, else the top probability
    threshold: Tensor  # 0-d, in units of the score


def cross_entropy_reference(
    logits: Tensor,
    weak: Tensor | SparseTargets,
    *,
    weight: Tensor | None = None,
    aux: float | Tensor = 0.0,
    rule: str = "none",
    threshold: Tensor | None = None,
    own: Own | None = None,
    focal_gamma: float = 0.0,
    max_confidence: float = math.inf,
    smoothing: float = 0.0,
    softcap: float = 0.0,
    z_loss: float = 0.0,
    ignore_index: int = -100,
    reduction: str = "sum",
) -> Tensor:
    """Compute the loss of ``weak_loss`` by its definition, in the dtype of ``logits``.

    Args:
        own: self-target decided elsewhere. A threshold cuts between scores that differ in the last
            bit, so a comparison of values must share the decision and check it separately.

    Returns:
        0-d loss, or (N,) for ``reduction="none"``; differentiable in ``logits`` and ``weight``.
    """
    counted = kept_rows(logits, weak, weight, ignore_index)
    z = torch.where(counted[:, None], logits, 0.0)
    if softcap:
        z = softcap * torch.tanh(z / softcap)
    if own is None:
        own = decide(z.detach(), weak, counted, rule, aux, threshold)
    q, rest, in_topk = dense_target(weak, z, counted)
    a = own.coefficient.to(z.dtype)[:, None]
    mass = q.sum(1, keepdim=True) + rest[:, None]
    mixed = (1 - smoothing) * q + smoothing * mass / z.shape[1]
    target = (1 - a) * mixed + a * torch.nn.functional.one_hot(own.hard_class, z.shape[1])
    log_p = z.log_softmax(1)
    row = -torch.where(target != 0, target * log_p, 0.0).sum(1)
    if bool((rest != 0).any()):
        outside = torch.where(in_topk, -math.inf, log_p).logsumexp(1)
        pull = (1 - a[:, 0]) * (1 - smoothing) * rest
        row = row - torch.where(pull != 0, pull * outside, 0.0)
    if z_loss:
        row = row + z_loss * z.logsumexp(1) ** 2
    p = log_p.detach().exp()
    chosen = p.gather(1, top_class(weak, q)[:, None])[:, 0]
    factor = (1 - chosen) ** focal_gamma * ~(p.amax(1) >= max_confidence)
    row = torch.where(counted, row * factor, 0.0)
    weights = counted.to(z.dtype) if weight is None else torch.where(counted, weight, 0).to(z.dtype)
    if reduction == "none":
        return row * weights
    total = weights.sum()
    loss = (row * weights).sum()
    if reduction == "mean":
        loss = loss / total if bool(total > 0) else loss * 0
    return loss


def kept_rows(
    logits: Tensor, weak: Tensor | SparseTargets, weight: Tensor | None, ignore_index: int
) -> Tensor:
    """Return (N,) bool: rows that count."""
    counted = torch.ones(logits.shape[0], dtype=torch.bool, device=logits.device)
    if isinstance(weak, Tensor) and not weak.is_floating_point():
        counted &= weak != ignore_index
    return counted if weight is None else counted & (weight.detach() != 0)


def decide(
    logits: Tensor,
    weak: Tensor | SparseTargets,
    counted: Tensor,
    rule: str,
    aux: float | Tensor,
    threshold: Tensor | None,
) -> Own:
    """Decide the self-target of every row by the rule; ``counted`` rows make the statistic."""
    n, v = logits.shape
    two = v == 2
    score = logits[:, 0] - logits[:, 1] if two else logits.softmax(1).amax(1)
    if rule == "prior" and not two:
        return _decide_balanced(logits, weak, counted, score, aux, threshold)
    at = score.new_tensor(math.inf if threshold is None else float(threshold))
    if threshold is None and rule in ("prior", "median") and bool(counted.any()):
        share = 0.5
        if rule == "prior":
            q, _, _ = dense_target(weak, logits, counted)
            share = float(q[counted, 1].double().mean().clamp(0, 1))
        at = _quantile(score[counted], share)
    above = score >= at
    best = logits.argmax(1)
    a = torch.as_tensor(aux, dtype=logits.dtype, device=logits.device).expand(n)
    if rule == "none":
        return Own(torch.zeros_like(a), best, score, at)
    if two:
        return Own(a, (~above).long(), score, at)
    if rule != "argmax":
        a = torch.where(above, a, 0.0)
    return Own(a, best, score, at)


def _quantile(x: Tensor, q: float) -> Tensor:
    """Compute ``torch.quantile``, but beside an infinite score return the upper neighbour."""
    place = torch.tensor(q, dtype=torch.float64) * (x.numel() - 1)
    low, high = x.sort().values[[int(place.floor()), int(place.ceil())]]
    value = torch.quantile(x, q)
    return high if bool((low.isinf() | high.isinf()) & ~x.isnan().any()) else value


def _decide_balanced(
    logits: Tensor,
    weak: Tensor | SparseTargets,
    counted: Tensor,
    score: Tensor,
    aux: float | Tensor,
    bias: Tensor | None,
) -> Own:
    q, _, _ = dense_target(weak, logits, counted)
    prior = q[counted].double().sum(0)
    if bias is not None:
        hard = (logits + bias).argmax(1)
    elif bool(counted.any()) and float(prior.sum()) > 0:
        hard = balanced_bias(logits.double(), prior, keep=counted).hard
    else:
        hard = logits.argmax(1)
    a = torch.as_tensor(aux, dtype=logits.dtype, device=logits.device).expand(len(logits))
    return Own(a, hard, score, score.new_tensor(-math.inf))


def dense_target(
    weak: Tensor | SparseTargets, logits: Tensor, counted: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (N, V) weak mass, (N,) residual mass, (N, V) bool of top-k classes."""
    n, v = logits.shape
    rest = logits.new_zeros(n)
    if isinstance(weak, SparseTargets):
        rows, slots = (weak.ids >= 0).nonzero(as_tuple=True)
        in_topk = torch.zeros(n, v, dtype=torch.bool, device=logits.device)
        q = logits.new_zeros(n, v)
        in_topk[rows, weak.ids[rows, slots]] = True
        q[rows, weak.ids[rows, slots]] = weak.probs[rows, slots].to(q.dtype)
        return q, rest if weak.rest is None else weak.rest.to(q.dtype), in_topk
    in_topk = torch.ones(n, v, dtype=torch.bool, device=logits.device)
    if weak.is_floating_point():
        return weak.to(logits.dtype), rest, in_topk
    q = torch.nn.functional.one_hot(torch.where(counted, weak, 0).clamp_min(0), v).to(logits.dtype)
    return q * counted[:, None], rest, in_topk


def top_class(weak: Tensor | SparseTargets, q: Tensor) -> Tensor:
    """Return (N,) int64: the weak label's top class, of sparse labels the first in order."""
    if not isinstance(weak, SparseTargets):
        return q.argmax(1)
    best = torch.where(weak.ids >= 0, weak.probs, -1.0).argmax(1, keepdim=True)
    return weak.ids.gather(1, best)[:, 0].clamp_min(0)


def cross_entropy_sample(
    n: int,
    v: int,
    dtype: torch.dtype,
    device: str,
    seed: int,
    kind: str = "",
    regime: str = "plain",
) -> dict[str, Any]:
    """Return the arguments of one call, with the usual invariants broken on purpose.

    Weak mass does not sum to 1, one row has none, sparse rows carry padding, one row has weight 0
    and one an ignored label, both with NaN logits. Logits lean towards the weak label, as a
    student's do.

    Args:
        kind: form of the weak label, one of ``KINDS``; empty picks one by ``seed``.
        regime: ``plain``; ``huge`` (+-1e4); ``confident`` (p -> 1); ``ties`` (few distinct
            values); ``masked`` (-inf logits where the weak label has no mass).
    """
    g = torch.Generator().manual_seed(seed)
    kind = kind or KINDS[seed % len(KINDS)]
    label = torch.randint(0, v, (n,), generator=g)
    logits = 2 * torch.randn(n, v, generator=g)
    logits[torch.arange(n), label] += 2.0
    if regime == "huge":
        logits = torch.where(torch.rand(n, v, generator=g) < 0.5, 1e4, -1e4) + logits
    elif regime == "confident":
        logits[torch.arange(n), label] += 25.0
    elif regime == "ties":
        logits = logits.div(3).round().mul(3)
    weak = _weak_sample(kind, label, v, g)
    if regime == "masked" and v > 1:
        q, _, _ = dense_target(weak, logits, torch.ones(n, dtype=torch.bool))
        logits = torch.where((q == 0) & (torch.rand(n, v, generator=g) < 0.5), -math.inf, logits)
        logits[torch.arange(n), label] = 1.0
    weight = 0.5 + torch.rand(n, generator=g)
    if n > 2:
        weight[1] = 0.0
        logits[1] = math.nan
    if n > 3 and isinstance(weak, Tensor) and not weak.is_floating_point():
        weak[3] = -100
        logits[3] = math.nan
    if isinstance(weak, SparseTargets):
        rest = None if weak.rest is None else weak.rest.to(device)
        weak = SparseTargets(weak.ids.to(device), weak.probs.to(device), rest)
    else:
        weak = weak.to(device)
    return {"logits": logits.to(dtype).to(device), "weak": weak, "weight": weight.to(device)}


def _weak_sample(kind: str, label: Tensor, v: int, g: torch.Generator) -> Tensor | SparseTargets:
    n = label.shape[0]
    if kind == "hard":
        return label.clone()
    q = torch.rand(n, v, generator=g) ** 4
    q[torch.arange(n), label] += 1.0
    q = q / q.sum(1, keepdim=True) * (0.6 + 0.8 * torch.rand(n, 1, generator=g))
    q[torch.rand(n, v, generator=g) < 0.2] = 0.0
    if n > 4:
        q[4] = 0.0
    if kind == "dense":
        return q
    k = max(1, min(5, v // 2))
    probs, ids = q.topk(k, dim=1) if n else (q[:, :k], label[:, None].expand(n, k))
    rest = torch.rand(n, generator=g) * 0.3 if kind == "rest" and v > k else None
    if k > 1:
        gone = torch.rand(n, k, generator=g) < 0.2
        gone[:, 0] = False
        ids = torch.where(gone, -1, ids)
        probs = torch.where(gone, math.nan, probs)  # the probability of padding is not read
    if rest is not None and n > 2:
        rest[2] = 0.0
    return SparseTargets(ids, probs, rest)
