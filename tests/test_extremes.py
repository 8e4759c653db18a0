"""Infinite, NaN and huge logits and targets: every backend gives the formula's value, or NaN.

One call holds a row for each extreme. Truth is written here in plain fp64, from the same inputs.
The compiled core is run with each of its instruction sets, the narrower ones in processes of their
own: this file is their program.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import w2s_fast
from w2s_fast import SparseTargets
from w2s_fast.ops import use_backend
from w2s_fast.ops.cross_entropy import weak_loss

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
INF, NAN = math.inf, math.nan
LEAST = torch.finfo(FP32).min
# Quiet and signalling, both signs, payloads that carry into the sign when half a unit is added.
NANS = (0x7FC00000, 0xFFC00000, 0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001, 0xFF800001, 0x7FFF8000)
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
        for at in (0, LABEL, last):
            rows[f"{name} at {at}"] = base.index_fill(0, torch.tensor([at]), x)
        rows[f"all {name}"] = torch.full((v,), x)
        rows[f"{name}, one left"] = torch.full((v,), x).index_fill(0, torch.tensor([last]), 1.0)
        rows[f"{name} in front"] = torch.where(torch.arange(v) < v - 1 - v // 5, x, base)
        rows[f"{name} behind"] = torch.where(torch.arange(v) > v // 5, x, base)
    rows["+inf and -inf"] = rows["+inf at 0"].index_fill(0, torch.tensor([last]), -INF)
    rows["+inf and NaN"] = rows["+inf at 0"].index_fill(0, torch.tensor([last]), NAN)
    for offset in (1e6, 2e6, 1e10, 1e20, 1e30):
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
    """Rows of logits with a target each: mass q, residual, listed classes, and as the op takes it."""

    names: list[str]
    logits: Tensor
    weak: Tensor | SparseTargets
    q: Tensor  # (N, V) fp64
    rest: Tensor  # (N,) fp64
    listed: Tensor  # (N, V)


def probabilities(n: int, v: int) -> Tensor:
    q = torch.rand(n, v, generator=torch.Generator().manual_seed(n)) ** 3
    q[:, LABEL] += 1
    q[:, 0] = 0
    return q / q.sum(1, keepdim=True)


def case(kind: str, v: int, dtype: torch.dtype) -> Case:
    """Every extreme row of logits with a usual target; soft targets also with extremes of theirs."""
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
        return Case(names, z, q, q.double(), torch.zeros(len(q)).double(), torch.ones_like(q).bool())
    return _listed(names, z, q, kind == "rest")


def _hard(names: list[str], z: Tensor) -> Case:
    n, v = z.shape
    q = torch.nn.functional.one_hot(torch.full((n,), LABEL), v).double()
    return Case(names, z, torch.full((n,), LABEL), q, torch.zeros(n).double(), torch.ones(n, v) > 0)


def _listed(names: list[str], z: Tensor, q: Tensor, rest: bool) -> Case:
    n, v = z.shape
    q = torch.where(q < 0, 0.0, q)  # no top class among negative probabilities
    ids = torch.tensor([LABEL, -1, v - 1] if v > 2 else [LABEL, -1]).repeat(n, 1)
    probs = q.gather(1, ids.clamp_min(0))
    probs[:, 1] = NAN  # padding is not read
    left = torch.full((n,), 0.25) if rest else None
    if left is not None:
        left[-6:] = torch.tensor([INF, -INF, NAN, LEAST, 0.0, 0.1])
    listed = torch.zeros(n, v, dtype=torch.bool).scatter(1, ids[:, [0, -1]].clamp_min(0), True)
    if v == 2:
        listed[:, 0] = False
    mass = torch.where(listed, q.double(), 0.0)
    total = torch.zeros(n).double() if left is None else left.double()
    return Case(names, z, SparseTargets(ids, probs, left), mass, total, listed)


def times(a: Tensor, b: Tensor) -> Tensor:
    """a b, 0 where one of them is 0."""
    return torch.where((a == 0) | (b == 0), 0.0, a * b)


def truth(c: Case, a: Tensor, own: Tensor, smoothing: float, softcap: float) -> dict[str, Tensor]:
    """Loss, gradient and by-products of every row in fp64."""
    z = c.logits.double()
    z = softcap * torch.tanh(z / softcap) if softcap else z
    top, first = z.max(1)
    first = torch.where(top.isnan(), 0, (z == top[:, None]).double().argmax(1))
    d = z - top[:, None]
    logs = torch.where(top.isfinite(), d.exp().sum(1).log(), NAN)
    logp = d - logs[:, None]
    p, mass = logp.exp(), c.q.sum(1) + c.rest
    outside = torch.where(c.listed, -INF, d).logsumexp(1) - logs
    loss = times(c.q, -logp).sum(1) - times(c.rest, outside)
    even = times(torch.tensor(smoothing), mass)
    loss = (1 - smoothing) * loss + times(even, -logp.mean(1)) + 0 * logs
    loss = times(1 - a, loss) + times(a, -logp.gather(1, own[:, None])[:, 0]) + 0 * logs
    loss = torch.where(mass.isnan() | (mass.isinf() & (a == 1)), NAN, loss)  # 0 * inf
    away = times(((1 - a) * (1 - smoothing) * c.rest)[:, None], (logp - outside[:, None]).exp())
    away = torch.where(c.listed, 0.0, away)
    hot = torch.nn.functional.one_hot(own, z.shape[1])
    target = ((1 - a) * (1 - smoothing))[:, None] * c.q + a[:, None] * hot
    grad = ((1 - a) * mass + a)[:, None] * p - target - ((1 - a) * even / z.shape[1])[:, None] - away
    if softcap:
        grad = grad * (1 - (z / softcap) ** 2)
    listed_q = torch.where(c.listed, c.q, -INF).nan_to_num(0, INF, -INF)
    best = torch.where(mass.isnan(), 0, listed_q.argmax(1))
    chosen = torch.where(mass.isnan(), NAN, p.gather(1, best[:, None])[:, 0])
    entropy = logs - times(p, d).sum(1)
    return {
        "loss": loss, "gradient": grad, "lse": top + logs, "max": top, "max_prob": (-logs).exp(),
        "chosen_prob": chosen, "entropy": entropy, "argmax": first, "coefficient": a,
        "agreement": (first == best) & ~chosen.isnan(), "hard_class": own,
    }  # fmt: skip


def compare(name: str, rows: list[str], got: Tensor, wanted: Tensor, room: float) -> None:
    """Infinities and NaN in the same places, the rest within ``room`` of the larger of 1 and it."""
    if not got.is_floating_point():
        off = got != wanted
    else:
        wanted = wanted.to(got.dtype)
        near = (got.double() - wanted.double()).abs() <= room * wanted.double().abs().clamp_min(1)
        off = ~(near | (got == wanted) | (got.isnan() & wanted.isnan()))
    if bool(off.any()):
        i = tuple(int(x) for x in off.nonzero()[0])
        bad = sorted({rows[int(i[0])] for i in off.nonzero()})
        raise AssertionError(f"{name} of {bad}: {float(got[i])} for {float(wanted[i])} at {i}")


def call(c: Case, reduction: str, **kw: Any) -> tuple[Any, Tensor]:
    z = c.logits.clone().requires_grad_()
    out = weak_loss(z, c.weak, reduction=reduction, return_stats=True, **kw)
    out.loss.sum().backward()
    assert z.grad is not None
    return out.stats, z.grad


def self_target(c: Case, aux: float, softcap: float) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Coefficient, class and how the op is asked for them; two classes take the margin 0."""
    z, n = c.logits.double(), len(c.logits)
    if softcap:
        z = softcap * torch.tanh(z / softcap)
    if z.shape[1] == 2:
        own, kw = (~(z[:, 0] - z[:, 1] >= 0)).long(), {"rule": "fixed", "threshold": torch.zeros(())}
    else:
        top = z.amax(1, keepdim=True)
        own, kw = (z == top).double().argmax(1), {"rule": "argmax"}
    return torch.full((n,), aux).double(), own, kw | {"aux": aux}


