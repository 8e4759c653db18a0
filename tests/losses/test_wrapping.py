"""Losses around another loss: every hook is that of the loss inside, on the logits it reads."""

from __future__ import annotations

import pytest
import torch
from helpers.loss_cases import case
from torch import Tensor

from w2s_fast.losses import Loss, make_loss
from w2s_fast.losses.conflict import ExplicitConflict
from w2s_fast.losses.pairwise import ImplicitReward
from w2s_fast.losses.preference import DPO

N = 9
INSIDE = make_loss("logconf_eleuther:window=12,aux_coef=0.75,warmup_steps=40")


def wrapped(kind: str) -> tuple[Loss, Tensor, Tensor]:
    """Return a loss around ``INSIDE``, its logits, and those of ``INSIDE``."""
    if kind == "explicit":
        z = case(N, 2, 0)[0]
        return ExplicitConflict(loss=INSIDE), z, z
    answers = torch.randn(N, 2, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    pair: Loss = ImplicitReward(loss=INSIDE, preference=DPO(beta=0.3))
    loss = ExplicitConflict(loss=pair) if kind == "both" else pair
    return loss, answers, 0.3 * (answers[..., 0] - answers[..., 1])


def equal(got: Tensor | None, expected: Tensor | None) -> bool:
    assert got is not None and expected is not None
    return torch.allclose(got, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("kind", ["explicit", "implicit", "both"])
def test_every_hook_is_that_of_the_loss_inside(kind: str) -> None:
    loss, logits, inner = wrapped(kind)
    weak = case(N, 2, 2)[1]
    weight = torch.rand(N, generator=torch.Generator().manual_seed(3)) + (torch.arange(N) % 3 > 0)
    weight[4] = 0.0
    state = INSIDE.init_state()
    assert state is not None and equal(loss.init_state(), state) and len(state) == 12
    state[3:] = torch.linspace(-2, 2, 9)
    assert [loss.coefficient(0.5, step) for step in (10, 400)] == [0.1875, 0.75]
    assert loss.coefficient(0.01) == INSIDE.coefficient(0.01) != loss.coefficient(0.01, 0)
    assert [loss.batch_rule(n) for n in (2, 3)] == ["prior", INSIDE.batch_rule(3)]
    assert equal(loss.count(weak, weight), weight.sum()) and loss.count(weak) == N
    for name in ("threshold", "advance"):
        ours, theirs = getattr(loss, name), getattr(INSIDE, name)
        full = {"weight": weight, "state": state}
        assert equal(ours(logits, weak, **full), theirs(inner, weak, **full)), name
        for left_out in full:  # each argument counts
            some = {k: v for k, v in full.items() if k != left_out}
            assert equal(ours(logits, weak, **some), theirs(inner, weak, **some)), name
            assert not equal(ours(logits, weak, **some), ours(logits, weak, **full)), name
