"""Weights of a mean whose sum overflows are an error: divided by it, the loss would be 0."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers.loss_cases import policy_loss
from torch import Tensor

import w2s_fast
from w2s_fast import W2SError, pack_topk
from w2s_fast.losses.distillation import DISTILLATIONS, make_distillation
from w2s_fast.losses.policy import POLICY_LOSSES
from w2s_fast.losses.preference import PREFERENCES, Answers, make_preference

N = 4


def _answers(shift: float) -> Answers:
    """Log-probabilities of one answer to every prompt, under the student and a reference."""
    logp = torch.linspace(-3, -2, N) + shift
    return Answers(logp, logp - 0.1, torch.full((N,), 5), logp - 0.2)


def _weights_of_a_mean() -> dict[str, Callable[[Tensor], Tensor]]:
    g = torch.Generator().manual_seed(5)
    two, three, hidden = (torch.randn(N, c, generator=g) for c in (2, 3, 4))
    head, labels = torch.randn(3, 4, generator=g), torch.tensor([0, 1, 1, 0])
    calls: dict[str, Callable[[Tensor], Tensor]] = {
        f"{tuple(z.shape)} {kind} {aux} {needs}": (
            lambda w, z=z, kind=kind, aux=aux, needs=needs: w2s_fast.cross_entropy(
                z.clone().requires_grad_(needs),
                labels if kind == "hard" else z.softmax(1),
                weight=w, aux=aux,
            )
        )
        for z in (two, three)
        for kind in ("hard", "dense")
        for aux in (0.0, 0.5)
        for needs in (False, True)
    }  # fmt: skip
    for needs in (False, True):
        calls[f"linear {needs}"] = lambda w, n=needs: w2s_fast.linear_cross_entropy(
            hidden.clone().requires_grad_(n), head, labels, weight=w
        )
        calls[f"info_nce {needs}"] = lambda w, n=needs: w2s_fast.info_nce(
            hidden.clone().requires_grad_(n), head, positives=labels, weight=w
        )
    for spec in DISTILLATIONS:
        calls[spec] = lambda w, spec=spec: (
            make_distillation(spec)(three, pack_topk(hidden[:, :3], 2), weight=w).loss_sum
        )
    for name in PREFERENCES:
        loss = make_preference(name)
        more = {"baseline": 0.0} if name == "kto" else {}
        calls[f"preference {name}"] = lambda w, loss=loss, more=more: (
            loss(_answers(0.0), _answers(-0.5), weight=w, **more).loss_sum
        )
    for name in POLICY_LOSSES:
        calls[name] = lambda w, name=name: (
            policy_loss(name)(-three.exp(), torch.ones(N), old=-three.exp(), weight=w).loss_sum
        )
    return calls


MEANS = _weights_of_a_mean()


@pytest.mark.parametrize("name", MEANS)
def test_a_mean_by_weights_whose_sum_overflows(name: str) -> None:
    with pytest.raises(W2SError, match="weight sums to inf in float32; expected a finite sum"):
        MEANS[name](torch.full((N,), 3e38))
    assert MEANS[name](torch.tensor([1e30, 0, 0, 0])).isfinite()


def test_a_mean_by_weights_whose_sum_overflows_under_a_transform() -> None:
    def loss(z: Tensor) -> Tensor:
        return w2s_fast.cross_entropy(z, torch.tensor([0, 1, 1, 0]), weight=torch.full((N,), 3e38))

    for call, z in (
        (torch.func.grad(loss), torch.zeros(N, 3)),
        (torch.func.vmap(loss), torch.zeros(2, N, 3)),
    ):
        with pytest.raises(W2SError, match="weight sums to inf"):
            call(z)


@pytest.mark.parametrize("c", [2, 3])
@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_a_sum_does_not_divide_by_the_weights(c: int, reduction: str) -> None:
    """Of rows that are sure and right, so that the losses are 0 and the weights may be any."""
    z = (40 * torch.eye(c)).repeat(2, 1)[:N]
    labels = z.argmax(1)
    for weak in (labels, torch.eye(c)[labels]):
        for needs in (False, True):
            loss = w2s_fast.cross_entropy(
                z.clone().requires_grad_(needs), weak, weight=torch.full((N,), 3e38),
                reduction=reduction,
            )  # fmt: skip
            assert not loss.isnan().any()
