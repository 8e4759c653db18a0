"""What only a GPU can show: no waiting for the device, CUDA graphs, addresses beyond 2^31.

The calls are tried on the CPU as well, so that they are right on the day there is a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import w2s_fast
from w2s_fast import SparseTargets
from w2s_fast.losses.distillation import ForwardKL
from w2s_fast.losses.policy import PPO
from w2s_fast.ops.weak_loss import weak_loss
from w2s_fast.testing import BACKWARD, assert_within_budget, device

N, V, D = 6, 131, 16
BF16 = torch.bfloat16
Call = tuple[Callable[..., Tensor], list[Tensor]]  # a 0-d loss of leaves


def normal(*shape: int, seed: int) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=g).to(device())


def weak_of(kind: str, v: int) -> Any:
    hard = torch.arange(N, device=device()) % v
    soft = normal(N, v, seed=1).softmax(1)
    if kind == "hard":
        return hard
    if kind == "dense":
        return soft
    k = min(4, v - 1)
    probs, ids = soft.topk(k, 1)
    return SparseTargets(ids, probs, 1 - probs.sum(1) if kind == "rest" else None)


def dense(kind: str, rule: str, reduction: str, v: int = V) -> Call:
    weak, weight = weak_of(kind, v), normal(N, seed=2).abs()

    def loss(z: Tensor) -> Tensor:
        options: dict[str, Any] = {} if rule == "none" else {"rule": rule, "aux": 0.5}
        return weak_loss(z * 1.0, weak, weight=weight, reduction=reduction, **options).loss

    return loss, [normal(N, v, seed=3).to(BF16)]


def linear(threshold: str | None, reduction: str) -> Call:
    weak = weak_of("hard", V)
    options: dict[str, Any] = {} if threshold is None else {"aux": 0.5, "threshold": threshold}

    def loss(hidden: Tensor, head: Tensor) -> Tensor:
        return w2s_fast.linear_cross_entropy(hidden, head, weak, reduction=reduction, **options)

    return loss, [normal(N, D, seed=4).to(BF16), normal(V, D, seed=5).to(BF16)]


def topk() -> Call:
    ids = weak_of("sparse", V).ids

    def loss(z: Tensor) -> Tensor:
        logp, tail = w2s_fast.topk_logprob(z, ids, temperature=2.0)
        return logp.sum() + tail.sum()

    return loss, [normal(N, V, seed=6).to(BF16)]


def tokens() -> Call:
    ids = weak_of("hard", V)
    leaves = [normal(N, D, seed=4).to(BF16), normal(V, D, seed=5).to(BF16)]
    return lambda hidden, head: w2s_fast.linear_logprob(hidden, head, ids).sum(), leaves


def distilled() -> Call:
    teacher = weak_of("rest", V)
    return lambda z: ForwardKL(temperature=2.0)(z, teacher).loss_sum, [
        normal(N, V, seed=7).to(BF16)
    ]


def taught(divergence: str, learned: bool) -> Call:
    """Two teachers of other widths; with ``learned`` the scale of one is a leaf."""
    states, heads = ([normal(n, d, seed=9 + d).to(BF16) for d in (8, 24)] for n in (N, V))

    def loss(hidden: Tensor, head: Tensor, scale: float | Tensor = 1.5) -> Tensor:
        teacher = list(zip((scale, -0.5), states, heads, strict=True))
        return w2s_fast.linear_cross_entropy(
            hidden, head, teacher=teacher, divergence=divergence, memory_mib=3 * V * 4 / 2**20
        )

    leaves = [normal(N, D, seed=4).to(BF16), normal(V, D, seed=5).to(BF16)]
    return loss, [*leaves, normal(1, seed=6)[0].abs()] if learned else leaves


def policy() -> Call:
    """PPO with an entropy bonus over tokens of a fused head, from differentiable statistics."""
    ids, advantage = weak_of("hard", V), normal(N, 1, seed=8)
    old = normal(N, 1, seed=9) - 5

    def loss(hidden: Tensor, head: Tensor) -> Tensor:
        logp, stats = w2s_fast.linear_logprob(hidden, head, ids, return_stats="differentiable")
        values = logp[:, None], stats.entropy[:, None]
        return PPO(entropy_coef=0.1)(
            values[0], old=old, advantage=advantage, entropy=values[1]
        ).loss_sum

    return loss, [normal(N, D, seed=4).to(BF16), normal(V, D, seed=5).to(BF16)]


def order_statistics() -> Call:
    """Detached: the sum carries a gradient so that the call has the shape of the others."""
    q = torch.full((), 0.3, dtype=torch.float64, device=device())

    def loss(x: Tensor) -> Tensor:
        mask = w2s_fast.top_fraction_mask(x, 0.25)
        at = w2s_fast.quantile(x, q) + w2s_fast.kth_value(x, 17)
        return (x * mask).sum() + at

    return loss, [normal(999, seed=8)]


CALLS: dict[str, Callable[[], Call]] = {
    f"dense-{kind}-{rule}-{reduction}": lambda k=kind, r=rule, m=reduction: dense(k, r, m)
    for kind in ("hard", "dense", "sparse", "rest")
    for rule in ("none", "argmax", "median")
    for reduction in ("mean", "sum")
}
CALLS |= {
    f"two-{kind}-{rule}": lambda k=kind, r=rule: dense(k, r, "mean", 2)
    for kind in ("hard", "dense")
    for rule in ("prior", "median")
}
CALLS |= {
    f"linear-{threshold}-{m}": lambda t=threshold, m=m: linear(t, m)
    for threshold in (None, "median")
    for m in ("mean", "sum")
}
CALLS |= {"topk_logprob": topk, "linear_logprob": tokens, "forward_kl": distilled}
CALLS |= {
    f"teacher-{divergence}-{'learned' if learned else 'fixed'}": (
        lambda d=divergence, x=learned: taught(d, x)
    )
    for divergence in ("cross_entropy", "jsd")
    for learned in (False, True)
}
CALLS |= {"order_statistics": order_statistics, "policy": policy}


def leaves_of(tensors: list[Tensor]) -> list[Tensor]:
    return [t.detach().clone().requires_grad_() for t in tensors]


def step(loss: Callable[..., Tensor], leaves: list[Tensor]) -> list[Tensor]:
    value = loss(*leaves)
    return [value, *torch.autograd.grad(value, leaves)]


@pytest.mark.parametrize("name", CALLS)
def test_calls_run_on_the_cpu(name: str) -> None:
    loss, tensors = CALLS[name]()
    assert all(bool(t.isfinite().all()) for t in step(loss, leaves_of(tensors)))


@pytest.fixture
def no_sync() -> Iterator[Callable[[], None]]:
    """Call it to make every later wait for the device an error."""
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.parametrize("name", CALLS)
def test_no_host_sync(name: str, no_sync: Callable[[], None]) -> None:
    loss, tensors = CALLS[name]()
    leaves = leaves_of(tensors)
    step(loss, leaves)  # compiles, loads modules, fills the allocator
    torch.cuda.synchronize()
    no_sync()
    step(loss, leaves)


@pytest.mark.gpu
@pytest.mark.parametrize("name", CALLS)
def test_cuda_graph(name: str) -> None:
    """Captured once, replayed on other inputs: what it computes is what eager computes."""
    loss, tensors = CALLS[name]()
    leaves = leaves_of(tensors)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step(loss, leaves)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(loss, leaves)
    other = leaves_of([t.flip(0) * 0.7 for t in tensors])
    with torch.no_grad():
        for leaf, t in zip(leaves, other, strict=True):
            leaf.copy_(t)
    graph.replay()
    for mine, theirs in zip(captured, step(loss, other), strict=True):
        assert_within_budget(mine, theirs.double(), theirs, BACKWARD)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "name", ["dense-hard-median-mean", "two-dense-prior", "linear-median-mean"]
)
def test_compiled_on_the_device(name: str) -> None:
    loss, tensors = CALLS[name]()
    eager = step(loss, leaves_of(tensors))
    compiled = step(torch.compile(loss, fullgraph=True, backend="aot_eager"), leaves_of(tensors))
    torch.compiler.reset()
    for mine, theirs in zip(compiled, eager, strict=True):
        assert_within_budget(mine, theirs.double(), theirs, BACKWARD)


@pytest.mark.gpu
@pytest.mark.parametrize("inplace", [False, True])
def test_more_than_two_to_the_31_logits(inplace: bool) -> None:
    v = 128_256
    n = 2**31 // v + 8
    need = (3 if inplace else 4) * n * v * 2
    if torch.cuda.mem_get_info()[0] < need:
        pytest.skip(f"needs {need / 2**30:.0f} GiB of GPU memory")
    g = torch.Generator(device()).manual_seed(0)
    z = torch.randn(n, v, generator=g, device=device(), dtype=BF16).requires_grad_()
    weak = torch.arange(n, device=device()) % v
    (grad,) = torch.autograd.grad(
        weak_loss(z * 1.0, weak, rule="argmax", aux=0.5, inplace=inplace).loss, z
    )
    for at in (0, 2**31 // v, n - 1):  # the second holds element 2^31
        row = z.detach()[at : at + 1].clone().requires_grad_()
        (alone,) = torch.autograd.grad(
            weak_loss(row * 1.0, weak[at : at + 1], rule="argmax", aux=0.5).loss, row
        )
        assert_within_budget(grad[at : at + 1], alone.double(), alone, BACKWARD)
