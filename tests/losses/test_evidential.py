"""The evidential loss: against the Dirichlets of torch, by hand, and at its limits."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.loss_cases import case, evidential_by_hand
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.losses import make_loss
from w2s_fast.losses.evidential import Evidential


def value(spec: str, z: Tensor, weak: Tensor, frac: float = 0.5) -> float:
    return float(make_loss(spec)(z, weak, step_frac=frac).loss_sum)


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize(("kl", "aux"), [(1.0, 0.0), (0.3, 0.5), (0.0, 1.0)])
def test_it_is_the_likelihood_and_divergence_of_dirichlets(
    classes: int, kl: float, aux: float
) -> None:
    logits, weak = case(17, classes, seed=1)
    loss = Evidential(kl=kl, aux_coef=aux)
    z = logits.clone().requires_grad_()
    total = loss(z, weak, step_frac=0.6).loss_sum
    total.backward()
    rows, grad = evidential_by_hand(logits, weak, 0.6, kl, aux)
    assert abs(total.detach() - rows.sum()) < 1e-10
    assert z.grad is not None and (z.grad - grad).abs().max() < 1e-10


def test_two_classes_by_hand() -> None:
    """Evidence 1 and 3, label 0: a = (2, 4); wrong evidence 3 alone is Dir(1, 4)."""
    z = torch.tensor([[0.0, math.log(3.0)]], dtype=torch.float64)
    weak = torch.tensor([0])
    # KL(Beta(4, 1) || uniform) = log 4 + 3 (psi(4) - psi(5)) = log 4 - 3/4
    expected = math.log(6 / 2) + 0.5 * (math.log(4) - 0.75)
    assert value("evidential:aux_coef=0", z, weak) == pytest.approx(expected, abs=1e-12)
    own = math.log(6 / 4) + 0.5 * (math.log(2) - 0.5)  # its own class, 1: evidence 1 for class 0
    half = value("evidential:aux_coef=0.5,warmup_frac=0", z, weak)
    assert half == pytest.approx((expected + own) / 2, abs=1e-12)


def test_schedules() -> None:
    loss = Evidential(aux_coef=0.6, warmup_frac=0.3)
    assert [loss.coefficient(f) for f in (0, 0.15, 0.3, 0.9)] == pytest.approx([0, 0.3, 0.6, 0.6])
    assert Evidential(warmup_frac=0.0).coefficient(0.0) == 0.5
    z, weak = case(6, 3, seed=2)
    first = value("evidential:aux_coef=0", z, weak, 0.0)
    plain = value("evidential:aux_coef=0,kl=0", z, weak, 0.9)
    assert first == pytest.approx(plain, abs=1e-12), "the divergence begins at 0"


def test_labels_of_several_weak_models_are_their_mean() -> None:
    z, one = case(8, 4, seed=3)
    _, two = case(8, 4, seed=4)
    spec = "evidential:aux_coef=0"
    mean = (value(spec, z, one) + value(spec, z, two)) / 2
    assert value(spec, z, (one + two) / 2) == pytest.approx(mean, abs=1e-10)


def test_disputed_labels_leave_little_evidence() -> None:
    """The minimum over logits: certain labels gather evidence, even ones are drawn to the prior."""
    evidence = []
    for weak in ([[0.99, 0.01]], [[0.5, 0.5]]):
        z = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.Adam([z], lr=0.05)
        for _ in range(800):
            optimizer.zero_grad()
            loss = Evidential(aux_coef=0.0)(z, torch.tensor(weak).double(), step_frac=0.99)
            loss.loss_sum.backward()
            optimizer.step()
        evidence.append(float(z.detach().exp().sum()))
        assert z.detach().softmax(1)[0, 0] == pytest.approx(weak[0][0], abs=0.08)
    assert evidence[0] > 5 * evidence[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_logits_stay_finite(dtype: torch.dtype) -> None:
    z = torch.tensor([[80.0, -80.0, 3.0], [-200.0, -200.0, -200.0], [18.0, 19.0, 30.0]]).to(dtype)
    z.requires_grad_()
    out = make_loss("evidential")(z, torch.tensor([1, 0, 2]), step_frac=0.9)
    out.loss_sum.backward()
    assert out.loss_sum.dtype == torch.float32 and out.loss_sum.isfinite()
    assert z.grad is not None and z.grad.isfinite().all()
    assert z.grad[0, 0] > 0, "wrong evidence beyond the bound of the divergence still shrinks"


def test_much_evidence_is_exact_in_fp32_and_more_is_finite() -> None:
    z = torch.tensor([[12.0, 12.5, 11.0]])
    exact = value("evidential", z.double(), torch.tensor([0]))
    assert value("evidential", z, torch.tensor([0])) == pytest.approx(exact, rel=1e-6)
    huge = torch.tensor([[2000.0, 0.0]], requires_grad=True)
    out = make_loss("evidential")(huge, torch.tensor([1]), step_frac=0.9)
    out.loss_sum.backward()
    assert out.loss_sum.isfinite() and huge.grad is not None and huge.grad.isfinite().all()


@pytest.mark.parametrize("spec", ["kl=-1", "aux_coef=1.5", "warmup_frac=2"])
def test_bad_fields(spec: str) -> None:
    with pytest.raises(W2SError, match=f"Evidential: {spec.split('=')[0]} is"):
        make_loss(f"evidential:{spec}")
