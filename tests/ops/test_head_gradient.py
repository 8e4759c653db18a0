"""The gradient of a fused head: fp32 sums, rounded once, for any chunks, device and CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import w2s_fast
from w2s_fast import SparseTargets
from w2s_fast.ops import use_backend
from w2s_fast.ops.fused_linear import chunks, gemm, head_gradient, solve
from w2s_fast.ops.loss_call import LossSpec
from w2s_fast.ops.targets import attach_targets
from w2s_fast.testing import BACKWARD, assert_within_budget

BF16, FP16 = torch.bfloat16, torch.float16
D = 8


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class RoundEveryTerm(TorchDispatchMode):
    """Adding rows to a 16-bit tensor rounds after every row, as atomics on a GPU do."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        into = args[0] if args and isinstance(args[0], Tensor) else None
        if into is None or into.dtype not in (BF16, FP16):
            return func(*args, **(kwargs or {}))
        if name == "index_add_":
            at, rows = args[2], args[3]
        elif name in ("index_put_", "_index_put_impl_") and len(args) > 3 and args[3]:
            at, rows = args[1][0], args[2]
        else:
            return func(*args, **(kwargs or {}))
        for i in range(at.shape[0]):
            into[at[i]] = (into[at[i]].float() + rows[i].float()).to(into.dtype)
        return into


