"""Divergences from sparse and dense teachers against their definitions in fp64."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.distillation_cases import BETA, FLOOR, ORACLES, make, outcomes
from torch import Tensor

import w2s_fast
from w2s_fast.errors import W2SError
from w2s_fast.losses.distillation import (
    DISTILLATIONS,
    JSD,
    ForwardKL,
    ReverseKL,
    make_distillation,
)
from w2s_fast.ops import use_backend
from w2s_fast.ops.pack_topk import pack_topk
from w2s_fast.ops.targets import SparseTargets
from w2s_fast.testing import BACKWARD, FORWARD, assert_within_budget

FP32, BF16, FP16, FP64 = torch.float32, torch.bfloat16, torch.float16, torch.float64


def student(n: int, v: int, seed: int) -> Tensor:
    return 2 * torch.randn(n, v, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [FP32, BF16, FP16], ids=str)
@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("name", DISTILLATIONS)
def test_value_and_gradient(
    backend: str, name: str, temperature: float, dtype: torch.dtype
) -> None:
    n, v, k = 6, 29, 5
    teacher = pack_topk(student(n, v, 0), k, temperature=temperature)
    weight = torch.tensor([1.0, 0.5, 0.0, 2.0, 1.0, 0.3])
    logits = student(n, v, 1).to(dtype)
    loss = make(name, temperature=temperature, rescale=True)
    results = []
    for kind in (None, FP64, FP32):
        z = logits.to(dtype if kind is None else kind).requires_grad_()
        if kind is None:
            with use_backend(backend):
                out = loss(z, teacher, weight=weight)
                total = out.loss_sum
                results.append((total, *torch.autograd.grad(total, z)))
            continue
        rows = ORACLES[name](*outcomes(z, teacher, temperature))
        total = (rows * weight.to(kind)).sum() * temperature**2
        results.append((total, *torch.autograd.grad(total, z)))
    ours, truth, eager = results
    assert_within_budget(ours[0], truth[0], eager[0], FORWARD, "loss")
    assert_within_budget(ours[1], truth[1], eager[1].to(dtype), BACKWARD, "gradient")
    assert bool((ours[1][2] == 0).all())
    assert float(out.count) == pytest.approx(4.8)
    assert float(out.metrics["rows"]) == 5
    top = (logits.argmax(1) == teacher.ids[:, 0]) & (weight != 0)
    assert float(out.metrics["agreement"]) == float(top.sum())


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("name", DISTILLATIONS)
def test_from_hidden_states(name: str, temperature: float) -> None:
    """(hidden, head) and positions: the same value and gradients as from full logits."""
    b, t, d, v = 2, 4, 8, 31
    g = torch.Generator().manual_seed(2)
    hidden = torch.randn(b, t, d, generator=g, dtype=FP64)
    head = torch.randn(v, d, generator=g, dtype=FP64)
    bias = torch.randn(v, generator=g, dtype=FP64)
    positions = torch.tensor([6, 0, 3])
    teacher = pack_topk(student(3, v, 3), 4)
    loss = make(name, temperature=temperature)
    results = []
    for dtype in (FP32, FP64):
        h, w, c = (x.to(dtype).requires_grad_() for x in (hidden, head, bias))
        if dtype == FP32:
            budget = 2 * v * 4 / 2**20  # two rows a chunk
            out = loss.linear(h, w, teacher, bias=c, positions=positions, memory_mib=budget)
            total = out.loss_sum
        z = torch.nn.functional.linear(h.flatten(0, 1)[positions], w, c)
        eager = ORACLES[name](*outcomes(z, teacher, temperature)).sum()
        if dtype == FP32:
            results.append((total, *torch.autograd.grad(total, (h, w, c))))
        results.append((eager, *torch.autograd.grad(eager, (h, w, c))))
    for what, ours, base, truth in zip(("loss", "hidden", "head", "bias"), *results, strict=True):
        assert_within_budget(ours, truth, base, FORWARD if what == "loss" else BACKWARD, what)


@pytest.mark.parametrize("name", DISTILLATIONS)
def test_softcap(name: str) -> None:
    teacher = pack_topk(student(4, 11, 4), 3)
    z = student(4, 11, 5).double().requires_grad_()
    ours = make(name, temperature=2.0)(z, teacher, softcap=3.0).loss_sum
    oracle = ORACLES[name](*outcomes(3 * torch.tanh(z / 3), teacher, 2.0)).sum()
    assert float(ours.detach()) == pytest.approx(float(oracle.detach()), rel=1e-6)
    a, b = torch.autograd.grad(ours, z)[0], torch.autograd.grad(oracle, z)[0]
    assert_within_budget(a.float(), b, b.float(), BACKWARD)


def test_dense_teachers(backend: str) -> None:
    q = student(5, 13, 6).softmax(1)
    q[0] = torch.nn.functional.one_hot(torch.tensor(3), 13)  # zeros everywhere else
    logits = student(5, 13, 7)
    results = []
    for dtype in (None, FP64, FP32):
        z = logits.to(FP32 if dtype is None else dtype).requires_grad_()
        if dtype is None:
            with use_backend(backend):
                total = ForwardKL(temperature=2.0)(z, q).loss_sum
                results.append((total, *torch.autograd.grad(total, z)))
            continue
        log_p = (z / 2.0).log_softmax(1)
        total = torch.nn.functional.kl_div(log_p, q.to(dtype), reduction="sum")
        results.append((total, *torch.autograd.grad(total, z)))
    assert_within_budget(results[0][0], results[1][0], results[2][0], FORWARD)
    assert_within_budget(results[0][1], results[1][1], results[2][1], BACKWARD)
    head = torch.eye(13)
    linear = ForwardKL(temperature=2.0).linear(logits, head, q)
    assert_within_budget(linear.loss_sum, results[1][0], results[2][0], FORWARD)
    with pytest.raises(W2SError, match="pack_topk"):
        JSD()(logits, q)
    with pytest.raises(W2SError, match="dtype torch.int64"):
        ForwardKL()(logits, torch.zeros(5, dtype=torch.int64))


# Everything that is 0 or -inf somewhere: teacher mass, residual, student probability, padding.
@pytest.mark.parametrize("name", DISTILLATIONS)
def test_impossible_outcomes_are_never_nan(backend: str, name: str) -> None:
    z = student(6, 9, 8)
    z[0, 0] = 400.0  # certain and right; p of everything else underflows
    z[1, 4] = 400.0  # certain and, for the listed classes, wrong
    z[2, 2:] = -math.inf  # masked vocabulary: nothing but the listed classes is left
    ids = torch.tensor([[0, 1], [0, 1], [0, 1], [3, -1], [2, 1], [-1, -1]])
    probs = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.4, 0.6], [0.7, math.nan], [0.5, 0.5], [9, 9]])
    rest = torch.tensor([0.0, 0.0, 0.0, 0.3, 0.0, 1.0])
    for residual in (rest, None):
        leaf = z.clone().requires_grad_()
        with use_backend(backend):
            out = make(name)(leaf, SparseTargets(ids, probs, residual))
            (grad,) = torch.autograd.grad(out.loss_sum, leaf)
        assert bool(out.loss_sum.isfinite()), name
        assert bool(grad.isfinite().all()), name
        assert all(bool(m.isfinite()) for m in out.metrics.values())


def test_padding_is_as_if_it_were_not_there() -> None:
    z, teacher = student(4, 11, 20), pack_topk(student(4, 11, 21), 3)
    holes = SparseTargets(
        torch.cat([torch.full((4, 1), -1), teacher.ids], 1),
        torch.cat([torch.full((4, 1), math.nan), teacher.probs], 1),
        teacher.rest,
    )
    for name in DISTILLATIONS:
        full, padded = make(name)(z, teacher), make(name)(z, holes)
        assert float(padded.loss_sum) == pytest.approx(float(full.loss_sum), rel=1e-6), name
        assert padded.metrics["agreement"] == full.metrics["agreement"]


def test_what_the_teacher_rules_out_costs_the_floor() -> None:
    z = torch.tensor([[0.0, 0.0]], dtype=FP64)
    teacher = SparseTargets(torch.tensor([[0]]), torch.tensor([[1.0]]), torch.tensor([0.0]))
    p = 0.5
    expected = p * math.log(p) + p * (math.log(p) - math.log(FLOOR))
    assert float(ReverseKL()(z, teacher).loss_sum) == pytest.approx(expected)
    # JSD needs none: it is bounded.
    value = float(JSD(beta=BETA)(z, teacher).loss_sum)
    mixed = BETA + (1 - BETA) * p
    expected = BETA * -math.log(mixed)
    expected += (1 - BETA) * (p * math.log(p / mixed) + p * math.log(1 / (1 - BETA)))
    assert value == pytest.approx(expected)


def test_equal_distributions_cost_nothing() -> None:
    z = student(4, 17, 9)
    teacher = pack_topk(z, 6, temperature=3.0)
    for name in DISTILLATIONS:
        leaf = z.clone().requires_grad_()
        out = make(name, temperature=3.0)(leaf, teacher)
        (grad,) = torch.autograd.grad(out.loss_sum, leaf)
        assert abs(float(out.loss_sum.detach())) < 1e-5 and float(grad.abs().max()) < 1e-6


def test_limits_of_the_mixture() -> None:
    """JSD / beta tends to KL(q || p), JSD / (1 - beta) to KL(p || q)."""
    z = student(4, 17, 10).double()
    teacher = pack_topk(student(4, 17, 11).double(), 6)
    for beta, other in ((1e-7, ForwardKL()), (1 - 1e-7, ReverseKL())):
        value = float(JSD(beta=beta)(z, teacher).loss_sum) / min(beta, 1 - beta)
        assert value == pytest.approx(float(other(z, teacher).loss_sum), rel=1e-5)


def test_parts_add_up() -> None:
    z, teacher = student(6, 9, 12), pack_topk(student(6, 9, 13), 3)
    weight = torch.rand(6, generator=torch.Generator().manual_seed(0))
    for name in DISTILLATIONS:
        loss = make(name)
        whole = loss(z, teacher, weight=weight)
        parts = []
        for at in (slice(0, 2), slice(2, 6)):
            few = SparseTargets(*(x[at] for x in teacher))
            parts.append(loss(z[at], few, weight=weight[at]))
        assert float(whole.loss_sum) == pytest.approx(sum(float(p.loss_sum) for p in parts))
        assert float(whole.count) == pytest.approx(sum(float(p.count) for p in parts))


@pytest.mark.parametrize("dtype", [FP32, BF16, FP64], ids=str)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_pack(dtype: torch.dtype, temperature: float) -> None:
    n, v, k = 7, 33, 4
    z = student(n, v, 14).to(dtype)
    z[0, 5] = 60.0  # sure: 1 - sum of the listed would be 0
    packed = pack_topk(z, k, temperature=temperature, memory_mib=2 * v * 8 / 2**20)
    p = (z.double() / temperature).softmax(1)
    assert torch.equal(packed.ids, z.topk(k, 1).indices)
    base = (z.float() / temperature).softmax(1)
    inside, rough = p.gather(1, packed.ids), base.gather(1, packed.ids)
    assert_within_budget(packed.probs, inside, rough.to(packed.probs.dtype), FORWARD)
    rest = p.scatter(1, packed.ids, 0.0).sum(1)
    assert float(packed.rest[0]) == pytest.approx(float(rest[0]), rel=1e-4) and rest[0] > 0
    assert_within_budget(packed.rest, rest, base.scatter(1, packed.ids, 0.0).sum(1), FORWARD)
    again = pack_topk(p, k, probs=True, ids_dtype=torch.int32)
    assert again.ids.dtype == torch.int32 and again.probs.dtype == FP64
    assert torch.allclose(again.rest, rest, rtol=1e-12)


def test_pack_probabilities_with_a_temperature_and_every_class() -> None:
    p = student(3, 5, 15).softmax(1).double()
    packed = pack_topk(p, 5, probs=True, temperature=2.0)
    powered = p.sqrt() / p.sqrt().sum(1, keepdim=True)
    assert torch.allclose(packed.probs, powered.gather(1, packed.ids))
    assert bool((packed.rest == 0).all())
    loose = pack_topk(p * 0.5, 2, probs=True)  # kept as they are, not normalised
    assert torch.allclose(loose.probs.sum(1) + loose.rest, torch.full((3,), 0.5, dtype=FP64))


def test_packed_teachers_train_a_student() -> None:
    z, teacher = student(8, 21, 16), pack_topk(student(8, 21, 17), 5)
    for name in DISTILLATIONS:
        leaf = z.clone().requires_grad_()
        before = after = math.inf
        for step in range(60):
            out = make(name)(leaf, teacher)
            (grad,) = torch.autograd.grad(out.loss_sum, leaf)
            leaf = (leaf - (4.0 if name == "jsd" else 0.5) * grad).detach().requires_grad_()
            after = float(out.loss_sum.detach())
            before = after if step == 0 else before
        assert after < 0.5 * before, name


def test_bad_input_is_named() -> None:
    z, teacher = student(4, 9, 18), pack_topk(student(4, 9, 19), 3)
    for call, words in (
        (lambda: JSD(beta=0.0), r"JSD: beta is 0.0; expected a number in \(0, 1\)"),
        (lambda: JSD(temperature=0.0), "temperature is 0.0"),
        (lambda: ReverseKL(floor=0.0), "floor is 0.0"),
        (lambda: JSD()(z, teacher._replace(rest=teacher.rest[:2])), "SparseTargets.rest has shape"),
        (lambda: JSD()(z, teacher._replace(probs=teacher.probs[:, :2])), "SparseTargets.probs has"),
        (lambda: JSD()(z, teacher, weight=torch.ones(3)), r"weight has shape \(3,\)"),
        (lambda: ForwardKL()(z, teacher, weight=torch.ones(3)), "weight"),
        (lambda: JSD()(z[:3], teacher), "ids have shape"),
        (lambda: pack_topk(z, 10), "k is 10; expected 1..9"),
        (lambda: pack_topk(z, 2, probs=True), "among its probabilities"),
        (lambda: pack_topk(z, 2, ids_dtype=torch.int16), "ids_dtype is torch.int16"),
        (lambda: pack_topk(z[0], 2), r"logits have shape \(9,\)"),
    ):
        with pytest.raises(w2s_fast.W2SError, match=words):
            call()


def test_specs() -> None:
    assert make_distillation("jsd:beta=0.1,temperature=2") == JSD(beta=0.1, temperature=2.0)
    assert make_distillation("forward_kl:rescale=true") == ForwardKL(rescale=True)
    with pytest.raises(W2SError, match="unknown divergence 'jds'.*did you mean 'jsd'"):
        make_distillation("jds")
