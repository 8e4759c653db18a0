"""Rows of extreme logits and targets, and what the formula makes of them in plain fp64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from w2s_fast import SparseTargets

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
INF, NAN = math.inf, math.nan
LEAST = torch.finfo(FP32).min
# Quiet and signalling, both signs, payloads that carry into the sign when half a unit is added.
NANS = (0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001, 0xFF800001, 0x7FC00000)
BLOCK = 4096  # what the CPU kernels sum at once
LABEL = 1  # class of the hard label in every row


def nan_of(bits: int) -> Tensor:
    return torch.tensor(bits - (bits >> 31 << 32), dtype=torch.int32).view(FP32)


def logit_rows(v: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """A row of v logits for each extreme, by name."""
    base = 2 * torch.randn(v, generator=torch.Generator().manual_seed(v))
    least, last, none = float(torch.finfo(dtype).min), v - 1, torch.full((v,), -INF)
    rows = {"plain": base, "all -inf": none, "zeros": torch.zeros(v)}
    for name, x in (("-inf", -INF), ("least", least), ("+inf", INF)):
        for at in (0, LABEL):
            rows[f"{name} at {at}"] = base.index_fill(0, torch.tensor([at]), x)
        rows[f"all {name}"] = torch.full((v,), x)
        rows[f"{name}, one left"] = torch.full((v,), x).index_fill(0, torch.tensor([last]), 1.0)
        rows[f"{name} in front"] = torch.where(torch.arange(v) < v - 1 - v // 5, x, base)
        rows[f"{name} behind"] = torch.where(torch.arange(v) > v // 5, x, base)
    rows["+inf and -inf"] = rows["+inf at 0"].index_fill(0, torch.tensor([last]), -INF)
    rows["+inf and NaN"] = rows["+inf at 0"].index_fill(0, torch.tensor([last]), NAN)
    for offset in (1e6, 1e10, 1e30):
        rows[f"+{offset:g}"], rows[f"-{offset:g}"] = base + offset, base - offset
        rows[f"times {offset:g}"] = base * offset
        rows[f"+{offset:g} behind"] = torch.where(torch.arange(v) > v // 5, base + offset, base)
    rows["greatest"] = torch.full((v,), -least)
    rows = {name: row.to(dtype) for name, row in rows.items()}
    for bits in NANS:
        row = base.clone()
        row[v // 2] = nan_of(bits)
        rows[f"NaN {bits:x}"] = row.to(dtype)
        if dtype != FP32:  # the bits themselves, not what a conversion makes of them
            high = bits >> 16 if dtype == BF16 else (bits >> 16 & 0x83FF) | 0x7C01
            one = torch.tensor(high - (high >> 15 << 16), dtype=torch.int16).view(dtype)
            rows[f"NaN {high:x}"] = base.to(dtype).index_put((torch.tensor([v // 2]),), one)
    return rows


class Case(NamedTuple):
    """Rows of logits with a target each: as the op takes it, and as the formula does."""

    names: list[str]
    logits: Tensor
    weak: Tensor | SparseTargets
    q: Tensor  # (N, V) fp64
    rest: Tensor  # (N,) fp64
    in_topk: Tensor  # (N, V)


def probabilities(n: int, v: int) -> Tensor:
    q = torch.rand(n, v, generator=torch.Generator().manual_seed(n)) ** 3
    q[:, LABEL] += 1
    q[:, 0] = 0
    return 0.9 * q / q.sum(1, keepdim=True)


def case(kind: str, v: int, dtype: torch.dtype) -> Case:
    """Every extreme row of logits with a usual target, and extreme soft targets."""
    rows = logit_rows(v, dtype)
    names, z = list(rows), torch.stack(list(rows.values()))
    if kind == "hard":
        return _hard(names, z)
    # A 16th: what the formula multiplies them by must not make them infinite on the way.
    extreme = {f"q {x:g}": x for x in (INF, -INF, float(torch.finfo(dtype).min) / 16, 0.0)}
    extreme |= {f"q NaN {bits:x}": nan_of(bits) for bits in NANS}
    z = torch.cat([z, z[:1].expand(len(extreme), v), rows["-inf at 1"][None]])
    names += [*extreme, "q NaN on -inf"]
    q = probabilities(len(names), v)
    for i, x in enumerate((*extreme.values(), NAN), len(rows)):
        q[i, LABEL] = x
        if x == 0:
            q[i] = 0
    if kind.startswith("dense"):
        q = q.to(dtype) if kind == "dense" else q
        return Case(
            names, z, q, q.double(), torch.zeros(len(q)).double(), torch.ones_like(q).bool()
        )
    return _topk(names, z, q, kind == "rest")


def chosen(c: Case, names: Sequence[str]) -> Case:
    """The rows of those names."""
    at = [i for i, name in enumerate(c.names) if name in names]
    weak = c.weak
    if isinstance(weak, SparseTargets):
        rest = None if weak.rest is None else weak.rest[at]
        weak = SparseTargets(weak.ids[at], weak.probs[at], rest)
    else:
        weak = weak[at]
    return Case([c.names[i] for i in at], c.logits[at], weak, c.q[at], c.rest[at], c.in_topk[at])


def _hard(names: list[str], z: Tensor) -> Case:
    n, v = z.shape
    q = torch.nn.functional.one_hot(torch.full((n,), LABEL), v).double()
    return Case(names, z, torch.full((n,), LABEL), q, torch.zeros(n).double(), torch.ones(n, v) > 0)


def _topk(names: list[str], z: Tensor, q: Tensor, rest: bool) -> Case:
    n, v = z.shape
    q = torch.where(q < 0, 0.0, q)  # no top class among negative probabilities
    ids = torch.tensor([LABEL, -1, v - 1] if v > 2 else [LABEL, -1]).repeat(n, 1)
    probs = q.gather(1, ids.clamp_min(0))
    probs[:, 1] = NAN  # padding is not read
    left = torch.full((n,), 0.25) if rest else None
    if left is not None:
        left[-6:] = torch.tensor([INF, -INF, NAN, LEAST, 0.0, 0.1])
        # log P of what is outside would be LEAST + log(V - 2): no float holds both.
        left[names.index("least, one left")] = 0.0
    in_topk = torch.zeros(n, v, dtype=torch.bool).scatter(1, ids[:, [0, -1]].clamp_min(0), True)
    if v == 2:
        in_topk[:, 0] = False
    mass = torch.where(in_topk, q.double(), 0.0)
    total = torch.zeros(n).double() if left is None else left.double()
    return Case(names, z, SparseTargets(ids, probs, left), mass, total, in_topk)


def times(a: Tensor, b: Tensor) -> Tensor:
    """a b, 0 where one of them is 0."""
    return torch.where((a == 0) | (b == 0), 0.0, a * b)


def truth(c: Case, a: Tensor, own: Tensor, smoothing: float, softcap: float) -> dict[str, Tensor]:
    """Loss, gradient and statistics of every row in fp64."""
    z = c.logits.double()
    z = softcap * torch.tanh(z / softcap) if softcap else z
    top, first = z.max(1)
    first = torch.where(top.isnan(), 0, (z == top[:, None]).double().argmax(1))
    d = z - top[:, None]
    logs = torch.where(top.isfinite(), d.exp().sum(1).log(), NAN)
    logp = d - logs[:, None]
    p, mass = logp.exp(), c.q.sum(1) + c.rest
    outside = torch.where(c.in_topk, -INF, d).logsumexp(1) - logs
    loss = times(c.q, -logp).sum(1) - times(c.rest, outside)
    even = times(torch.tensor(smoothing), mass)
    loss = (1 - smoothing) * loss + times(even, -logp.mean(1)) + 0 * logs
    loss = times(1 - a, loss) + times(a, -logp.gather(1, own[:, None])[:, 0]) + 0 * logs
    loss = torch.where(mass.isnan() | (mass.isinf() & (a == 1)), NAN, loss)  # 0 * inf
    away = times(((1 - a) * (1 - smoothing) * c.rest)[:, None], (logp - outside[:, None]).exp())
    away = torch.where(c.in_topk, 0.0, away)
    hot = torch.nn.functional.one_hot(own, z.shape[1])
    target = ((1 - a) * (1 - smoothing))[:, None] * c.q + a[:, None] * hot
    grad = (
        ((1 - a) * mass + a)[:, None] * p - target - ((1 - a) * even / z.shape[1])[:, None] - away
    )
    if softcap:
        grad = grad * (1 - (z / softcap) ** 2)
    topk_q = torch.where(c.in_topk, c.q, -INF).nan_to_num(0, INF, -INF)
    best = torch.where(mass.isnan(), 0, topk_q.argmax(1))
    chosen = torch.where(mass.isnan(), NAN, p.gather(1, best[:, None])[:, 0])
    entropy = logs - times(p, d).sum(1)
    return {
        "loss": loss, "gradient": grad, "lse": top + logs, "max": top, "max_prob": (-logs).exp(),
        "chosen_prob": chosen, "entropy": entropy, "argmax": first, "coefficient": a,
        "agreement": (first == best) & ~chosen.isnan(), "hard_class": own,
    }  # fmt: skip