KINDS = ("hard", "dense", "dense fp32", "sparse", "rest")


def check_table(backend: str, kind: str, v: int, dtype: torch.dtype, **kw: Any) -> None:
    aux, smoothing = kw.pop("aux", 0.0), kw.pop("smoothing", 0.0)
    softcap, reduction = kw.pop("softcap", 0.0), kw.pop("reduction", "sum")
    c = case(kind, v, dtype)
    a, own, rule = self_target(c, aux, softcap)
    wanted = truth(c, a, own, smoothing, softcap)
    with use_backend(backend):
        stats, grad = call(c, reduction, smoothing=smoothing, softcap=softcap, **rule)
    where = f"{backend} {kind} {v} {dtype} {aux} {smoothing} {softcap} {reduction}: "
    room = {FP32: 2e-5, BF16: 2**-7, FP16: 2**-9}[dtype]
    compare(where + "gradient", c.names, grad, wanted.pop("gradient"), room)
    for name, value in wanted.items():
        compare(where + name, c.names, getattr(stats, name), value, 3e-5)


# What a call adds to plain cross-entropy, each with the kinds of target whose code it reaches.
EXTRAS: tuple[dict[str, Any], ...] = (
    {}, {"aux": 0.4}, {"aux": 1.0}, {"smoothing": 0.1}, {"softcap": 5.0}, {"reduction": "none"},
)  # fmt: skip


def check_all(backend: str, dtype: torch.dtype, kind: str) -> None:
    for extra in EXTRAS:
        for v in (2, 37):
            if (kind, v) != ("rest", 2):
                check_table(backend, kind, v, dtype, **extra)
    if backend != "triton":
        check_table(backend, kind, BLOCK + 1001, dtype, aux=0.4)


@pytest.mark.parametrize("dtype", [FP32, BF16, FP16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_table(backend: str, kind: str, dtype: torch.dtype) -> None:
    check_all(backend, dtype, kind)


def main() -> None:
    for dtype in (FP32, BF16, FP16):
        for kind in KINDS:
            check_all("cpp", dtype, kind)
    print("ok")


if __name__ == "__main__":
    main()
