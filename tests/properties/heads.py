"""Properties of log-probabilities, and of losses and log-probabilities of a fused head.

In 16 bits hidden states and head are small integers over 2: their products are exact in any order,
and what is compared is the loss and not the luck of one rounding of a logit.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from hypothesis import strategies as st
from torch import Tensor

from properties.cases import (
    DTYPES,
    MOST,
    Record,
    Rows,
    build,
    lay_out,
    mostly,
    pick,
    rows,
    sizes,
)
from w2s_fast.ops import use_backend
from w2s_fast.ops.linear_cross_entropy import linear_cross_entropy
from w2s_fast.ops.linear_logprob import linear_logprob, linear_topk_logprob
from w2s_fast.ops.logprob import topk_logprob, topk_logprob_reference
from w2s_fast.ops.reference import Own, cross_entropy_reference
from w2s_fast.ops.vocab_parallel import vocab_parallel_cross_entropy
from w2s_fast.testing import BACKWARD, FORWARD, assert_within_budget

Leaves = dict[str, Tensor]


@dataclass(frozen=True, repr=False)
class Head(Record):
    """Rows whose logits are hidden states times a head."""

    rows: Rows = Rows()
    d: int = 1
    bias: bool = False
    budget: int = 0  # rows that fit the memory budget; 0: all
    fp32_head_gradient: bool = False
    threshold: Any = None
    frozen: str = ""


def heads(small: bool = False) -> st.SearchStrategy[Head]:
    """What ``linear_cross_entropy`` serves: any rule by its public name."""
    fixed = {
        "regime": "plain", "offset": 0.0, "marks": (), "layout": "plain", "gamma": 0.0,
        "window": 1.0, "rule": "none", "upstream": mostly(1.0, 0.5, 3.0),
    }  # fmt: skip
    v = st.sampled_from((3, 1, 2, 4, 7, 8, 9, 16, 17, 31, 33, 64, 65, 129))
    n = st.integers(0, 6 if small else 40)
    return st.builds(
        Head,
        rows=rows(small, n=n, v=v, **fixed),
        d=pick(1, 2, 3, 4, 8),
        bias=st.booleans(),
        budget=pick(0, 1, 3, 7),
        fp32_head_gradient=st.booleans(),
        threshold=pick(None, "median", 0.4, 0.0, 1.0),
        frozen=mostly("", "hidden", "head"),
    )


def _numbers(shape: tuple[int, ...], dtype: torch.dtype, g: torch.Generator) -> Tensor:
    x = torch.randn(*shape, generator=g, dtype=torch.float64)
    return ((x * 2).round().clamp(-4, 4) / 2 if dtype.itemsize == 2 else x).to(dtype)


def _states(shape: tuple[int, ...], dtype: torch.dtype, g: torch.Generator) -> Tensor:
    """Hidden states of which the first is unsure: see ``cases.build``."""
    x = _numbers(shape, dtype, g)
    x[:1] = torch.where(torch.arange(shape[1]) % 2 == 0, 0.25, -0.25).to(dtype)
    return x


def head_call(c: Head) -> tuple[Leaves, dict[str, Any]]:
    """What gets gradients, and the other arguments."""
    call = build(c.rows)
    dtype, g = DTYPES[c.rows.dtype], torch.Generator().manual_seed(c.rows.seed + 1)
    parts = {
        "hidden": _states((c.rows.n, c.d), dtype, g),
        "head": _numbers((c.rows.v, c.d), dtype, g),
    }
    if c.bias:
        parts["bias"] = _numbers((c.rows.v,), dtype, g) / 4
    # The gradient of a weight in a mean is a difference of row losses that may be equal here.
    fixed_weight = None
    if "weight" in call:
        if c.rows.reduction == "mean":
            fixed_weight = call["weight"]
        else:
            parts["weight"] = call["weight"]
    names = ("weak", "ignore_index", "smoothing", "softcap", "z_loss", "reduction")
    rest = {k: call[k] for k in names}
    if fixed_weight is not None:
        rest["weight"] = fixed_weight
    return parts, rest


def _budget(c: Head, dtype: torch.dtype) -> float:
    return 64.0 if not c.budget else c.budget * c.rows.v * dtype.itemsize / 2**20


def _leaves(parts: Leaves, dtype: torch.dtype, frozen: str) -> Leaves:
    return {
        n: t.to(torch.promote_types(dtype, torch.float32) if n == "weight" else dtype, copy=True)
        .detach()
        .requires_grad_(n != frozen)
        for n, t in parts.items()
    }


def linear(backend: str, c: Head, op: Callable[..., Any] = linear_cross_entropy) -> None:
    """Loss and gradients of a fused head are those of its logits in full."""
    parts, rest = head_call(c)
    dtype = parts["hidden"].dtype
    leaves = _leaves(parts, dtype, c.frozen)
    x = dict(leaves)
    aux = 0.0 if c.rows.aux == 0 else c.rows.aux
    threshold = None if c.rows.v == 1 else c.threshold
    with use_backend(backend):
        loss, s = op(
            x.pop("hidden"), x.pop("head"), memory_mib=_budget(c, dtype), aux=aux,
            threshold=threshold, fp32_head_gradient=c.fp32_head_gradient, return_stats=True,
            **x, **rest,
        )  # fmt: skip
        (loss * c.rows.upstream).sum().backward()
    own = Own(s.coefficient.double().nan_to_num(0.0), s.hard_class, s.max_prob, torch.zeros(()))
    definition = functools.partial(_head_loss, rest=rest, own=own, upstream=c.rows.upstream)
    _compare(loss, leaves, definition, parts, c.frozen)


def _head_loss(x: Leaves, rest: dict[str, Any], own: Own, upstream: float) -> Tensor:
    z = torch.nn.functional.linear(x["hidden"], x["head"], x.get("bias"))
    z = z.to(torch.promote_types(z.dtype, torch.float32))
    weight = x.get("weight", rest.get("weight"))
    rest = {k: v for k, v in rest.items() if k != "weight"}
    loss = cross_entropy_reference(z, weight=weight, own=own, **rest)
    (loss * upstream).sum().backward()
    return loss


def _compare(
    value: Tensor,
    leaves: Leaves,
    definition: Callable[[Leaves], Tensor],
    parts: Leaves,
    frozen: str,
) -> None:
    """Value and gradients within the budget of eager PyTorch in the tested dtype."""
    dtype = next(iter(parts.values())).dtype
    # fp64 has no wider truth: it may err as fp32 does.
    narrow = torch.float32 if dtype == torch.float64 else dtype
    exact, near = (_leaves(parts, d, frozen) for d in (torch.float64, narrow))
    truth, eager = definition(exact).detach(), definition(near).detach()
    assert_within_budget(value, truth, eager.to(value.dtype), FORWARD, "value")
    for name, leaf in leaves.items():
        if name == frozen:
            assert leaf.grad is None, f"{name} is frozen and has a gradient"
            continue
        grad, t, b = leaf.grad, exact[name].grad, near[name].grad
        t, b = (torch.zeros_like(leaf).double() if x is None else x for x in (t, b))
        assert grad is not None, f"{name} has no gradient"
        if grad.numel():
            assert_within_budget(grad, t, b.to(grad.dtype), BACKWARD, f"gradient of {name}")


def vocab(backend: str, c: Head) -> None:
    """A vocabulary that is split over one rank is the whole one."""
    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    c = replace(c, rows=replace(c.rows, v=max(c.rows.v, 3)))
    linear(backend, c, functools.partial(vocab_parallel_cross_entropy, group=dist.group.WORLD))


@dataclass(frozen=True, repr=False)
class Listed(Record):
    """Log-probabilities of listed classes."""

    n: int = 1
    v: int = 3
    k: int = 1
    dtype: str = "fp32"
    seed: int = 0
    spread: float = 1.0
    offset: float = 0.0
    layout: str = "plain"
    padding: float = 0.0
    temperature: float = 1.0
    softcap: float = 0.0
    tail: bool = False  # of the loss
    d: int = 1  # of hidden states
    bias: bool = False
    budget: int = 0
    fp32_head_gradient: bool = False


def head_listings(small: bool = False) -> st.SearchStrategy[Listed]:
    """Logits of a head."""
    return listings(small, head=True)


def listings(small: bool = False, head: bool = False) -> st.SearchStrategy[Listed]:
    """Ids of every number, with padding."""
    n, v = sizes(small)
    if head:
        n, v = st.integers(0, 6 if small else 40), st.sampled_from((3, 1, 2, 8, 17, 33, 65, 129))
    return st.builds(
        Listed,
        n=n,
        v=v,
        k=st.integers(1, 6),
        dtype=pick(*DTYPES),
        seed=st.integers(0, 2**20),
        spread=pick(1.0, 0.0, 5.0, 1.0 if head else 100.0),
        offset=mostly(0.0, *(() if head else (1e4, -1e4, 1e10, 1e30)))
        if not head
        else st.just(0.0),
        layout=pick("plain", "padded", "columns", "transposed", "offset", "expanded"),
        padding=pick(0.0, 0.3, 1.0),
        temperature=mostly(1.0, 0.5, 2.0),
        softcap=mostly(0.0, 5.0, 30.0),
        tail=st.booleans(),
        d=pick(1, 2, 4, 8),
        bias=st.booleans(),
        budget=pick(0, 1, 3, 7),
        fp32_head_gradient=st.booleans(),
    )


def _ids(c: Listed, g: torch.Generator) -> Tensor:
    k = min(c.k, c.v)
    ids = torch.rand(c.n, c.v, generator=g).argsort(1)[:, :k]
    gone = torch.rand(c.n, k, generator=g) < c.padding
    gone[:1, 0] = False
    return torch.where(gone, -1, ids)


def _told(c: Listed, ids: Tensor) -> Tensor:
    """(N,) bool: rows whose tail is neither all nor nothing, so that it has a gradient."""
    real = (ids >= 0).sum(1)
    return (real > 0) & (real < c.v)


def _listed_total(logp: Tensor, tail: Tensor, c: Listed, ids: Tensor) -> Tensor:
    """One number with a weight for each output."""
    up = torch.linspace(0.5, 2.0, max(logp.numel(), 1), dtype=logp.dtype)[: logp.numel()]
    total = (logp * up.view(logp.shape)).sum()
    return total - 0.7 * tail[_told(c, ids)].sum() if c.tail else total


def listed(backend: str, c: Listed) -> None:
    """Log-probabilities and their gradient are those of a log-softmax."""
    g = torch.Generator().manual_seed(c.seed)
    c = replace(c, n=min(c.n, max(2, MOST // c.v)))
    z = c.spread * torch.randn(c.n, c.v, generator=g, dtype=torch.float64) + c.offset
    top = torch.finfo(DTYPES[c.dtype]).max / 4
    z[:1] = (z[:1] - c.offset) / (8 * max(c.spread, 1.0)) + c.offset
    z = lay_out(z.clamp(-top, top).to(DTYPES[c.dtype]), c.layout)
    ids = _ids(c, g)
    # Of one class all is 0: of the rounding of a cap there would be no yardstick.
    known = {"temperature": c.temperature, "softcap": c.softcap if c.v > 1 else 0.0}
    found = []
    for dtype in (z.dtype, torch.float64, torch.float32):
        x = z.detach().to(dtype).requires_grad_()
        if not found:
            with use_backend(backend):
                logp, tail = topk_logprob(x, ids, **known)
        else:
            logp, tail = topk_logprob_reference(x, ids, **known)
        _listed_total(logp, tail, c, ids).backward()
        found.append((logp.detach(), tail.detach()[_told(c, ids)], x.grad))
    for name, y, t, b in zip(("logp", "tail", "gradient"), *found, strict=True):
        if y.numel():
            factor = BACKWARD if name == "gradient" else FORWARD
            assert_within_budget(y, t, b.to(y.dtype), factor, name)


def _listed_parts(c: Listed) -> tuple[Leaves, Tensor, float]:
    g = torch.Generator().manual_seed(c.seed)
    dtype = DTYPES[c.dtype]
    parts = {"hidden": _states((c.n, c.d), dtype, g), "head": _numbers((c.v, c.d), dtype, g)}
    parts["hidden"][1:] *= min(c.spread, 2.0)
    if c.bias:
        parts["bias"] = _numbers((c.v,), dtype, g) / 4
    budget = 64.0 if not c.budget else c.budget * c.v * dtype.itemsize / 2**20
    return parts, _ids(c, g), budget


def _listed_logits(x: Leaves) -> Tensor:
    z = torch.nn.functional.linear(x["hidden"], x["head"], x.get("bias"))
    return z.to(torch.promote_types(z.dtype, torch.float32))


def linear_listed(backend: str, c: Listed) -> None:
    """The same of a fused head."""
    parts, ids, budget = _listed_parts(c)
    known = {"temperature": c.temperature, "softcap": c.softcap}
    leaves = _leaves(parts, parts["hidden"].dtype, "")
    x = dict(leaves)
    with use_backend(backend):
        logp, tail = linear_topk_logprob(
            x.pop("hidden"), x.pop("head"), ids, memory_mib=budget,
            fp32_head_gradient=c.fp32_head_gradient, **x, **known,
        )  # fmt: skip
        _listed_total(logp, tail, c, ids).backward()

    def definition(x: Leaves) -> Tensor:
        logp, tail = topk_logprob_reference(_listed_logits(x), ids, **known)
        _listed_total(logp, tail, c, ids).backward()
        return logp

    if c.n:
        _compare(logp, leaves, definition, parts, "")


def tokens(backend: str, c: Listed) -> None:
    """Sums over sequences, means and single positions; what is masked takes no part."""
    parts, ids, budget = _listed_parts(c)
    token = torch.where(ids[:, 0] < 0, -100, ids[:, 0])
    long = c.n % 2 == 0 and c.n > 0
    mask = torch.arange(c.n) % 3 != 1 if c.tail else None
    shape = (2, c.n // 2) if long else (c.n,)
    known = {"temperature": c.temperature, "softcap": c.softcap}
    leaves = _leaves(parts, parts["hidden"].dtype, "")
    x = dict(leaves)
    hidden = x.pop("hidden").view(*shape, c.d)
    average = long and c.seed % 2 == 1
    with use_backend(backend):
        out = linear_logprob(
            hidden, x.pop("head"), token.view(shape), average=average,
            mask=None if mask is None else mask.view(shape), memory_mib=budget, fp32_head_gradient=c.fp32_head_gradient,
            **x, **known,
        )  # fmt: skip
        out.sum().backward()

    def definition(x: Leaves) -> Tensor:
        live = token >= 0 if mask is None else (token >= 0) & mask
        chosen = torch.where(live, token, -1)[:, None]
        logp = topk_logprob_reference(_listed_logits(x), chosen, **known)[0][:, 0].view(shape)
        if long:
            count = live.view(shape).sum(1) if average else torch.ones(2)
            logp = logp.sum(1) / count.clamp_min(1)
        logp.sum().backward()
        return logp

    _compare(out, leaves, definition, parts, "")
