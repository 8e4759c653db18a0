"""Confidence losses: released code, schedules, hard classes, the ring of past predictions."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from helpers.loss_cases import case, differentiate, quantile_of
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.losses import LossOut, make_loss
from w2s_fast.losses.logconf import LogConfEleuther
from w2s_fast.ops.weak_loss import weak_loss
from w2s_fast.testing import BACKWARD, FORWARD, assert_within_budget


def _mean(out: LossOut) -> Tensor:
    return out.loss_sum / out.count


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("step", [0, 3, 10, 11, 40])
def test_logconf_openai_equals_released_code(served: None, seed: int, step: int) -> None:
    """Written again from openai/weak-to-strong ``loss.py`` [32, 2]: it is the eager baseline."""
    logits, weak = case(32, 2, seed, torch.float32)
    step_frac, coef = step / 100, 0.5 * (1.0 if step / 100 > 0.1 else step / 100)
    preds = logits.softmax(-1)
    threshold = torch.quantile(preds[:, 0], weak.mean(0)[1])
    strong = torch.cat([(preds[:, 0] >= threshold)[:, None], (preds[:, 0] < threshold)[:, None]], 1)
    released, truth = (
        differentiate(
            lambda z: F.cross_entropy(z, (weak * (1 - coef) + strong.float() * coef).to(z.dtype)),
            logits.to(dtype),
        )
        for dtype in (torch.float32, torch.float64)
    )
    loss = make_loss("logconf_openai")
    ours = differentiate(lambda z: _mean(loss(z, weak, step_frac=step_frac)), logits)
    assert_within_budget(ours[0], truth[0], released[0], FORWARD, "loss")
    assert_within_budget(ours[1], truth[1], released[1], BACKWARD, "gradient")


def _released_first(logits: Tensor, weak: Tensor) -> Tensor:
    """Return (n,) bool: rows that openai/weak-to-strong hardens to class 0."""
    p0 = logits.float().softmax(-1)[:, 0]
    return p0 >= torch.quantile(p0, weak.float().mean(0)[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logconf_openai_ties_where_probabilities_saturate(dtype: torch.dtype) -> None:
    """Margins of 17 to 80 all are 1.0 in fp32; the quantile of margins would divide them."""
    loss, margins = make_loss("logconf_openai"), make_loss("logconf")
    differ = 0
    for seed in range(100):
        g = torch.Generator().manual_seed(seed)
        margin = torch.rand(32, generator=g) * 100 - 20
        logits = torch.stack([margin, torch.zeros(32)], 1).to(dtype)
        weak = torch.rand(32, generator=g)
        weak = torch.stack([1 - weak, weak], 1)
        first = _released_first(logits, weak)
        z = logits.float()[:, 0] - logits.float()[:, 1]
        for own, expected in ((loss, True), (margins, None)):
            threshold = own.threshold(logits, weak)
            assert threshold is not None
            same = bool(((z >= threshold) == first).all())
            assert same or expected is None
            differ += not same
        strong = torch.stack([first, ~first], 1).double()
        target = 0.5 * weak.double() + 0.5 * strong
        value = _mean(loss(logits, weak, step_frac=0.9)).double()
        torch.testing.assert_close(
            value, F.cross_entropy(logits.double(), target), rtol=1e-5, atol=0
        )
    assert differ > 70  # the quantile of margins


def test_logconf_openai_leaves_rows_of_weight_zero_out_of_its_quantile() -> None:
    logits, weak = case(32, 2, 0, torch.float32)
    weight = (torch.arange(32) % 3 > 0).float()
    kept = weight > 0
    loss = make_loss("logconf_openai")
    assert torch.equal(
        loss.threshold(logits, weak, weight=weight), loss.threshold(logits[kept], weak[kept])
    )
    none = loss.threshold(logits, weak, weight=torch.zeros(32))
    assert none is not None and none.isinf()


@pytest.mark.parametrize("q", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_hard_class_counts(q: float) -> None:
    """#{class 1} = ceil(q (N-1)) at prior q, for every N."""
    for n in (*range(2, 40), 64, 127, 256, 257):
        logits, _ = case(n, 2, seed=n)
        weak = torch.tensor([1 - q, q], dtype=torch.float64).expand(n, 2)
        exact = float(weak[:, 1].mean())
        stats = weak_loss(logits, weak, aux=0.5, rule="prior", return_stats=True).stats
        assert stats is not None
        # The mean of N equal numbers is not always that number; round as the op must.
        assert int((stats.hard_class == 1).sum()) == math.ceil(exact * (n - 1)), (n, q)


