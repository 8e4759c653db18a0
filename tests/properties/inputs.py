"""The tensors of a case of ``cases.Rows``, and what is known of them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from properties.cases import DTYPES, Rows
from w2s_fast.ops.reference import decide, kept_rows
from w2s_fast.ops.targets import SparseTargets


def build(c: Rows) -> dict[str, Any]:
    """Keyword arguments of ``weak_loss`` (``logits``, ``weak``, ...)."""
    g = torch.Generator().manual_seed(c.seed)
    label = torch.randint(0, c.v, (c.n,), generator=g)
    z = _scores(c, label, g)
    q = _mass(c, label, g)
    weak, in_topk = _weak(c, label, q, g)
    z = _marked(c, z, in_topk)
    weight = _weight(c, g)
    call: dict[str, Any] = {"weak": weak, "ignore_index": c.ignore_index}
    if weight is not None:
        call["weight"] = weight
    out = ~kept_rows(z, weak, weight, c.ignore_index)
    if c.layout != "expanded":
        z[out] = math.nan  # nothing of a row that is out may be read
    call["logits"] = lay_out(_rounded(z, DTYPES[c.dtype]), c.layout)
    call |= _options(c, call)
    if c.reduction == "mean" and weight is not None and _alike(c, call):
        return build(replace(c, weight="none"))
    return call


def _scores(c: Rows, label: Tensor, g: torch.Generator) -> Tensor:
    z = 2 * torch.randn(c.n, c.v, generator=g, dtype=torch.float64)
    z[torch.arange(c.n), label] += 2.0
    z[:1] /= 8  # one row is unsure: of losses that all are near 0 rounding has no yardstick
    if c.regime == "flat":
        z = torch.zeros_like(z)
    elif c.regime == "ties":
        z = z.div(3).round().mul(3)
    elif c.regime == "wide":
        z[1:] *= 20
    elif c.regime == "confident":
        z[torch.arange(c.n), label] += torch.where(torch.arange(c.n) > 0, 25.0, 0.0).double()
    elif c.regime == "huge":
        z = torch.where(torch.rand(c.n, c.v, generator=g) < 0.5, 1e4, -1e4) + z
    return z + c.offset


def _rounded(z: Tensor, dtype: torch.dtype) -> Tensor:
    """To the dtype, finite numbers staying finite."""
    top = torch.finfo(dtype).max
    return torch.where(z.isfinite(), z.clamp(-top, top), z).to(dtype)


def _mass(c: Rows, label: Tensor, g: torch.Generator) -> Tensor:
    q = torch.rand(c.n, c.v, generator=g) ** 4
    q[torch.arange(c.n), label] += 1.0
    q[torch.rand(c.n, c.v, generator=g) < 0.2] = 0.0
    q = q / q.sum(1, keepdim=True).clamp_min(1e-6)
    if c.mass != "unit":
        q = q * (0.6 + 0.8 * torch.rand(c.n, 1, generator=g))
    if c.mass == "half zero":
        q[1::2] = 0.0
    # Rounded first: labels of any dtype hold the same numbers.
    return q.to(DTYPES["fp32" if c.labels == "fp64" else c.labels]).float()


def _weak(
    c: Rows, label: Tensor, q: Tensor, g: torch.Generator
) -> tuple[Tensor | SparseTargets, Tensor]:
    """The targets, and (N, V) of the classes that may not become impossible."""
    if c.kind == "hard":
        if c.ignored:
            label = torch.where(torch.arange(c.n) % c.ignored == 1, c.ignore_index, label)
        real = torch.where(label == c.ignore_index, 0, label)
        return label, torch.nn.functional.one_hot(real, c.v) > 0
    if c.kind == "dense":
        return q.to(DTYPES[c.labels]), q != 0
    k = max(1, min(5, c.v - 1 if c.kind == "rest" else c.v))
    probs, ids = q.topk(k, dim=1)
    if k > 1 and c.seed % 2:
        gone = torch.rand(c.n, k, generator=g) < 0.3
        gone[:, 0] = False
        ids, probs = torch.where(gone, -1, ids), torch.where(gone, math.nan, probs)
    keep = torch.zeros(c.n, c.v, dtype=torch.bool)
    keep.scatter_(1, ids.clamp_min(0), True)
    rest = None
    if c.kind == "rest":
        rest = 0.3 * torch.rand(c.n, generator=g)
        rest[::3] = 0.0
        keep.scatter_(1, (~keep).int().argmax(1, keepdim=True), True)  # one class outside lives
    return SparseTargets(ids, probs.to(DTYPES[c.labels]), rest), keep


def _marked(c: Rows, z: Tensor, in_topk: Tensor) -> Tensor:
    lowest = torch.finfo(DTYPES[c.dtype]).min
    for what, row, column in c.marks:
        if not c.n:
            continue
        i, k = row % c.n, column % c.v
        if what == "row of lowest":
            z[i] = lowest
        elif not in_topk[i, k] and bool((z[i] > -math.inf).sum() > 1):  # one class stays possible
            z[i, k] = -math.inf if what == "-inf" else lowest
    return z


def _weight(c: Rows, g: torch.Generator) -> Tensor | None:
    w = 0.5 + torch.rand(c.n, generator=g)
    if c.weight == "zeros":
        w[1::2] = 0.0
    elif c.weight == "ones":
        w = torch.ones(c.n)
    elif c.weight == "tiny":
        w = w * 1e-30
    elif c.weight == "large":
        w = w * (100.0 if c.dtype == "fp16" else 1e20)
    elif c.weight == "mixed":
        w[1::2] *= 1e-6
    return None if c.weight == "none" else w


def lay_out(z: Tensor, layout: str) -> Tensor:
    """The same numbers (``expanded``: of the first row) in memory of another shape."""
    n, v = z.shape
    if layout in ("padded", "offset"):
        lead = 1 if layout == "offset" else 0
        wide = torch.full((n, v + 3 + lead), 9e4).to(z.dtype)
        wide[:, lead : lead + v] = z
        return wide[:, lead : lead + v]
    if layout == "columns":
        return torch.stack([z, torch.full_like(z, 7.0)], 2)[:, :, 0]
    if layout == "transposed":
        return z.t().contiguous().t()
    return z[:1].expand(n, v) if layout == "expanded" else z


def _options(c: Rows, call: dict[str, Any]) -> dict[str, Any]:
    names = ("rule", "aux", "smoothing", "softcap", "z_loss", "reduction")
    out: dict[str, Any] = {name: getattr(c, name) for name in names}
    out["focal_gamma"] = c.gamma
    top, score = (x[kept_rows_of(call)] for x in _confidence(c, call))
    if c.window < 1:
        out["max_confidence"] = apart(top, c.window)
    if c.rule == "fixed":
        # Cut between scores, or at none: which side of a cut a tie falls on is not asked here.
        out["threshold"] = torch.tensor(apart(score, c.at), dtype=_acc(c))
    return out


def kept_rows_of(call: dict[str, Any]) -> Tensor:
    """(N,) bool: rows of a call that count."""
    return kept_rows(
        call["logits"], call["weak"], call.get("weight"), call.get("ignore_index", -100)
    )


def capped(call: dict[str, Any], softcap: float = 0.0) -> Tensor:
    """fp64 logits as the formula means them; 0 in rows that are out."""
    z = torch.where(kept_rows_of(call)[:, None], call["logits"].double(), 0.0)
    cap = call.get("softcap", softcap)
    return cap * torch.tanh(z / cap) if cap else z


def _confidence(c: Rows, call: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """(N,) top probabilities and (N,) what a threshold cuts."""
    z = capped(call, c.softcap)
    top = z.softmax(1).amax(1)
    return top, z[:, 0] - z[:, 1] if c.v == 2 else top


def apart(scores: Tensor, share: float) -> float:
    """A number with about this share of the scores below it and none within rounding of it."""
    x = scores[scores.isfinite()].sort().values
    if not len(x):
        return 0.5
    gap = 1e-4 * float(x.abs().max().clamp_min(1e-3))
    edges = [float(x[0]) - 3 * gap]
    edges += [float(a + b) / 2 for a, b in zip(x[:-1], x[1:], strict=True) if b - a > 2 * gap]
    edges += [float(x[-1]) + 3 * gap]
    return edges[round(share * (len(edges) - 1))]


def _acc(c: Rows) -> torch.dtype:
    return torch.float64 if c.dtype == "fp64" else torch.float32


def _alike(c: Rows, call: dict[str, Any]) -> bool:
    """Of a mean over rows of one loss the gradient of a weight is 0: there is no yardstick."""
    counted = int(kept_rows_of(call).sum())
    same = c.regime in ("flat", "ties") or c.layout == "expanded"
    return counted < 2 or same or abs(c.offset) >= 1e10  # beside which logits keep no digit


def clear(call: dict[str, Any]) -> bool:
    """Whether no rounding can move a row over its threshold, or to another class."""
    counted = kept_rows_of(call)
    z = capped(call)
    if not bool(counted.any()) or z.shape[1] == 1:
        return True
    low = 0.9 * torch.finfo(call["logits"].dtype).min  # marks do not count
    room = 1e-5 * float(torch.where(z.isfinite() & (z > low), z.abs(), 1.0).max().clamp_min(1.0))
    if call["rule"] != "none" and z.shape[1] > 2:
        best = z[counted].topk(2, dim=1).values
        if bool((best[:, 0] - best[:, 1] <= room).any()):
            return False
    rule, at = call["rule"], call.get("threshold")
    if rule in ("none", "argmax") or (rule == "prior" and z.shape[1] > 2):
        return rule != "prior"
    own = decide(z, call["weak"], counted, rule, call["aux"], at)
    off = (own.score - own.threshold).abs()[counted]
    return bool(((off > room) | ((off == 0) & (rule == "median") & (counted.sum() % 2 == 1))).all())
