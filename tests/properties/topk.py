"""Properties of log-probabilities, of stored logits and of a fused head."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from hypothesis import strategies as st
from torch import Tensor

from properties.cases import DTYPES, MOST, Record, mostly, pick, sizes
from properties.heads import Leaves, compare, leaves_of, numbers, states
from properties.inputs import lay_out
from w2s_fast.ops import use_backend
from w2s_fast.ops.fused_linear.logprob import linear_logprob, linear_topk_logprob
from w2s_fast.ops.logprob.api import topk_logprob, topk_logprob_reference
from w2s_fast.testing import BACKWARD, FORWARD, assert_within_budget


@dataclass(frozen=True, repr=False)
class TopK(Record):
    """Log-probabilities of top-k classes."""

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


def head_cases(small: bool = False) -> st.SearchStrategy[TopK]:
    """Logits of a head."""
    return topk_cases(small, head=True)


def topk_cases(small: bool = False, head: bool = False) -> st.SearchStrategy[TopK]:
    """Ids of every number, with padding."""
    n, v = sizes(small)
    if head:
        n, v = st.integers(0, 6 if small else 40), st.sampled_from((3, 1, 2, 8, 17, 33, 65, 129))
    cases = st.builds(
        TopK,
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
    return cases.map(_settle)


def _settle(c: TopK) -> TopK:
    """The nearest call with a yardstick."""
    # fp32 holds the depth of a tail of e^-300 to 5 digits: docs/numerics.md says so.
    deep = c.spread >= 100
    # The definition in fp64 loses the slope of a cap that is reached: 1 - tanh^2 cancels.
    blind = c.dtype == "fp64" and (c.offset != 0 or deep)
    return replace(c, tail=c.tail and not deep, softcap=0.0 if blind else c.softcap)


def _ids(c: TopK, g: torch.Generator) -> Tensor:
    k = min(c.k, c.v)
    ids = torch.rand(c.n, c.v, generator=g).argsort(1)[:, :k]
    gone = torch.rand(c.n, k, generator=g) < c.padding
    gone[:1, 0] = False
    return torch.where(gone, -1, ids)


def _told(c: TopK, ids: Tensor) -> Tensor:
    """(N,) bool: rows whose tail is neither all nor nothing, so that it has a gradient."""
    real = (ids >= 0).sum(1)
    return (real > 0) & (real < c.v)


def _topk_total(logp: Tensor, tail: Tensor, c: TopK, ids: Tensor) -> Tensor:
    """One number with a weight for each output."""
    up = torch.linspace(0.5, 2.0, max(logp.numel(), 1), dtype=logp.dtype)[: logp.numel()]
    total = (logp * up.view(logp.shape)).sum()
    return total - 0.7 * tail[_told(c, ids)].sum() if c.tail else total


def topk(backend: str, c: TopK) -> None:
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
    results = []
    for dtype in (z.dtype, torch.float64, torch.float32):
        x = z.detach().to(dtype).requires_grad_()
        if not results:
            with use_backend(backend):
                logp, tail = topk_logprob(x, ids, **known)
        else:
            logp, tail = topk_logprob_reference(x, ids, **known)
        _topk_total(logp, tail, c, ids).backward()
        results.append((logp.detach(), tail.detach()[_told(c, ids)], x.grad))
    # The definition in fp64 knows no tail that is this near to 0.
    tails = [torch.where(tail.abs() < 1e-14, 0.0, tail) for _, tail, _ in results]
    results = [(logp, tail, g) for (logp, _, g), tail in zip(results, tails, strict=True)]
    for name, y, t, b in zip(("logp", "tail", "gradient"), *results, strict=True):
        if y.numel():
            factor = BACKWARD if name == "gradient" else FORWARD
            assert_within_budget(y, t, b.to(y.dtype), factor, name)


def _topk_parts(c: TopK) -> tuple[Leaves, Tensor, float]:
    g = torch.Generator().manual_seed(c.seed)
    dtype = DTYPES[c.dtype]
    parts = {"hidden": states((c.n, c.d), dtype, g), "head": numbers((c.v, c.d), dtype, g)}
    parts["hidden"][1:] *= min(c.spread, 2.0)
    if c.bias:
        parts["bias"] = numbers((c.v,), dtype, g) / 4
    budget = 64.0 if not c.budget else c.budget * c.v * dtype.itemsize / 2**20
    return parts, _ids(c, g), budget


def _topk_logits(x: Leaves) -> Tensor:
    z = torch.nn.functional.linear(x["hidden"], x["head"], x.get("bias"))
    return z.to(torch.promote_types(z.dtype, torch.float32))


def linear_topk(backend: str, c: TopK) -> None:
    """The same of a fused head."""
    parts, ids, budget = _topk_parts(c)
    known = {"temperature": c.temperature, "softcap": c.softcap}
    leaves = leaves_of(parts, parts["hidden"].dtype, "")
    x = dict(leaves)
    with use_backend(backend):
        logp, tail = linear_topk_logprob(
            x.pop("hidden"), x.pop("head"), ids, memory_mib=budget,
            fp32_head_gradient=c.fp32_head_gradient, **x, **known,
        )  # fmt: skip
        _topk_total(logp, tail, c, ids).backward()

    def definition(x: Leaves) -> Tensor:
        logp, tail = topk_logprob_reference(_topk_logits(x), ids, **known)
        _topk_total(logp, tail, c, ids).backward()
        return logp

    if c.n:
        compare(logp, leaves, definition, parts, "")


def tokens(backend: str, c: TopK) -> None:
    """Sums over sequences, means and single positions; what is masked takes no part."""
    parts, ids, budget = _topk_parts(c)
    token = torch.where(ids[:, 0] < 0, -100, ids[:, 0])
    long = c.n % 2 == 0 and c.n > 0
    mask = torch.arange(c.n) % 3 != 1 if c.tail else None
    shape = (2, c.n // 2) if long else (c.n,)
    known = {"temperature": c.temperature, "softcap": c.softcap}
    leaves = leaves_of(parts, parts["hidden"].dtype, "")
    x = dict(leaves)
    hidden = x.pop("hidden").view(*shape, c.d)
    average = long and c.seed % 2 == 1
    with use_backend(backend):
        out = linear_logprob(
            hidden, x.pop("head"), token.view(shape), average=average,
            mask=None if mask is None else mask.view(shape),
            memory_mib=budget, fp32_head_gradient=c.fp32_head_gradient,
            **x, **known,
        )  # fmt: skip
        out.sum().backward()

    def definition(x: Leaves) -> Tensor:
        live = token >= 0 if mask is None else (token >= 0) & mask
        chosen = torch.where(live, token, -1)[:, None]
        logp = topk_logprob_reference(_topk_logits(x), chosen, **known)[0][:, 0].view(shape)
        if long:
            count = live.view(shape).sum(1) if average else torch.ones(2)
            logp = logp.sum(1) / count.clamp_min(1)
        logp.sum().backward()
        return logp

    compare(out, leaves, definition, parts, "")
