"""Anderson acceleration: the fixed points of the plain iteration, in fewer steps."""

from __future__ import annotations

import pytest
import torch
from helpers.planted_votes import planted

from w2s_fast.label_models import MeTaL
from w2s_fast.label_models.fixed_point import fixed_point


def test_linear_map_in_as_many_steps_as_it_has_factors() -> None:
    """With a history as long as the number of eigenvalues, it is GMRES and ends exactly."""
    factors = torch.tensor([0.99, -0.9, 0.5]).double()
    target = torch.tensor([3.0, -1.0, 2.0]).double()
    x, n = fixed_point(lambda x: target + factors * (x - target), torch.zeros(3).double(), 1e-9, 99)
    torch.testing.assert_close(x, target, atol=1e-7, rtol=0)
    assert n <= 6  # the plain iteration takes about 2000


def test_shape_is_kept_and_steps_are_limited() -> None:
    x, n = fixed_point(lambda x: 0.9 * x + 1, torch.zeros(2, 3).double(), 0.0, 7)
    assert x.shape == (2, 3) and n <= 7
    plain, n = fixed_point(lambda x: 0.9 * x + 1, torch.zeros(2, 3).double(), 1e9, 7)
    assert n == 1 and plain.tolist() == [[1.0] * 3] * 2


def test_a_step_that_grows_starts_without_history() -> None:
    """Newton's method far from the root: the residual rises before it falls."""
    x, n = fixed_point(lambda x: x.cos(), torch.tensor([40.0]).double(), 1e-12, 100)
    assert float(x) == pytest.approx(0.7390851332151607, abs=1e-10)
    assert n < 60


@pytest.mark.parametrize("prior", [[0.3, 0.7], [0.4, 0.3, 0.2, 0.1]])
def test_metal_solves_its_equations(prior: list[float]) -> None:
    votes = planted(4000, 10, prior).votes
    coarse = MeTaL(len(prior), class_balance=prior).fit(votes)
    fine = MeTaL(len(prior), class_balance=prior, tolerance=1e-12).fit(votes)
    assert coarse.n_iter < fine.n_iter < 60
    torch.testing.assert_close(coarse.rates, fine.rates, atol=1e-5, rtol=0)