def test_schedules() -> None:
    fracs = (0, 0.05, 0.1, 0.1001, 0.5)
    table = {
        "logconf_openai": (0, 0.025, 0.05, 0.5, 0.5),
        "logconf": (0, 0.25, 0.5, 0.5, 0.5),
        "logconf_paper": (0, 0.125, 0.25, 0.25025, 0.5),
        "xent": (0, 0, 0, 0, 0),
    }
    for name, expected in table.items():
        loss = make_loss(name)
        assert [loss.coefficient(f) for f in fracs] == pytest.approx(expected, abs=1e-12)
    assert make_loss("logconf:warmup_frac=0").coefficient(0.0) == 0.5
    eleuther = make_loss("logconf_eleuther")
    assert [eleuther.coefficient(0.9, s) for s in (0, 50, 100, 200)] == [0, 0.25, 0.5, 0.5]
    assert eleuther.coefficient(50 / 468) == pytest.approx(0.25)


def test_eleuther_ring_is_the_last_predictions_in_order(served: None) -> None:
    loss = LogConfEleuther(window=4)
    state: Tensor | None = loss.init_state()
    margins = [3.0, -1.0, 2.0, 5.0, 7.0, 0.0]
    for i, m in enumerate(margins):
        logits = torch.tensor([[m, 0.0]])
        weight = torch.tensor([0.0 if i == 3 else 1.0])  # this row is out of everything
        at = loss.threshold(logits, torch.tensor([[0.1, 0.9]]), weight=weight, state=state)
        out = loss(logits, torch.tensor([[0.1, 0.9]]), weight=weight, step_frac=1.0, state=state)
        state = out.state
        if i == 2:
            assert at is not None and float(at) == 2.0  # median of 3, -1, 2: one row has prior 1/2
    assert state is not None and state.tolist() == [-1.0, 2.0, 7.0, 0.0]


def _balanced_as_released(logits: Tensor, weak: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """Row targets of EleutherAI's loss with ``balance_batch`` at its full coefficient 1/2."""
    one = weak[:, 1]
    odds = torch.log(one + 1e-7) - torch.log(1 - one + 1e-7)
    one = torch.sigmoid(odds - odds[kept].mean())
    first = logits.softmax(1)[:, 0] >= quantile_of(logits[kept].softmax(1)[:, 0], 0.5)
    hard = torch.stack([first, ~first], 1).to(logits.dtype)
    return torch.stack([1 - one, one], 1), hard


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("size", [1, 4, 24])
def test_eleuther_balance_over_the_whole_step(size: int, hard: bool) -> None:
    """The released formula on the rows that count, for any split of the step into parts."""
    logits, weak = case(24, 2, seed=12)
    weight = torch.ones(24, dtype=torch.float64)
    weight[5] = 0
    labels = (weak[:, 0] < 0.7).long() if hard else weak
    soft = F.one_hot(labels, 2).double() if hard else weak
    kept = weight > 0
    if hard:
        labels[9], kept[9] = -100, False
    balanced, own = _balanced_as_released(logits, soft, kept)
    expected = torch.where(kept.unsqueeze(1), logits.softmax(1) - (balanced + own) / 2, 0.0)
    loss = make_loss("logconf_eleuther:balance=true,warmup_steps=0")
    at = loss.threshold(logits, labels, weight=weight, state=loss.init_state())
    z, state, count = logits.clone().requires_grad_(), loss.init_state(), 0.0
    for i in range(0, 24, size):
        part = slice(i, i + size)
        out = loss(z[part], labels[part], weight=weight[part], threshold=at, state=state)
        out.loss_sum.backward()
        state, count = out.state, count + float(out.count)
    assert z.grad is not None and (z.grad - expected).abs().max() < 1e-10
    assert count == kept.sum()
    if size == 24:  # without a threshold from outside, without weights
        labels = torch.where(kept, labels, -100) if hard else labels
        out = loss(logits, labels, weight=None if hard else weight, state=loss.init_state())
        p = logits.log_softmax(1)
        assert abs(out.loss_sum + ((balanced + own) / 2 * p).sum(1)[kept].sum()) < 1e-10


def test_eleuther_balance_is_for_two_classes() -> None:
    with pytest.raises(W2SError, match="balance is for two classes, the labels have 3"):
        make_loss("logconf_eleuther:balance=1")(*case(4, 3, seed=0))
