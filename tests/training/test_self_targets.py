"""Targets of a step by hand: what is mixed, weighted and left out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.methods import spec_of
from w2s_fast.training import SelfTargets, StepTargets
from w2s_fast.training.step_targets import make_step_targets, soft_rows

# Two classes: the teacher is certain of rows 0 and 2, undecided about row 1.
P = torch.tensor([[0.9, 0.1], [0.5, 0.5], [0.02, 0.98]], dtype=torch.float64)
W = torch.tensor([[0.3, 0.7], [0.8, 0.2], [0.4, 0.6]], dtype=torch.float64)
V = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)


def _rows(step_frac: float = 0.5, **fields: Any) -> tuple[np.ndarray, list[float]]:
    targets, weight = SelfTargets(**fields).rows(P.log(), W, V, step_frac)
    return targets.numpy(), weight.tolist()


def test_soft_targets_replace_or_mix() -> None:
    targets, weight = _rows()
    assert targets == pytest.approx(P.numpy()) and weight == pytest.approx([1, 2, 0.5])
    targets, weight = _rows(share=0.25)
    assert targets == pytest.approx((0.75 * W + 0.25 * P).numpy())
    assert weight == pytest.approx([1, 2, 0.5])


def test_fixmatch_by_hand() -> None:
    targets, weight = _rows(target="hard", threshold=0.89)
    assert targets == pytest.approx(np.array([[1, 0], [0.8, 0.2], [0, 1]]))
    assert weight == pytest.approx([1, 2, 0.5])
    targets, weight = _rows(target="hard", threshold=0.95, below="drop")
    assert weight == pytest.approx([0, 0, 0.5]) and targets[2].tolist() == [0, 1]
    assert targets[0] == pytest.approx(W[0].numpy())  # weight 0, but still a distribution


def test_certainties_weigh_the_teacher() -> None:
    """1 - H / log 2 of 0.9, 0.5 and 0.98; an undecided teacher leaves the weak label's share."""
    c = [1 - sum(-p * math.log(p) for p in row) / math.log(2) for row in P.tolist()]
    assert c[1] == pytest.approx(0, abs=1e-12) and c[0] == pytest.approx(0.531, abs=1e-3)
    targets, weight = _rows(share=0.5, score="entropy", weigh=True)
    for i in range(3):
        total = 0.5 + 0.5 * c[i]
        assert weight[i] == pytest.approx(float(V[i]) * total)
        assert targets[i] == pytest.approx(((0.5 * W[i] + 0.5 * c[i] * P[i]) / total).numpy())


def test_sharpened_targets_by_hand() -> None:
    """p^2 / f over the rows, f counted by their weights, in the weighted and uniform mix."""
    f = (V[:, None] * P).sum(0)
    q = P**2 / f
    q = q / q.sum(1, keepdim=True)
    c = 1 + (q * q.log()).sum(1) / math.log(2)
    fields: dict[str, Any] = {"target": "sharp", "score": "entropy", "weigh": True}
    targets, weight = _rows(threshold=0.6, below="drop", uniform=0.1, **fields)
    certain = (c >= 0.6).tolist()
    assert certain == [True, False, True]
    for i in range(3):
        total = float(c[i]) + 0.1
        assert weight[i] == pytest.approx(float(V[i]) * total if certain[i] else 0)
        if certain[i]:
            assert targets[i] == pytest.approx(((c[i] * q[i] + 0.05) / total).numpy())