@pytest.fixture(params=["cpu", "gpu"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to add rows by class; the GPU's runs here with a rounding a term."""
    if request.param == "gpu":
        monkeypatch.setattr(head_gradient, "_add_unique", head_gradient._add_sorted)
    return str(request.param)


@pytest.mark.parametrize("dtype", [torch.float32, BF16, FP16], ids=str)
def test_rows_of_a_class_are_summed_before_they_are_rounded(way: str, dtype: torch.dtype) -> None:
    n = 4096
    for seed, classes in enumerate((torch.arange(n) % 2 + 3, torch.randint(0, 7, (n,)), [])):
        at = torch.as_tensor(classes, dtype=torch.int64)
        rows = normal(len(at), D, seed=seed)
        into = normal(9, D, seed=5).to(dtype)
        exact = into.double().index_add_(0, at, rows.double())
        eager = into.float().index_add_(0, at, rows).to(dtype)
        with RoundEveryTerm():
            head_gradient.add_by_class(into, at, rows)
        error, bound = ((x.double() - exact).norm() for x in (into, eager))
        assert error <= 2 * bound, f"{float(error):.3g}, eager {float(bound):.3g}"


@pytest.mark.parametrize("fp32", [True, False], ids=["fp32 sum", "own dtype"])
def test_two_label_tokens_behind_a_late_gate(way: str, fp32: bool) -> None:
    """Half of 4096 rows lose their self-target after their chunks are gone."""
    n, v = 4096, 40
    hidden, head = normal(n, D, seed=1).to(BF16), normal(v, D, seed=2).to(BF16)
    labels = torch.where(normal(n, seed=3) > 0, 11, 29)
    leaf = head.clone().requires_grad_()
    with RoundEveryTerm():
        loss, stats = w2s_fast.linear_cross_entropy(
            hidden, leaf, labels, aux=0.5, threshold="median", memory_mib=n * v * 2 / 4 / 2**20,
            fp32_head_gradient=fp32, return_stats=True,
        )  # fmt: skip
        loss.backward()
    assert 0 < int((stats.coefficient == 0).sum()) < n
    assert leaf.grad is not None

    def gradient(dtype: torch.dtype) -> Tensor:
        w = head.to(dtype, copy=True).requires_grad_()
        logp = F.linear(hidden.to(dtype), w).to(torch.promote_types(dtype, torch.float32))
        logp, a = logp.log_softmax(1), stats.coefficient
        own = logp.gather(1, stats.hard_class[:, None])[:, 0]
        rows = (1 - a) * logp.gather(1, labels[:, None])[:, 0] + a * own
        (-rows.mean()).backward()
        assert w.grad is not None
        return w.grad

    exact, eager = gradient(torch.float64), gradient(BF16)
    assert_within_budget(leaf.grad, exact, eager, BACKWARD)
    error, bound = ((g.double() - exact).norm() for g in (leaf.grad, eager))
    assert error <= (1.5 if fp32 else 4) * bound, f"{float(error):.3g}, eager {float(bound):.3g}"


def test_the_same_call_gives_the_same_bits(way: str) -> None:
    n, v = 512, 40
    hidden, head = normal(n, D, seed=1).to(BF16), normal(v, D, seed=2).to(BF16)
    labels = torch.where(normal(n, seed=3) > 0, 11, 29)

    def gradient() -> Tensor:
        leaf = head.clone().requires_grad_()
        budget = n * v * 2 / 4 / 2**20
        w2s_fast.linear_cross_entropy(
            hidden, leaf, labels, aux=0.5, threshold="median", memory_mib=budget
        ).backward()
        assert leaf.grad is not None
        return leaf.grad

    assert torch.equal(gradient(), gradient())


@pytest.mark.parametrize("dtype", [BF16, FP16], ids=str)
@pytest.mark.parametrize("op", ["cross_entropy", "none", "logprob"])
def test_many_chunks_err_as_little_as_one_product(op: str, dtype: torch.dtype) -> None:
    """Rounding after every chunk is 8 times eager's error here."""
    n, v = 2048, 40
    # Hidden states with a common part: the sum over rows grows, and so does what a rounding loses.
    hidden, head = (1 + normal(n, D, seed=1)).to(dtype), normal(v, D, seed=2).to(dtype)
    labels = torch.arange(n) % 3

    def loss(w: Tensor, h: Tensor, memory_mib: float) -> Tensor:
        if op == "logprob":
            return -w2s_fast.linear_logprob(h, w, labels, memory_mib=memory_mib).mean()
        how = "none" if op == "none" else "mean"
        return w2s_fast.linear_cross_entropy(
            h, w, labels, memory_mib=memory_mib, reduction=how
        ).mean()

    def gradient(f: Callable[[Tensor, Tensor], Tensor], wide: torch.dtype) -> Tensor:
        w = head.to(wide, copy=True).requires_grad_()
        f(w, hidden.to(wide)).backward()
        assert w.grad is not None
        return w.grad.double()

    exact = gradient(lambda w, h: F.cross_entropy(F.linear(h, w), labels), torch.float64)
    eager = gradient(lambda w, h: F.cross_entropy(F.linear(h, w).float(), labels), dtype)
    ours = gradient(lambda w, h: loss(w, h, 16 * v * 2 / 2**20), dtype)
    assert (ours - exact).norm() <= 1.5 * (eager - exact).norm()


# CPUs without 16-bit kernels, as this one is made to look.
@pytest.mark.parametrize("dtype", [BF16, FP16], ids=str)
@pytest.mark.parametrize("kernels", [True, False], ids=["native", "through fp32"])
def test_either_way_to_multiply(
    monkeypatch: pytest.MonkeyPatch, kernels: bool, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(gemm, "has_kernels", lambda d: kernels or d.itemsize > 2)
    n, v = 24, 130
    hidden, head = normal(n, D, seed=1).to(dtype), normal(v, D, seed=2).to(dtype)
    bias = normal(v, seed=3).to(dtype)
    probs, ids = normal(n, v, seed=4).softmax(1).topk(3, 1)
    weak = SparseTargets(ids, probs / probs.sum(1, keepdim=True))

    def plain(h: Tensor, w: Tensor, b: Tensor) -> Tensor:
        z = F.linear(h, w, b)
        logp = z.to(torch.promote_types(z.dtype, torch.float32)).log_softmax(1)
        return -(weak.probs.to(logp.dtype) * logp.gather(1, ids)).sum(1).mean()

    def gradients(f: Callable[..., Tensor], wide: torch.dtype) -> list[Tensor]:
        leaves = [x.to(wide, copy=True).requires_grad_() for x in (hidden, head, bias)]
        loss = f(*leaves)
        loss.backward()
        return [loss.detach(), *(x.grad for x in leaves if x.grad is not None)]

    exact, eager = gradients(plain, torch.float64), gradients(plain, dtype)
    for budget in (64.0, 7 * v * 2 / 2**20):
        for reduction in ("mean", "none"):

            def ours(
                h: Tensor, w: Tensor, b: Tensor, budget: float = budget, how: str = reduction
            ) -> Tensor:
                return w2s_fast.linear_cross_entropy(
                    h, w, weak, bias=b, memory_mib=budget, reduction=how
                ).mean()

            with use_backend("ref"):
                actual = gradients(ours, dtype)
            for y, t, e in zip(actual, exact, eager, strict=True):
                assert_within_budget(y, t, e.to(y.dtype), BACKWARD)


def test_products_of_slow_dtypes_are_those_of_an_upcast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit the fp32 product, rounded: tiles split the classes, which are not summed over."""
    monkeypatch.setattr(gemm, "has_kernels", lambda d: d.itemsize > 2)
    hidden, head = normal(5, D, seed=1).to(BF16), normal(128, D, seed=2).to(BF16)
    z = gemm.logits_chunk(hidden, head, None, None, alpha=0.5)
    for at in gemm.tiles(head, 5):
        whole = gemm.product(hidden.float(), head[at].float())
        assert torch.equal(z[:, at], (0.5 * whole).to(BF16))


def test_one_chunk_keeps_alpha() -> None:
    """A temperature reaches the logits whether one chunk holds them or many."""
    hidden, head = normal(6, D, seed=1), normal(11, D, seed=2)
    shape = chunks.shape_only(6, 11, hidden)
    p = attach_targets(shape, torch.arange(6), None, -100)
    expected = F.cross_entropy(0.25 * hidden @ head.t(), torch.arange(6))
    for budget in (64.0, 2 * 11 * 4 / 2**20):
        x = chunks.HeadInputs(hidden, head, None, budget, alpha=0.25)
        s = solve.solve_linear(x, p, LossSpec(), chunks.NeedsGrad(), True)
        torch.testing.assert_close(s.loss, expected)
