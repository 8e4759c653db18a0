"""Classes without probability: no NaN from a product or a division by 0."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from w2s_fast import SparseTargets, cross_entropy
from w2s_fast.ops import use_backend
from w2s_fast.ops.weak_loss import weak_loss


@pytest.fixture
def backend(backend: str) -> Iterator[str]:
    with use_backend(backend):
        yield backend


def test_zero_probability_of_an_impossible_class(backend: str) -> None:
    """0 * log 0 is 0: a masked vocabulary with no weak mass costs nothing and spreads no NaN."""
    z = torch.tensor([[0.5, -torch.inf, 1.0], [0.1, 0.2, -torch.inf]], requires_grad=True)
    for weak in (
        torch.tensor([[0.4, 0.0, 0.6], [0.5, 0.5, 0.0]]),
        SparseTargets(torch.tensor([[0, 1], [1, 2]]), torch.tensor([[0.9, 0.0], [1.0, 0.0]])),
        torch.tensor([2, 0]),
    ):
        z.grad = None
        loss = weak_loss(z, weak, aux=0.5, rule="median").loss
        loss.backward()
        assert bool(loss.isfinite()) and bool(z.grad.isfinite().all())
        assert float(z.grad[0, 1]) == 0.0 and float(z.grad[1, 2]) == 0.0


def test_residual_without_mass_on_a_row_where_all_else_is_masked(backend: str) -> None:
    z = torch.tensor([[0.5, 1.0, -torch.inf, -torch.inf], [0.0, 1.0, 2.0, 3.0]]).requires_grad_()
    weak = SparseTargets(
        torch.tensor([[0, 1], [0, 1]]),
        torch.tensor([[0.5, 0.5], [0.3, 0.3]]),
        torch.tensor([0.0, 0.4]),
    )
    loss = weak_loss(z, weak).loss
    loss.backward()
    assert bool(loss.isfinite()) and bool(z.grad.isfinite().all())


def test_underflowed_class_is_no_division_by_zero(backend: str) -> None:
    """One-hot weak labels on a class whose probability underflows: a large loss, not NaN."""
    z = torch.tensor([[200.0, 0.0], [0.0, 200.0]], requires_grad=True)
    loss = cross_entropy(z, torch.tensor([[0.0, 1.0], [1.0, 0.0]]), aux=0.5)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(100.0)
    assert bool(z.grad.isfinite().all())