def test_the_mix_learns_the_sum_of_its_cross_entropies() -> None:
    """The gradient identity of the module, with the divergence from the uniform distribution."""
    torch.manual_seed(0)
    logits, student = torch.randn(6, 3).double(), torch.randn(6, 3).double().requires_grad_()
    weak, weight = torch.rand(6, 3).double().softmax(1), torch.rand(6).double()
    targets = SelfTargets(share=0.3, score="entropy", weigh=True, uniform=0.2, threshold=0.1)
    t, v = targets.rows(logits, weak, weight, 0.0)
    logp = student.log_softmax(1)
    (got,) = torch.autograd.grad(-(v[:, None] * t * logp).sum(), student, retain_graph=True)
    q = logits.softmax(1)
    c = 1 + (q * q.log()).sum(1) / math.log(3)
    used = (c >= 0.1).double()
    assert 0 < used.sum() < 6

    def ce(target: Tensor) -> Tensor:
        return -(target * logp).sum(1)

    kl = -logp.mean(1) - math.log(3)  # of the uniform distribution
    rows = used * (0.7 * ce(weak) + 0.3 * c * ce(q) + 0.2 * kl) + (1 - used) * ce(weak)
    (want,) = torch.autograd.grad((weight * rows).sum(), student)
    assert torch.allclose(got, want, atol=1e-12)


def test_rows_of_weight_0_move_nothing() -> None:
    weight = torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64)
    targets = SelfTargets(target="sharp", share=0.5)
    far = P.clone()
    far[2] = torch.tensor([0.999, 0.001])
    (one, v), (two, _) = (targets.rows(p.log(), W, weight, 0.0) for p in (P, far))
    assert torch.equal(one[:2], two[:2]) and v[2] == 0
    # Leading dimensions are independent of each other.
    both, _ = targets.rows(torch.stack([P, far]).log(), W.expand(2, 3, 2), weight.expand(2, 3), 0)
    assert torch.allclose(both, torch.stack([one, two]), atol=1e-12)


def test_schedule() -> None:
    targets = SelfTargets(start=0.2, ramp=0.4, share=0.5)
    assert not targets.active(0.19) and targets.active(0.2)
    shares = [targets.share_at(t) for t in (0.1, 0.2, 0.4, 0.6, 0.9)]
    assert shares == pytest.approx([0, 0.5 * math.exp(-5), 0.5 * math.exp(-1.25), 0.5, 0.5])
    kept = [SelfTargets(decay=0.75).kept_at_update(n) for n in (1, 2, 3, 4)]
    assert kept == pytest.approx([1 / 2, 2 / 3, 3 / 4, 3 / 4])
    assert SelfTargets(refresh=5).kept_at_update(3) == 0


def test_hard_labels_become_soft_ones() -> None:
    weak, weight = soft_rows(torch.tensor([1, -100, 0]), torch.tensor([2.0, 3, 4]), 3)
    assert weak.tolist() == [[0, 1, 0], [1, 0, 0], [1, 0, 0]] and weight.tolist() == [2, 0, 4]
    weak, weight = soft_rows(W, None, 2)
    assert weak is W and weight.tolist() == [1, 1, 1]


def test_specs() -> None:
    targets = SelfTargets(decay=0.9, weigh=True, target="hard", refresh=3)
    assert make_step_targets(spec_of(targets)) == targets
    with pytest.raises(W2SError, match="not a subclass of w2s_fast.training.*StepTargets"):
        make_step_targets("w2s_fast.losses.xent:Xent")
    with pytest.raises(TypeError, match="must define rows"):
        StepTargets().rows(P, W, V, 0.0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"decay": 1.0}, "decay is 1; expected a number in"),
        ({"decay": -0.1}, "decay is -0.1"),
        ({"drop": 1.0}, "drop is 1"),
        ({"start": 2.0}, "start is 2.0"),
        ({"share": 1.5}, "share is 1.5"),
        ({"threshold": -1}, "threshold is -1"),
        ({"ramp": float("nan")}, "ramp is nan"),
        ({"uniform": -1.0}, "uniform is -1.0"),
        ({"contrast": float("inf")}, "contrast is inf"),
        ({"margin": 0.0}, "margin is 0.0"),
        ({"refresh": 0}, "refresh is 0"),
        ({"target": "sharper"}, "target is 'sharper'.*did you mean 'sharp'"),
        ({"score": "maximum"}, "score is 'maximum'"),
        ({"below": "keep"}, "below is 'keep'; expected one of weak, drop"),
        ({"final": "both"}, "final is 'both'"),
        ({"final": "teacher"}, "student is its own teacher"),
    ],
)
def test_bad_fields_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(W2SError, match=message):
        SelfTargets(**fields)
