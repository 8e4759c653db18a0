"""Properties of rows that are not numbers, and of two classes with infinite margins."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from hypothesis import strategies as st
from torch import Tensor

from properties.cases import DTYPES, Record, Rows
from properties.dense import decided, fixed_gate, oracle, run
from properties.inputs import lay_out
from w2s_fast.ops import use_backend
from w2s_fast.ops.cross_entropy.api import cross_entropy
from w2s_fast.testing import BACKWARD, FORWARD, assert_within_budget


def poisoned(backend: str, c: Rows) -> None:
    """A NaN, +inf or impossible row is NaN in its loss and all its gradient, and nowhere else."""
    c = fixed_gate(replace(c, weight="none", ignored=0, reduction="none", window=1.0, upstream=1.0))
    c = replace(c, layout="padded" if c.layout == "expanded" else c.layout, ignore_index=-100)
    c = replace(c, offset=0.0, marks=())
    if not c.n:
        return
    call = decided(c)
    sick = dict(call)
    z, at, k = call["logits"].clone(), c.n - 1 - c.seed % max(c.n - 1, 1), (c.seed // 64) % c.v
    kind = ("nan", "inf", "all", "label")[(c.seed // 8) % 4]
    if c.softcap or (kind == "label" and c.kind != "dense"):
        kind = "nan"
    if kind == "label":
        sick["weak"] = call["weak"].clone()
        sick["weak"][at, k] = _nan(sick["weak"].dtype)
    else:
        z[at, slice(None) if kind == "all" else k] = {
            "nan": _nan(z.dtype),
            "inf": torch.tensor(math.inf),
            "all": torch.tensor(-math.inf),
        }[kind].to(z.dtype)
        sick["logits"] = lay_out(z, c.layout)
    reductions = ("none", "sum")
    for reduction in reductions:
        loss, grad, _ = run(backend, sick | {"reduction": reduction}, 1.0)
        assert bool(grad[at].isnan().all()), f"{kind}, {reduction}: gradient {grad[at]}, not NaN"
        assert bool(loss[at].isnan() if loss.dim() else loss.isnan()), f"{kind}: loss {loss}"
        others = torch.arange(c.n) != at
        truth, eager = (oracle(call, 1.0, d) for d in (torch.float64, torch.float32))
        if c.n > 1:
            # 1 - tanh^2 of the definition ends at 1e-16; the slope of the op goes on.
            floor = 1e-16 if c.softcap else 0.0
            y, t, b = (
                torch.where(x.abs() <= floor, torch.zeros_like(x), x)
                for x in (grad[others], truth[1][others], eager[1][others])
            )
            assert_within_budget(y, t, b.to(y.dtype), BACKWARD, "other rows")


def _nan(dtype: torch.dtype) -> Tensor:
    """NaN with every bit of the payload set: rounding by adding to the bits wraps it to 0."""
    if dtype == torch.float64:
        return torch.tensor(math.nan, dtype=dtype)
    if dtype == torch.float32:
        return torch.tensor(0x7FFFFFFF, dtype=torch.int32).view(dtype)
    return torch.tensor(0x7FFF, dtype=torch.int16).view(dtype)


@dataclass(frozen=True, repr=False)
class Margins(Record):
    """Two classes whose margins lie apart, some at infinity."""

    n: int = 1
    dtype: str = "fp32"
    seed: int = 0
    infinite: tuple[int, ...] = ()  # rows; the even ones are sure of class 0
    place: int = 0  # how many rows are below the threshold
    threshold: str = "prior"
    aux: float = 0.5


def margins(small: bool = False) -> st.SearchStrategy[Margins]:
    """Up to 40 rows."""
    return st.builds(
        Margins,
        n=st.integers(1, 6 if small else 40),
        dtype=st.sampled_from(("fp32", "bf16", "fp16", "fp64")),
        seed=st.integers(0, 2**20),
        infinite=st.lists(st.integers(0, 39), max_size=3).map(tuple),
        place=st.integers(0, 40),
        threshold=st.sampled_from(("prior", "median")),
        aux=st.sampled_from((0.5, 0.0, 1.0, 0.3)),
    )


def two_classes(backend: str, c: Margins) -> None:
    """``cross_entropy`` of soft labels and two classes is what its docstring says."""
    g = torch.Generator().manual_seed(c.seed)
    margin = (torch.randperm(c.n, generator=g) - c.n // 2) / 4.0 + 0.125
    z = torch.stack([margin, torch.zeros(c.n)], 1).to(DTYPES[c.dtype])
    # The threshold falls half way between two rows, so rounding cannot move it past one.
    share = (c.place % max(c.n - 1, 1) + 0.5) / max(c.n - 1, 1)
    weak = torch.stack([1 - torch.full((c.n,), share), torch.full((c.n,), share)], 1)
    for i in {i % c.n for i in c.infinite}:
        z[i] = torch.tensor([0.0, -math.inf] if i % 2 == 0 else [-math.inf, 0.0])
        weak[i] = torch.tensor([1.0, 0.0] if i % 2 == 0 else [0.0, 1.0])
    at = float(weak[:, 1].double().mean()) if c.threshold == "prior" else 0.5
    p0 = z.double().softmax(1)[:, 0]
    cut = torch.quantile(p0, at)
    off = (p0 - cut).abs()
    if bool(((off > 0) & (off < 1e-6)).any()) or (
        c.threshold == "prior" and bool((off == 0).any())
    ):
        return
    own = torch.stack([p0 >= cut, p0 < cut], 1).double()
    results = []
    for dtype in (z.dtype, torch.float64, torch.float32):
        leaf = z.detach().to(dtype).requires_grad_()
        if not results:
            with use_backend(backend):
                loss = cross_entropy(leaf, weak, aux=c.aux, threshold=c.threshold)
        else:
            target = ((1 - c.aux) * weak.double() + c.aux * own).to(dtype)
            log_p = leaf.log_softmax(1)
            loss = -torch.where(target != 0, target * log_p, 0.0).sum() / c.n
        loss.backward()
        results.append((loss.detach(), leaf.grad))
    for name, y, t, b in zip(("loss", "gradient"), *results, strict=True):
        factor = FORWARD if name == "loss" else BACKWARD
        assert_within_budget(y, t, b.to(y.dtype), factor, name)
