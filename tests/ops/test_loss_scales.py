"""16-bit gradients under loss scales and normalisers: as exact as eager's, infinite where it is.

A loss scale reaches a fused loss as its upstream gradient. fp16 has few exponents: a gradient that
is rounded before it is scaled has lost its small entries. Eager here is the common form: logits
upcast to fp32, so that its 16-bit gradient is rounded once.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.support_losses import DIVERGENCES, DRIVERS
from torch import Tensor
from torch.nn import functional as F

import w2s_fast
from w2s_fast import SparseTargets
from w2s_fast.losses.distillation import DISTILLATIONS
from w2s_fast.losses.policy import PPO
from w2s_fast.losses.preference import DPO, Answers
from w2s_fast.ops import use_backend
from w2s_fast.ops.vocab_parallel.api import vocab_parallel_cross_entropy
from w2s_fast.ops.weak_loss import weak_loss
from w2s_fast.testing import device

DTYPES = (torch.float16, torch.bfloat16)
# With few rows and scale 1 most entries of an fp16 gradient are subnormal; from 2^16 on, the
# entries of a small normaliser overflow.
SCALES = (1.0, 2.0**8, 2.0**16, 2.0**24)
NORMALISERS = (1.0, 1e3, 1e6)
N, V, D = 6, 300, 16
KINDS = ("hard", "dense", "sparse", "rest")


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def targets(kind: str, v: int = V) -> tuple[Any, Tensor]:
    """Weak labels, and the same as (N, V) probabilities (without the residual)."""
    soft = normal(N, v, seed=1).softmax(1)
    if kind == "dense":
        return soft, soft
    ids = soft.topk(min(4, v - 1), 1).indices
    if kind == "hard":
        return ids[:, 0], F.one_hot(ids[:, 0], v).float()
    probs = soft.gather(1, ids)
    whole = torch.zeros(N, v).scatter(1, ids, probs)
    return SparseTargets(ids, probs, 1 - probs.sum(1) if kind == "rest" else None), whole


def rows_of(z: Tensor, weak: Any, whole: Tensor) -> Tensor:
    """(N,) row losses in the precision of the logits."""
    logp = z.log_softmax(1)
    rows = -(whole.to(z.dtype) * logp).sum(1)
    if isinstance(weak, SparseTargets) and weak.rest is not None:
        outside = logp.scatter(1, weak.ids, -torch.inf).logsumexp(1)
        rows = rows - weak.rest.to(z.dtype) * outside
    return rows


def assert_as_exact(ours: Tensor, eager: Tensor, truth: Tensor, what: str) -> None:
    """Within twice eager's error in every decade of sizes; infinite where eager is."""
    assert ours.dtype == eager.dtype
    if not bool(eager.isfinite().all()):
        assert not bool(ours.isfinite().all()), f"{what}: eager overflows, ours does not"
        return
    assert bool(ours.isfinite().all()), f"{what}: ours overflows, eager does not"
    step = torch.finfo(ours.dtype).smallest_normal * torch.finfo(ours.dtype).eps
    size = truth.abs() / truth.abs().max()
    for decade in range(8):
        mask = (size <= 10.0**-decade) & (size > 10.0 ** -(decade + 1))
        if int(mask.sum()) < 20:  # too few: eager can be exact on them by luck
            continue
        error, bound = (
            (x.double() - truth)[mask].square().mean().sqrt().item() for x in (ours, eager)
        )
        # One step of the format beside it, for what both round to the same subnormal numbers.
        assert error <= 2 * bound + step, (
            f"{what}, entries of 1e-{decade} of the largest: error {error:.3g}, eager's {bound:.3g}"
        )


def gradients(loss: Callable[..., Tensor], leaves: list[Tensor], scale: float) -> list[Tensor]:
    leaves = [x.detach().clone().requires_grad_() for x in leaves]
    (loss(*leaves) * scale).backward()
    return [x.grad for x in leaves if x.grad is not None]


def reduced(rows: Tensor, reduction: str, normaliser: float) -> Tensor:
    return rows.mean() if reduction == "mean" else rows.sum() / normaliser


