"""How each op of docs/support.md is called for one cell, and what it is compared with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

import w2s_fast
from tools.support_matrix.table import ENTRIES, Option
from w2s_fast.losses._base import summed_metrics
from w2s_fast.ops import use_backend
from w2s_fast.ops.fused_linear.cross_entropy import linear_cross_entropy
from w2s_fast.ops.fused_linear.logprob import linear_logprob, linear_topk_logprob
from w2s_fast.ops.logprob.api import RowStats, topk_logprob, topk_logprob_reference
from w2s_fast.ops.reference import KINDS, Own, cross_entropy_reference, cross_entropy_sample
from w2s_fast.ops.results import Stats
from w2s_fast.ops.weak_loss import weak_loss
from w2s_fast.testing import (
    BACKWARD,
    FORWARD,
    assert_cross_entropy,
    assert_fp64,
    assert_within_budget,
)

FP32, FP64 = torch.float32, torch.float64
BY_NAME = {entry.name.split()[0].rstrip(":,"): entry for entry in ENTRIES}
N, D = 5, 8


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def kinds(option: Option, backend: str) -> tuple[str, ...]:
    if "kind" in option.sample:
        return (option.sample["kind"],)
    few = KINDS if backend == "cpp" else ("rest",)
    return option.sample.get("kinds", few)


# Cross-entropy of logits.
def cross_entropy(backend: str, dtype: torch.dtype, option: Option) -> None:
    if option.call.get("return_stats") == "differentiable":
        loss_statistics(backend, dtype)
        return
    if option.call.get("return_sums"):
        metric_sums(backend, dtype)
        return
    for kind in kinds(option, backend):
        v = option.sample.get("v", 7)
        # Eager is exact by luck on a few rows of two classes; the interpreter pays for each.
        n = N if v != 2 else 8 if backend == "triton" else 19
        call = cross_entropy_sample(n, v, dtype, "cpu", seed=v, kind=kind) | dict(option.call)
        if not call.pop("return_stats", True):
            raise AssertionError("the check reads the statistics")
        if call["weight"] is True:
            call["weight"] = torch.tensor([0.5, 0.0, 2.0, 1.0, 1.5])
        if call.get("aux") == "tensor":
            call["aux"] = torch.tensor(0.4)
        if "threshold" in call:
            call["threshold"] = torch.tensor(call["threshold"])
        if call.pop("compiled", False):
            compiled_cross_entropy(backend, call)
        elif {"twice", "leaf", "again"} & call.keys() or option.unsupported:
            refused_cross_entropy(backend, call)
        else:
            up = torch.linspace(-1, 2, N) if call.get("reduction") == "none" else 0.7
            assert_cross_entropy(backend, call, upstream=up)


def loss_statistics(backend: str, dtype: torch.dtype) -> None:
    z, hard = normal(N, 11, seed=4).mul(3).to(dtype), torch.arange(N)

    def ours(x: dict[str, Tensor]) -> tuple[Tensor, ...]:
        loss, stats = w2s_fast.cross_entropy(x["z"], hard, return_stats="differentiable")
        return loss, outputs_of(stats)

    def truth(x: dict[str, Tensor]) -> tuple[Tensor, ...]:
        wide = x["z"].to(torch.promote_types(x["z"].dtype, FP32))
        loss = torch.nn.functional.cross_entropy(wide, hard)
        return loss, statistics_of(wide, "differentiable")

    compare(backend, ours, truth, {"z": z}, dtype)


def metric_sums(backend: str, dtype: torch.dtype) -> None:
    for v in (2, 11):
        z, hard = normal(N, v, seed=v).mul(3).to(dtype), torch.arange(N) % 2
        with use_backend(backend):
            metrics = w2s_fast.losses.Xent()(z, hard).metrics
        exact, eager = (
            own_sums(z.to(precision), hard) for precision in (FP64, metrics["rows"].dtype)
        )
        for name, value in exact.items():
            assert_within_budget(metrics[name], value, eager[name], FORWARD)


def own_sums(z: Tensor, hard: Tensor) -> dict[str, Tensor]:
    p = z.softmax(1)
    entropy = torch.special.entr(p).sum(1)
    return summed_metrics(None, p.argmax(1) == hard, p.amax(1), entropy)


def compiled_cross_entropy(backend: str, call: dict[str, Any]) -> None:
    z = call.pop("logits").nan_to_num(0.5)

    def step(z: Tensor) -> Tensor:
        return weak_loss(z * 1.0, **call).loss

    same_compiled(backend, step, z)


def same_compiled(backend: str, step: Callable[[Tensor], Tensor], x: Tensor) -> None:
    results = []
    torch.compiler.reset()
    with use_backend(backend):
        for f in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
            leaf = x.clone().requires_grad_()
            loss = f(leaf)
            loss.backward()
            results.append((loss.detach(), leaf.grad))
    for eager, compiled in zip(*results, strict=True):
        assert_within_budget(compiled, eager.double(), eager, FORWARD)


def refused_cross_entropy(backend: str, call: dict[str, Any]) -> None:
    z = call.pop("logits").nan_to_num(0.5).requires_grad_()
    twice, leaf, again = (call.pop(k, False) for k in ("twice", "leaf", "again"))
    with use_backend(backend):
        loss = weak_loss(z if leaf else z * 1.0, **call).loss
        (grad,) = torch.autograd.grad(loss, z, create_graph=twice, retain_graph=again or twice)
        if again:
            loss.backward()
        grad.sum().backward()


# Cross-entropy and log-probabilities of a head: ours and the definition, in parts with gradients.
def head_parts(option: Option, dtype: torch.dtype, v: int = 17) -> dict[str, Tensor]:
    parts = {"hidden": normal(N, D, seed=1), "head": normal(v, D, seed=2)}
    if option.call.get("bias"):
        parts["bias"] = normal(v, seed=3)
    return {name: t.to(dtype) for name, t in parts.items()}


def options_of(option: Option, *own: str) -> dict[str, Any]:
    taken = {"bias", "frozen", "positions", "weight", "compiled", "twice", *own}
    return {k: v for k, v in option.call.items() if k not in taken}


def values_and_gradients(
    f: Callable[[dict[str, Tensor]], tuple[Tensor, ...]],
    parts: dict[str, Tensor],
    dtype: torch.dtype,
    frozen: str | None,
) -> list[tuple[str, Tensor, float]]:
    """(name, tensor, budget) of what f computes and of every gradient."""
    leaves = {
        n: t.to(torch.promote_types(dtype, FP32) if n == "weight" else dtype)
        .clone()
        .requires_grad_(n != frozen)
        for n, t in parts.items()
    }
    out = f(leaves)
    total = sum((y * normal(*y.shape, seed=9).to(y.dtype)).sum() for y in out)
    total.backward()
    values = [(f"output {i}", y.detach(), FORWARD) for i, y in enumerate(out)]
    assert frozen is None or leaves[frozen].grad is None
    return values + [(n, t.grad, BACKWARD) for n, t in leaves.items() if t.grad is not None]


def compare(
    backend: str,
    ours: Callable[[dict[str, Tensor]], tuple[Tensor, ...]],
    truth: Callable[[dict[str, Tensor]], tuple[Tensor, ...]],
    parts: dict[str, Tensor],
    dtype: torch.dtype,
    frozen: str | None = None,
) -> None:
    with use_backend(backend):
        actual = values_and_gradients(ours, parts, dtype, frozen)
    exact = values_and_gradients(truth, parts, FP64, frozen)
    if dtype == FP64:
        for (name, y, _), (_, t, _) in zip(actual, exact, strict=True):
            assert_fp64(y, t, name)
        return
    near = values_and_gradients(truth, parts, dtype, frozen)
    for (name, y, c), (_, t, _), (_, b, _) in zip(actual, exact, near, strict=True):
        assert_within_budget(y, t, b.to(y.dtype), c, name)


def linear(backend: str, dtype: torch.dtype, option: Option) -> None:
    for kind in kinds(option, "ref"):
        v = option.sample.get("v", 17)
        weak = cross_entropy_sample(N, v, FP32, "cpu", seed=v, kind=kind)["weak"]
        parts = head_parts(option, dtype, v)
        if option.call.get("weight"):
            parts["weight"] = torch.tensor([0.5, 0.0, 2.0, 1.0, 1.5])
        positions = torch.arange(N) if option.call.get("positions") else None
        if positions is not None:
            parts["hidden"] = torch.cat([parts["hidden"], parts["hidden"]]).nan_to_num(0.0)
            positions = positions + N
        linear_call(backend, dtype, option, parts, weak, positions)


def linear_call(
    backend: str,
    dtype: torch.dtype,
    option: Option,
    parts: dict[str, Tensor],
    weak: Any,
    positions: Tensor | None,
) -> None:
    kw = options_of(option, "return_stats")
    gate: list[Own] = []

    def ours(x: dict[str, Tensor]) -> tuple[Tensor, ...]:
        x = dict(x)
        data = x.pop("hidden"), x.pop("head")
        more = kw | ({"main_grad": shown_buffer(*data)} if kw.get("main_grad") else {})
        loss, s = linear_cross_entropy(
            *data, weak, positions=positions, return_stats=True, **x, **more
        )
        at = torch.zeros(())
        gate.append(Own(s.coefficient.double().nan_to_num(0.0), s.hard_class, s.max_prob, at))
        return (loss,)

    def truth(x: dict[str, Tensor]) -> tuple[Tensor, ...]:
        rows = x["hidden"] if positions is None else x["hidden"][positions]
        z = torch.nn.functional.linear(rows, x["head"], x.get("bias"))
        names = ("smoothing", "softcap", "z_loss", "ignore_index")
        known = {k: kw[k] for k in names if k in kw}
        loss = cross_entropy_reference(
            z.to(torch.promote_types(z.dtype, FP32)), weak, weight=x.get("weight"), own=gate[0],
            reduction=kw.get("reduction", "mean"), **known,
        )  # fmt: skip
        return (loss,)

    if option.call.get("compiled"):
        same_compiled(backend, lambda h: ours(parts | {"hidden": h})[0], parts["hidden"])
    elif option.call.get("twice"):
        twice(backend, lambda h: ours(parts | {"hidden": h})[0], parts["hidden"])
    else:
        compare(backend, ours, truth, parts, dtype, option.call.get("frozen"))


def shown_buffer(hidden: Tensor, head: Tensor) -> Tensor:
    """A buffer for ``main_grad`` that becomes ``head.grad``, where it is compared."""
    buffer = torch.zeros_like(head, dtype=torch.promote_types(head.dtype, FP32)).detach()

    def show(_: Tensor) -> None:
        assert head.grad is None
        head.grad = buffer.to(head.dtype)

    hidden.register_post_accumulate_grad_hook(show)
    return buffer


def twice(backend: str, f: Callable[[Tensor], Tensor], x: Tensor) -> None:
    x = x.clone().requires_grad_()
    with use_backend(backend):
        (grad,) = torch.autograd.grad(f(x).sum(), x, create_graph=True)
        grad.sum().backward()


def logprob(backend: str, dtype: torch.dtype, option: Option) -> None:
    z = normal(N, 11, seed=4).mul(3).to(dtype)
    ids = torch.tensor([[2, 5, -1], [0, 1, 2], [10, 3, 4], [7, -1, -1], [1, 9, 8]])
    kw, return_stats = options_of(option, "return_stats"), option.call.get("return_stats", False)

    def ours(x: dict[str, Tensor]) -> tuple[Tensor, ...]:
        logp, tail, *stats = topk_logprob(x["z"], ids, **kw, return_stats=return_stats)
        return logp, tail, *(outputs_of(s) for s in stats)

    def truth(x: dict[str, Tensor]) -> tuple[Tensor, ...]:
        z = x["z"] / kw.get("temperature", 1.0)
        z = z.to(torch.promote_types(z.dtype, FP32))
        out = topk_logprob_reference(z, ids, softcap=kw.get("softcap", 0.0))
        return (*out, statistics_of(z, return_stats)) if return_stats else out

    if option.call.get("compiled"):
        same_compiled(backend, lambda z: sum(y.sum() for y in topk_logprob(z * 1.0, ids, **kw)), z)
    elif option.call.get("twice"):
        twice(backend, lambda z: topk_logprob(z, ids, **kw)[0], z)
    else:
        compare(backend, ours, truth, {"z": z}, dtype)


def outputs_of(stats: RowStats | Stats) -> Tensor:
    """One number a row that every floating point statistic enters."""
    margin = 0.0 if stats.margin is None else stats.margin
    return stats.lse - 2 * stats.max_prob + 3 * stats.entropy + margin


def statistics_of(z: Tensor, return_stats: bool | str) -> Tensor:
    p, two = z.softmax(1), z.topk(2, 1)[0]
    out = z.logsumexp(1) - 2 * p.amax(1) + 3 * torch.special.entr(p).sum(1)
    return out.detach() if return_stats is True else out + two[:, 0] - two[:, 1]


def linear_logprobs(backend: str, dtype: torch.dtype, option: Option) -> None:
    parts = head_parts(option, dtype)
    topk, sequences = option.call.get("topk"), {"mask", "average"} & option.call.keys()
    stats = option.call.get("return_stats", False)
    sequences = sequences and not option.call.get("flat")
    kw = options_of(option, "topk", "mask", "flat", "average", "return_stats")
    mean = bool(option.call.get("average"))
    ids = torch.tensor([[2, 5], [0, 1], [16, 3], [7, -1], [1, 9]])
    tokens = torch.tensor([2, 0, -100, 7, 16])
    mask = torch.tensor([1, 0, 1, 1, 1]) if option.call.get("mask") else None
    positions = torch.tensor([0, 1, 3, 4]) if option.call.get("positions") else None
    if topk is None and not sequences:
        extra: dict[str, Any] = {"positions": positions, "average": mean}
    else:
        extra = {"mask": None if mask is None else mask[None], "average": mean}

    def ours(x: dict[str, Tensor]) -> tuple[Tensor, ...]:
        x = dict(x)
        hidden, head = x.pop("hidden"), x.pop("head")
        if topk:
            return linear_topk_logprob(hidden, head, ids, **x, **kw)
        rows, labels = (hidden[None], tokens[None]) if sequences else (hidden, tokens)
        out = linear_logprob(rows, head, labels, **x, **kw, **extra, return_stats=stats)
        return (out[0], outputs_of(out[1])) if stats else (out,)

    def truth(x: dict[str, Tensor]) -> tuple[Tensor, ...]:
        z = torch.nn.functional.linear(x["hidden"], x["head"], x.get("bias"))
        z = z.to(torch.promote_types(z.dtype, FP32))
        scale = {k: kw[k] for k in ("temperature", "softcap") if k in kw}
        if topk:
            return topk_logprob_reference(z, ids, **scale)
        live = tokens >= 0 if mask is None else (tokens >= 0) & (mask != 0)
        logp = topk_logprob_reference(z, torch.where(live, tokens, -1)[:, None], **scale)[0][:, 0]
        if sequences:
            return ((logp.sum() / (live.sum() if mean else 1))[None],)
        return (logp, torch.where(live, statistics_of(z, stats), 0.0)) if stats else (logp,)

    if option.call.get("twice"):
        twice(backend, lambda h: ours(parts | {"hidden": h})[0], parts["hidden"])
    else:
        compare(backend, ours, truth, parts, dtype, option.call.get("frozen"))


# Order statistics: the definition is a sort.
def quantiles(backend: str, dtype: torch.dtype, option: Option) -> None:
    x, how = normal(101, seed=5).mul(4).round().div(4).to(dtype), dict(option.call)
    keep = torch.arange(101) % 3 > 0 if how.get("keep") else None
    group = dist.group.WORLD if how.get("group") else None
    scores_kept = (x if keep is None else x[keep]).double()
    if how.get("integer"):
        x = x.long()
    if how.get("gradient"):
        x = x.requires_grad_()
    with use_backend(backend):
        if how["which"] == "quantile":
            q = torch.tensor(0.3) if how.get("tensor") else 0.3
            actual = w2s_fast.quantile(x, q, keep=keep, group=group)
            if how.get("gradient"):
                actual.backward()
            rank = torch.tensor(0.3, dtype=FP32 if how.get("tensor") else FP64).double()
            truth = torch.quantile(scores_kept, rank)
            return assert_within_budget(
                actual, truth, torch.quantile(scores_kept.to(actual.dtype), 0.3), FORWARD
            )
        if how["which"] == "kth_value":
            actual = w2s_fast.kth_value(x, 30, keep=keep, group=group)
            return assert_within_budget(actual, scores_kept.sort().values[29], actual, 0.0)
        mask = w2s_fast.top_fraction_mask(x, 0.25, keep=keep, group=group)
    assert int(mask.sum()) == round(0.25 * scores_kept.numel())
    assert keep is None or not bool((mask & ~keep).any())
    out = ~mask if keep is None else keep & ~mask
    assert float(x[mask].min()) >= float(x[out].max())
