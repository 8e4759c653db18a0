"""Properties of ``weak_loss`` and ``cross_entropy`` of stored logits.

Every check takes a backend and a case and raises AssertionError. Tolerances are those of
``w2s_fast.testing``; an invariance is no exception: what it says about the changed call is mapped
back and held against the truth of the first one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from properties.cases import Rows, settle
from properties.inputs import build, capped, clear, kept_rows_of, lay_out
from w2s_fast.errors import W2SError
from w2s_fast.ops import use_backend
from w2s_fast.ops.cross_entropy.api import cross_entropy
from w2s_fast.ops.reference import cross_entropy_reference, decide
from w2s_fast.ops.targets import SparseTargets
from w2s_fast.ops.weak_loss import batch_threshold, weak_loss
from w2s_fast.testing import (
    BACKWARD,
    FORWARD,
    assert_cross_entropy,
    assert_within_budget,
    run_cross_entropy,
)

Results = tuple[Tensor, Tensor, Tensor | None]


def values(backend: str, c: Rows) -> None:
    """Loss, gradients and gate are those of fp64."""
    assert_cross_entropy(backend, build(c), c.upstream)


def oracle(call: dict[str, Any], upstream: float, dtype: torch.dtype) -> Results:
    """Loss and gradients by definition, the gate decided in fp64."""
    call = {k: v for k, v in call.items() if k != "inplace"}
    counted, rule, aux = kept_rows_of(call), call.get("rule", "none"), call.get("aux", 0.0)
    own = decide(capped(call), call["weak"], counted, rule, aux, call.get("threshold"))
    z = call.pop("logits").detach().to(dtype).requires_grad_()
    w = call.pop("weight", None)
    w = None if w is None else w.to(dtype, copy=True).requires_grad_()
    loss = cross_entropy_reference(z, weight=w, own=own, **call)
    loss.backward(torch.full_like(loss, upstream))
    grad = torch.zeros_like(z) if z.grad is None else z.grad
    return loss.detach(), grad, None if w is None else w.grad


def run(backend: str, call: dict[str, Any], upstream: float) -> Results:
    """The same of a backend."""
    out, grad, grad_weight = run_cross_entropy(backend, call, upstream)
    return out.loss.detach(), grad, grad_weight


def require(actual: Results, call: dict[str, Any], upstream: float) -> None:
    """What was found another way is the truth of this call."""
    truth, eager = (oracle(call, upstream, d) for d in (torch.float64, torch.float32))
    names = ("loss", "gradient", "weight gradient")
    for name, y, t, b in zip(names, actual, truth, eager, strict=True):
        if y is not None and t is not None and b is not None:
            c = FORWARD if name == "loss" else BACKWARD
            if (
                name == "weight gradient"
                and t.numel()
                and c * t.abs().max() < 1e-6 * truth[0].max()
            ):
                continue  # the mean of equal rows: a difference of equals, without a yardstick
            assert_within_budget(y, t, b.to(y.dtype), c, name)


def decided(c: Rows) -> dict[str, Any]:
    """The call, without its threshold where rounding could move a row over it."""
    call = build(c)
    return call if clear(call) else call | {"rule": "none", "threshold": None}


def fixed_gate(c: Rows) -> Rows:
    """The case with rows that do not depend on one another."""
    return replace(c, rule="fixed" if c.v > 1 else "none") if c.rule in ("prior", "median") else c


def take(call: dict[str, Any], index: Tensor, layout: str) -> dict[str, Any]:
    """The call with these of its rows."""
    weak = call["weak"]
    out = dict(call)
    out["logits"] = lay_out(call["logits"][index], "plain" if layout == "expanded" else layout)
    if isinstance(weak, SparseTargets):
        rest = None if weak.rest is None else weak.rest[index]
        out["weak"] = SparseTargets(weak.ids[index], weak.probs[index], rest)
    else:
        out["weak"] = weak[index]
    if "weight" in call:
        out["weight"] = call["weight"][index]
    return out


def _back(actual: Results, index: Tensor, n: int) -> Results:
    """Results of some rows at their places among n, 0 elsewhere."""
    loss, grad, weight = actual
    if loss.dim():
        loss = loss.new_zeros(n).index_copy(0, index, loss)
    grad = grad.new_zeros(n, grad.shape[1]).index_copy(0, index, grad)
    if weight is not None:
        weight = weight.new_zeros(n).index_copy(0, index, weight)
    return loss, grad, weight


def permuted_rows(backend: str, c: Rows) -> None:
    """The order of rows plays no part."""
    call = decided(c)
    order = torch.randperm(c.n, generator=torch.Generator().manual_seed(c.seed))
    actual = run(backend, take(call, order, c.layout), c.upstream)
    require(_back(actual, order, c.n), call, c.upstream)


def permuted_classes(backend: str, c: Rows) -> None:
    """Nor does the order of classes, but for ties and for the two ends of a margin."""
    c = replace(c, gamma=0.0, rule="none" if c.v < 3 else c.rule)  # gamma: a top class may tie
    call = decided(c)
    order = torch.randperm(c.v, generator=torch.Generator().manual_seed(c.seed))
    place = order.argsort()
    weak = call["weak"]
    moved = call | {"logits": lay_out(call["logits"][:, order], c.layout)}
    if isinstance(weak, SparseTargets):
        moved["weak"] = weak._replace(ids=torch.where(weak.ids < 0, -1, place[weak.ids]))
    elif weak.is_floating_point():
        moved["weak"] = weak[:, order]
    else:
        out = weak == c.ignore_index
        moved |= {"weak": torch.where(out, -7, place[torch.where(out, 0, weak)])}
        moved["ignore_index"] = -7
    loss, grad, weight = run(backend, moved, c.upstream)
    require((loss, grad[:, place], weight), call, c.upstream)


def split(backend: str, c: Rows) -> None:
    """Micro-batches that share a threshold add up to the batch."""
    call = decided(replace(c, reduction="sum"))
    if call["rule"] in ("prior", "median"):
        names = ("weight", "softcap", "ignore_index")
        known = {k: call[k] for k in names if k in call}
        with use_backend(backend):
            at = batch_threshold(call["logits"], call["weak"], call["rule"], **known)
        call["threshold"] = at
    cut = c.seed % (c.n + 1)
    parts = [torch.arange(cut), torch.arange(cut, c.n)]
    results = [run(backend, take(call, i, c.layout), c.upstream) for i in parts]
    weight = None if results[0][2] is None else torch.cat([f[2] for f in results])
    loss = results[0][0].double() + results[1][0].double()
    whole = (loss.to(results[0][0].dtype), torch.cat([f[1] for f in results]), weight)
    if c.rule in ("prior", "median") and call["rule"] == c.rule:
        call["threshold"] = None  # the truth has to find it
    require(whole, call, c.upstream)


def shifted(backend: str, c: Rows) -> None:
    """A number added to all logits of a row changes nothing."""
    marks = tuple(m for m in c.marks if m[0] == "-inf")
    c = replace(c, softcap=0.0, z_loss=0.0, offset=0.0, window=1.0, marks=marks)
    call = build(c)
    # Multiples of 1/4 below 40: the sum is exact in every dtype.
    z = call["logits"]
    z = torch.where(z.isfinite(), (z * 4).round().div(4).clamp(-8, 8), z)
    call["logits"] = lay_out(z, "plain" if c.layout == "expanded" else c.layout)
    if not clear(call):
        call |= {"rule": "none", "threshold": None}
    by = (16.0, -16.0, 32.0)[c.seed % 3]
    if c.dtype in ("fp32", "fp64") and c.seed % 2:
        by *= 2.0**12
    actual = run(backend, call | {"logits": lay_out(z + by, c.layout)}, c.upstream)
    require(actual, call, c.upstream)


def doubled(backend: str, c: Rows) -> None:
    """A row that occurs twice counts like a row of twice the weight."""
    c = fixed_gate(replace(c, reduction="mean" if c.reduction == "none" else c.reduction))
    call = decided(c)
    if not c.n:
        return
    at = c.seed % c.n
    weight = call.get("weight", torch.ones(c.n))
    heavy = call | {"weight": weight * torch.where(torch.arange(c.n) == at, 2.0, 1.0)}
    twice = call | {"weight": weight}
    more = take(twice, torch.cat([torch.arange(c.n), torch.tensor([at])]), c.layout)
    loss, grad, _ = run(backend, more, c.upstream)
    grad[at] += grad[c.n]
    require((loss, grad[: c.n], None), heavy, c.upstream)


def absent(backend: str, c: Rows) -> None:
    """Rows that are ignored or of weight 0 could as well not be there."""
    call = decided(c)
    counted = kept_rows_of(call).nonzero()[:, 0]
    actual = run(backend, take(call, counted, c.layout), c.upstream)
    require(_back(actual, counted, c.n), call, c.upstream)


def in_place(backend: str, c: Rows) -> None:
    """Overwriting the logits gives the same loss and the same gradient."""
    kinds = {"columns": "padded", "transposed": "plain", "expanded": "offset"}
    mean = "mean" if c.reduction == "none" else c.reduction
    c = replace(c, layout=kinds.get(c.layout, c.layout), reduction=mean)
    call = decided(c) | {"inplace": True}
    require(run(backend, call, c.upstream), call, c.upstream)


def public(backend: str, c: Rows) -> None:
    """``cross_entropy`` names the rules of ``weak_loss``, and two classes keep its docstring."""
    c = replace(c, gamma=0.0, window=1.0, weight="none" if c.weight == "zeros" else c.weight)
    call = build(c)
    two = c.v == 2
    names = {"none": None, "fixed": 0.0 if two else 0.5}
    threshold = names.get(c.rule, c.rule)
    inner = {k: v for k, v in call.items() if k not in ("logits", "weak", "threshold")}
    outer = {k: v for k, v in inner.items() if k not in ("rule", "focal_gamma", "max_confidence")}
    if c.rule == "none":
        outer["aux"] = inner["aux"] = 0.0
    elif c.rule == "fixed":
        at = torch.tensor(math.inf if two else 0.5)
        inner["threshold"] = at
    leaves = [call["logits"].detach().clone().requires_grad_() for _ in range(2)]
    with use_backend(backend):
        a, _ = cross_entropy(
            leaves[0], call["weak"], threshold=threshold, return_stats=True, **outer
        )
        b = weak_loss(leaves[1], call["weak"], return_stats=True, **inner).loss
    for loss in (a, b):
        loss.sum().backward()
    same = torch.equal(a.nan_to_num(nan=7.0), b.nan_to_num(nan=7.0))
    assert same, f"cross_entropy gives {a}, weak_loss {b}"
    grads = [x.grad.nan_to_num(nan=7.0) for x in leaves]  # type: ignore[union-attr]
    assert torch.equal(*grads), "gradients of cross_entropy and weak_loss differ"


Check = Callable[[str, Any], None]
INVARIANCES: dict[str, Check] = {
    "rows permuted": permuted_rows,
    "classes permuted": permuted_classes,
    "batch split": split,
    "logits shifted": shifted,
    "row doubled": doubled,
    "rows absent": absent,
    "in place": in_place,
}


def duplicates(backend: str, c: Rows) -> None:
    """A class listed twice holds the sum of its masses, or is refused."""
    call = decided(fixed_gate(replace(c, kind="sparse", v=max(c.v, 3), gamma=0.0)))
    weak = call["weak"]
    assert isinstance(weak, SparseTargets)
    weak = SparseTargets(weak.ids.abs(), weak.probs.nan_to_num(nan=0.0))
    ids = weak.ids.clone()
    ids[:, -1] = ids[:, 0]
    wide = torch.promote_types(call["logits"].dtype, torch.float32)
    merged = torch.zeros(call["logits"].shape, dtype=wide)
    merged.scatter_add_(1, ids, weak.probs.to(wide))
    try:
        actual = run(backend, call | {"weak": SparseTargets(ids, weak.probs)}, c.upstream)
    except W2SError:
        return
    require(actual, call | {"weak": merged}, c.upstream)


def stats(backend: str, c: Rows) -> None:
    """By-products of a backend are those of fp64, as near as plain torch comes."""
    # Of rows that are all alike eager can be exact by luck, and a cap is a factor of the rounding
    # of a tanh that eager may have been spared.
    layout = "plain" if c.layout == "expanded" else c.layout
    call = decided(settle(replace(c, reduction="sum", layout=layout, softcap=min(c.softcap, 5.0))))
    counted = kept_rows_of(call)
    wide = call | {"logits": call["logits"].double()}
    if call.get("threshold") is not None:
        wide["threshold"] = call["threshold"].double()
    results = []
    for name, each in ((backend, call), ("ref", call), ("ref", wide)):
        with use_backend(name):
            results.append(weak_loss(**each, return_stats=True).stats)
    actual, near, exact = results
    for name in ("loss", "lse", "max", "max_prob", "chosen_prob", "entropy"):
        y, b, t = (getattr(s, name)[counted] for s in (actual, near, exact))
        if y.numel():
            assert_within_budget(y, t, b, FORWARD, name)
    for name in ("argmax", "hard_class", "agreement", "coefficient"):
        y, t = (getattr(s, name)[counted] for s in (actual, exact))
        if name != "coefficient" and call["softcap"]:
            continue  # a cap makes ties
        assert torch.equal(y, t.to(y.dtype)), f"{name}: {y} for {t}"
    assert_within_budget(actual.count, exact.count, near.count, FORWARD, "count")