def check(
    backend: str,
    ours: Callable[..., Tensor],
    plain: Callable[..., Tensor],
    leaves: list[Tensor],
    scale: float,
    what: str,
) -> None:
    with use_backend(backend):
        actual = gradients(ours, leaves, scale)
    eager = gradients(plain, leaves, scale)
    truth = gradients(plain, [x.double() for x in leaves], scale)
    for y, e, t in zip(actual, eager, truth, strict=True):
        assert_as_exact(y, e, t, f"{what}, scale {scale:g}")


def steps(backend: str, reduction: str = "sum") -> list[tuple[float, float]]:
    """Scales and normalisers of a test; interpreted kernels are slow and get the corners."""
    scales, normalisers = SCALES, NORMALISERS if reduction != "mean" else (1.0,)
    if backend == "triton" and device() == "cpu":
        scales, normalisers = (scales[0], scales[-1]), (normalisers[0], normalisers[-1])
    return list(dict.fromkeys(itertools.product(scales, normalisers)))


def upcast(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("kind", KINDS)
def test_logits(backend: str, kind: str, reduction: str, dtype: torch.dtype) -> None:
    z = (normal(N, V, seed=2) * 3).to(dtype)
    weak, whole = targets(kind)
    for scale, by in steps(backend, reduction):

        def ours(z: Tensor, by: float = by) -> Tensor:
            loss = w2s_fast.cross_entropy(z, weak, reduction=reduction)
            return loss if reduction == "mean" else loss.sum() / by

        def plain(z: Tensor, by: float = by) -> Tensor:
            return reduced(rows_of(upcast(z), weak, whole), reduction, by)

        check(backend, ours, plain, [z], scale, f"normaliser {by:g}")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rule", ["prior", "median"])
def test_two_classes(backend: str, rule: str, dtype: torch.dtype) -> None:
    """A batch of 4096 in small: every entry of the mean's gradient is a small number."""
    z = (normal(N, 2, seed=2) * 3).to(dtype)
    weak, whole = targets("dense", 2)
    for scale in SCALES:

        def ours(z: Tensor) -> Tensor:
            return w2s_fast.cross_entropy(z, weak, aux=0.5, threshold=rule, reduction="sum") / 4e4

        def plain(z: Tensor) -> Tensor:
            x = upcast(z)
            q = whole[:, 1].mean() if rule == "prior" else torch.tensor(0.5)
            first = (x.softmax(1)[:, 0] >= x.softmax(1)[:, 0].quantile(q.to(x.dtype))).detach()
            own = F.one_hot((~first).long(), 2)
            return rows_of(x, weak, 0.5 * whole + 0.5 * own).sum() / 4e4

        check(backend, ours, plain, [z], scale, rule)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rule", ["argmax", "median"])
def test_terms(backend: str, rule: str, dtype: torch.dtype) -> None:
    """Row weights, soft-cap, smoothing, z-loss and the late gate have paths of their own."""
    z = (normal(N, V, seed=2) * 3).to(dtype)
    weak, whole = targets("hard")
    weight = normal(N, seed=3).abs()
    terms = {"softcap": 5.0, "smoothing": 0.1, "z_loss": 0.01}

    def ours(z: Tensor) -> Tensor:
        options = {"rule": rule, "aux": 0.5, "weight": weight, "reduction": "mean", **terms}
        return weak_loss(z * 1.0, weak, inplace=True, **options).loss

    def plain(z: Tensor) -> Tensor:
        u = upcast(z)
        x = 5 * torch.tanh(u / 5)
        top = x.softmax(1).amax(1).detach()
        a = 0.5 * (top >= (top.median() if rule == "none" else top.quantile(0.5))).to(x.dtype)
        a = torch.full_like(a, 0.5) if rule == "argmax" else a
        soft = 0.9 * whole.to(x.dtype) + 0.1 / V
        logp = x.log_softmax(1)
        own = -logp.gather(1, x.argmax(1, keepdim=True))[:, 0]
        rows = (1 - a) * -(soft * logp).sum(1) + a * own + 0.01 * x.logsumexp(1).square()
        return (rows * weight.to(x.dtype)).sum() / weight.to(x.dtype).sum()

    for scale in SCALES:
        check(backend, ours, plain, [z], scale, rule)


# Chunks of two rows, and all rows at once.
@pytest.mark.parametrize("memory_mib", [2 * V * 2 / 2**20, 64.0], ids=["chunks", "whole"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("kind", ["hard", "dense"])
def test_fused_head(
    backend: str, kind: str, reduction: str, dtype: torch.dtype, memory_mib: float
) -> None:
    hidden, head = normal(N, D, seed=4).to(dtype), normal(V, D, seed=5).to(dtype)
    bias = normal(V, seed=6).to(dtype)
    weak, whole = targets(kind)
    for scale, by in steps(backend, reduction):

        def ours(h: Tensor, w: Tensor, b: Tensor, by: float = by) -> Tensor:
            loss = w2s_fast.linear_cross_entropy(
                h, w, weak, bias=b, reduction=reduction, memory_mib=memory_mib
            )
            return loss if reduction == "mean" else loss.sum() / by

        def plain(h: Tensor, w: Tensor, b: Tensor, by: float = by) -> Tensor:
            return reduced(rows_of(upcast(F.linear(h, w, b)), weak, whole), reduction, by)

        leaves = [hidden, head, bias]
        check(backend, ours, plain, leaves, scale, f"normaliser {by:g}")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("divergence", ["cross_entropy", "reverse_kl"])
def test_teacher_heads(backend: str, divergence: str, reduction: str, dtype: torch.dtype) -> None:
    """The teacher is in fp32, so that its rounding does not count."""
    hidden, head = normal(N, D, seed=4).to(dtype), normal(V, D, seed=5).to(dtype)
    states, own_head = normal(N, D, seed=10), normal(V, D, seed=11)
    log_q = (0.5 * states.double() @ own_head.double().t()).log_softmax(1)
    for scale, by in steps(backend, reduction):

        def ours(h: Tensor, w: Tensor, by: float = by) -> Tensor:
            loss = w2s_fast.linear_cross_entropy(
                h, w, teacher=[(0.5, states, own_head)], divergence=divergence,
                reduction=reduction, memory_mib=4 * V * 4 / 2**20,
            )  # fmt: skip
            return loss if reduction == "mean" else loss.sum() / by

        def plain(h: Tensor, w: Tensor, by: float = by) -> Tensor:
            logp = upcast(F.linear(h, w)).log_softmax(1)
            target = log_q.to(logp.dtype)
            if divergence == "reverse_kl":
                return reduced((logp.exp() * (logp - target)).sum(1), reduction, by)
            return reduced(-(target.exp() * logp).sum(1), reduction, by)

        check(backend, ours, plain, [hidden, head], scale, f"normaliser {by:g}")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_log_probabilities(backend: str, dtype: torch.dtype) -> None:
    z, hidden = (normal(N, V, seed=2) * 3).to(dtype), normal(N, D, seed=4).to(dtype)
    head = normal(V, D, seed=5).to(dtype)
    ids = targets("hard")[0]
    for scale, by in steps(backend):

        def chosen(z: Tensor, by: float = by) -> Tensor:
            return upcast(z).log_softmax(1).gather(1, ids[:, None]).sum() / by

        def dense(z: Tensor, by: float = by) -> Tensor:
            return w2s_fast.topk_logprob(z, ids[:, None])[0].sum() / by

        def linear(h: Tensor, w: Tensor, by: float = by) -> Tensor:
            return w2s_fast.linear_logprob(h, w, ids, memory_mib=2 * V * 2 / 2**20).sum() / by

        check(backend, dense, chosen, [z], scale, "topk_logprob")
        check(
            backend, linear, lambda h, w: chosen(F.linear(h, w)), [hidden, head], scale,
            "linear_logprob",
        )  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_info_nce(backend: str, dtype: torch.dtype) -> None:
    """Embeddings of length 1, as retrieval models give; the queries come in two chunks."""
    queries, documents = (F.normalize(normal(N, 64, seed=s), dim=1).to(dtype) for s in (6, 7))
    own = torch.arange(N)
    for scale, by in steps(backend):

        def plain(q: Tensor, d: Tensor, by: float = by) -> Tensor:
            z = upcast(q @ d.t()) / 0.05
            return F.cross_entropy(z, own, reduction="sum") / by

        def ours(q: Tensor, d: Tensor, by: float = by) -> Tensor:
            return w2s_fast.info_nce(q, d, reduction="sum", memory_mib=3 * N * 4 / 2**20) / by

        check(backend, ours, plain, [queries, documents], scale, f"normaliser {by:g}")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_vocabulary_parallel_head(one_rank: Any, reduction: str, dtype: torch.dtype) -> None:
    hidden, head = normal(N, D, seed=4).to(dtype), normal(V, D, seed=5).to(dtype)
    weak, whole = targets("hard")

    def ours(h: Tensor, w: Tensor) -> Tensor:
        loss = vocab_parallel_cross_entropy(
            h, w, weak, group=one_rank, reduction=reduction, memory_mib=2 * V * 2 / 2**20
        )
        assert isinstance(loss, Tensor)
        return loss.sum()

    def plain(h: Tensor, w: Tensor) -> Tensor:
        return reduced(rows_of(upcast(F.linear(h, w)), weak, whole), reduction, 1.0)

    for scale in (1 / 3, *SCALES):
        check("cpp", ours, plain, [hidden, head], scale, reduction)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", list(DISTILLATIONS))
def test_distillation(name: str, dtype: torch.dtype) -> None:
    """A student's 16-bit logits and the top k of a teacher."""
    z, teacher = (normal(N, V, seed=2) * 3).to(dtype), targets("rest")[0]

    def ours(z: Tensor) -> Tensor:
        return DISTILLATIONS[name]()(z, teacher).loss_sum / 1e4

    def plain(z: Tensor) -> Tensor:
        p = upcast(z).softmax(1)
        p = torch.cat([p.gather(1, teacher.ids), p.scatter(1, teacher.ids, 0.0).sum(1)[:, None]], 1)
        q = torch.cat([teacher.probs, teacher.rest[:, None]], 1).to(p.dtype)
        return DIVERGENCES[name](q, p).sum() / 1e4

    for scale in SCALES:
        check("cpp", ours, plain, [z], scale, name)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_preference(dtype: torch.dtype) -> None:
    first, second = (
        (-normal(64, seed=8).abs() * 20).to(dtype),
        (-normal(64, seed=9).abs()).to(dtype),
    )
    reference = torch.zeros(64)

    def ours(a: Tensor, b: Tensor) -> Tensor:
        return DPO(beta=0.1)(Answers(a, reference), Answers(b, reference)).loss_sum / 1e4

    def plain(a: Tensor, b: Tensor) -> Tensor:
        return -F.logsigmoid(0.1 * (upcast(a) - upcast(b))).sum() / 1e4

    for scale in SCALES:
        check("cpp", ours, plain, [first, second], scale, "DPO")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_policy(dtype: torch.dtype) -> None:
    logp, old = ((-normal(64, seed=i).abs()).to(dtype) for i in (8, 9))
    advantage = normal(64, seed=10)

    def ours(x: Tensor) -> Tensor:
        return PPO()(x, advantage, old=old).loss_sum / 1e4

    def plain(x: Tensor) -> Tensor:
        ratio, a = (upcast(x) - old.to(x.dtype)).exp(), advantage.to(upcast(x).dtype)
        return -torch.minimum(ratio * a, ratio.clamp(0.8, 1.2) * a).sum() / 1e4

    for scale in SCALES:
        check("cpp", ours, plain, [logp], scale, "PPO")


def test_no_op_is_without_a_scale() -> None:
    """What docs/support.md lists has a test of its own in this file, or no gradient."""
    tested = {
        "cross_entropy": test_logits,
        "linear_cross_entropy": test_fused_head,
        "topk_logprob": test_log_probabilities,
        "linear_topk_logprob": test_log_probabilities,
        "distillation": test_distillation,
        "preference": test_preference,
        "policy": test_policy,
        "teacher": test_teacher_heads,
        "info_nce": test_info_nce,
    }
    assert set(tested) | {"quantile"} == set(DRIVERS)


@pytest.mark.parametrize("budget", [2 * V * 2 / 2**20, 64.0], ids=["chunks", "whole"])
def test_a_second_backward_gives_the_same(budget: float) -> None:
    """The first one writes over the logits that a head of one chunk has kept."""
    ids = targets("hard")[0]
    h, w = (normal(n, D, seed=4).half().requires_grad_() for n in (N, V))
    loss = w2s_fast.linear_cross_entropy(h, w, ids, memory_mib=budget) * 2.0**10
    first, second = (torch.autograd.grad(loss, (h, w), retain_graph=True) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-3, atol=1e-5)
