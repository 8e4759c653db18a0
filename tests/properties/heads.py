"""Properties of losses of a fused head.

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

from properties.cases import DTYPES, Record, Rows, mostly, pick, rows
from properties.inputs import build
from w2s_fast.ops import use_backend
from w2s_fast.ops.fused_linear.cross_entropy import linear_cross_entropy
from w2s_fast.ops.reference import Own, cross_entropy_reference
from w2s_fast.ops.vocab_parallel.api import vocab_parallel_cross_entropy
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
    # Of one class all is the z-loss of a single product: of its cancellation there is no yardstick.
    v = st.sampled_from((3, 2, 4, 7, 8, 9, 16, 17, 31, 33, 64, 65, 129))
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


def numbers(shape: tuple[int, ...], dtype: torch.dtype, g: torch.Generator) -> Tensor:
    x = torch.randn(*shape, generator=g, dtype=torch.float64)
    return ((x * 2).round().clamp(-4, 4) / 2 if dtype.itemsize == 2 else x).to(dtype)


def states(shape: tuple[int, ...], dtype: torch.dtype, g: torch.Generator) -> Tensor:
    """Hidden states of which the first is unsure: see ``cases.build``."""
    x = numbers(shape, dtype, g)
    x[:1] = torch.where(torch.arange(shape[1]) % 2 == 0, 0.25, -0.25).to(dtype)
    return x


def head_call(c: Head) -> tuple[Leaves, dict[str, Any]]:
    """What gets gradients, and the other arguments."""
    call = build(c.rows)
    dtype, g = DTYPES[c.rows.dtype], torch.Generator().manual_seed(c.rows.seed + 1)
    parts = {
        "hidden": states((c.rows.n, c.d), dtype, g),
        "head": numbers((c.rows.v, c.d), dtype, g),
    }
    if c.bias:
        parts["bias"] = numbers((c.rows.v,), dtype, g) / 4
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


def leaves_of(parts: Leaves, dtype: torch.dtype, frozen: str) -> Leaves:
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
    leaves = leaves_of(parts, dtype, c.frozen)
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
    compare(loss, leaves, definition, parts, c.frozen)


def _head_loss(x: Leaves, rest: dict[str, Any], own: Own, upstream: float) -> Tensor:
    z = torch.nn.functional.linear(x["hidden"], x["head"], x.get("bias"))
    z = z.to(torch.promote_types(z.dtype, torch.float32))
    weight = x.get("weight", rest.get("weight"))
    rest = {k: v for k, v in rest.items() if k != "weight"}
    loss = cross_entropy_reference(z, weight=weight, own=own, **rest)
    (loss * upstream).sum().backward()
    return loss


def compare(
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
    exact, near = (leaves_of(parts, d, frozen) for d in (torch.float64, narrow))
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
