"""What an op promises beside its numbers: definition, autograd, compile, backends, layout."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.dense_calls import LATE, OPEN, sample

import w2s_fast
from w2s_fast.ops import OPS, dispatch, use_backend
from w2s_fast.ops.loss_call import Index, Stat
from w2s_fast.ops.reference import KINDS, cross_entropy_reference
from w2s_fast.ops.weak_loss import weak_loss
from w2s_fast.testing import (
    FORWARD,
    assert_within_budget,
    run_cross_entropy,
)

FP32, BF16, FP16, FP64 = torch.float32, torch.bfloat16, torch.float16, torch.float64


def test_public_function_is_its_docstring(backend: str) -> None:
    g = torch.Generator().manual_seed(0)
    z, weak = torch.randn(9, 2, generator=g), torch.rand(9, 2, generator=g)
    weak /= weak.sum(1, keepdim=True)
    p = z.softmax(1)
    t = torch.quantile(p[:, 0], weak[:, 1].mean())
    own = torch.stack([p[:, 0] >= t, p[:, 0] < t], 1).float()
    expected = torch.nn.functional.cross_entropy(z.double(), (0.7 * weak + 0.3 * own).double())
    with use_backend(backend):
        loss = w2s_fast.cross_entropy(z, weak, aux=0.3)
        plain = w2s_fast.cross_entropy(z, weak)
        fixed, stats = w2s_fast.cross_entropy(z, weak, aux=0.3, threshold=0.8, return_stats=True)
    assert_within_budget(loss, expected, expected.float(), FORWARD)
    truth = torch.nn.functional.cross_entropy(z.double(), weak.double())
    assert_within_budget(plain, truth, truth.float(), FORWARD)
    assert torch.equal(stats.hard_class == 1, p[:, 1] > 0.8)
    assert float(stats.threshold) == pytest.approx(0.2, abs=1e-6)


# The contract of the registered operators: schema, fake kernels, autograd, compilation.
def test_gradcheck() -> None:
    for kind in KINDS:
        call = sample(kind, 4, 5, FP64, smoothing=0.1, **OPEN)
        z, weight, weak = call.pop("logits"), call.pop("weight").double(), call.pop("weak")
        z = torch.where(z.isnan(), torch.randn(4, 5, dtype=FP64), z).requires_grad_()
        weight = weight.clamp_min(0.5).requires_grad_()

        def loss(z: Any, w: Any, r: str, weak: Any = weak, call: Any = call) -> torch.Tensor:
            return weak_loss(z, weak, weight=w, reduction=r, **call).loss

        for reduction in ("mean", "sum", "none"):
            assert torch.autograd.gradcheck(loss, (z, weight, reduction))


@pytest.mark.parametrize("kind", KINDS)
def test_fp64_is_the_definition(kind: str) -> None:
    """The formula (through the plain torch backend) and the independent reference in fp64."""
    call = sample(kind, 6, 17, FP64, smoothing=0.1, focal_gamma=1.5, reduction="mean", **LATE)
    expected = cross_entropy_reference(**call)
    assert float(weak_loss(**call).loss) == pytest.approx(float(expected), rel=1e-13)


# Sparse labels without a residual are the residual's schema with one None more.
@pytest.mark.parametrize("kind", ["hard", "dense", "rest"])
def test_opcheck(backend: str, kind: str) -> None:
    from w2s_fast.ops.targets import make_inputs

    call = sample(kind, 5, 7)
    p = make_inputs(call["logits"].nan_to_num(0.5), call["weak"], call["weight"])
    z = p.logits.clone().requires_grad_()
    aux = torch.tensor(0.3)
    head = (z, p.ids, p.probs, p.rest, p.weight)
    with use_backend(backend):
        torch.library.opcheck(
            torch.ops.w2s_fast.weak_ce, (*head, aux, None, "argmax", -100, 0.1, 1.0, 0.9, 4.0, 0.1)
        )
        _, stats, index, _ = torch.ops.w2s_fast.weak_ce(
            *head, aux, None, "argmax", -100, 0.1, 1.0, 0.9, 4.0, 0.1
        )
        up = torch.ones(()).expand(5)
        torch.library.opcheck(
            torch.ops.w2s_fast.weak_ce_backward,
            (up, z.detach(), *head[1:], stats, index, -100, 0.1, 1.0, 0.9, 4.0, 0.1),
        )


@pytest.mark.parametrize("kind", ["hard", "dense", "rest"])
def test_compile_fullgraph(backend: str, kind: str) -> None:
    for v, rule in ((17, "median"), (2, "prior")):
        call = sample(kind, 4, v, rule=rule, reduction="mean")
        eager = run_cross_entropy(backend, call)
        z = call.pop("logits").clone().requires_grad_()

        @torch.compile(fullgraph=True, backend="aot_eager")
        def step(z: torch.Tensor, call: Any = call) -> torch.Tensor:
            return weak_loss(z * 1.0, **call).loss

        with use_backend(backend):
            loss = step(z)
            loss.backward()
        assert_within_budget(loss, eager[0].loss.double(), eager[0].loss, FORWARD)
        assert_within_budget(z.grad, eager[1].double(), eager[1], FORWARD)
        torch.compiler.reset()


@pytest.mark.slow
def test_compile_with_inductor() -> None:
    call = sample("hard", 6, 17, reduction="mean", **LATE)
    call["logits"] = call["logits"].nan_to_num(0.0)
    _, grad, _ = run_cross_entropy("ref", call)
    z = call.pop("logits").clone().requires_grad_()
    step = torch.compile(lambda z: weak_loss(z * 1.0, **call).loss, fullgraph=True)
    with use_backend("ref"):
        step(z).backward()
    assert_within_budget(z.grad, grad.double(), grad, FORWARD)


# Choosing a backend, and what every entry of the table must offer.
def test_forced_backend_that_is_missing_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "missing", lambda name: "no compiler" if name == "cpp" else "")
    with pytest.raises(w2s_fast.W2SError, match="requested but is missing"), use_backend("cpp"):
        pass
    monkeypatch.setattr(dispatch, "_resolved", {})
    monkeypatch.setattr(dispatch, "_resolved", {})
    monkeypatch.setattr(dispatch, "_forced", "cpp")  # as W2S_BACKEND does
    with pytest.raises(w2s_fast.W2SError, match="missing"):
        w2s_fast.cross_entropy(torch.zeros(2, 3), torch.tensor([0, 1]))
    with pytest.raises(w2s_fast.W2SError, match="did you mean 'triton'"), use_backend("tritn"):
        pass


def test_automatic_fallback_warns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "missing", lambda name: "no compiler" if name == "cpp" else "")
    monkeypatch.setattr(dispatch, "_forced", None)
    monkeypatch.setattr(dispatch, "_resolved", {})
    monkeypatch.setattr(dispatch, "_resolved", {})
    with pytest.warns(UserWarning, match="'cpp' is missing"):
        w2s_fast.cross_entropy(torch.zeros(2, 3), torch.tensor([0, 1]))


def test_every_op_has_samples_and_a_cost() -> None:
    for name, op in OPS.items():
        assert op.name == name
        assert set(dispatch.MODULES[name]) == set(dispatch.BACKENDS)
        cost = op.cost(128, 1000, BF16)
        assert cost.bytes > 0 and cost.flops > 0
        for seed in range(4):
            assert op.sample(9, 17, BF16, "cpu", seed)


def test_records_have_one_layout() -> None:
    pytest.importorskip("triton", reason="backend triton is missing")
    from w2s_fast.kernels import _row_math

    for row in (*Stat, *Index):
        assert getattr(_row_math, row.name).value == row.value
