r"""Delta learning in logistic regression: when do pairs of two weak teachers improve a student?

Setting of Geng et al. 2025 (arXiv 2507.06187), section 6: inputs x ~ N(0, I), true labels
sign(t . x), teachers c and r and a student s of unit norm with cosines a_c > a_r and a_s to the
truth t. Teachers label every x, the label of c is chosen, that of r rejected, and the student
p(y | x) = sigma(y s . x) is trained by a preference loss with itself as the reference.

The statements tested here are derived for this file, not copied from the paper. With h the argument
of DPO, log p(y | x) - log p(-y | x) = y s . x gives, where the teachers disagree,

    h = beta y_c (s' - s) . x,    d(-log sigma(h)) / ds' at s' = s  =  -(beta / 4) (y_c - y_r) x

and h = 0 where they agree. As E[sign(c . x) x] = sqrt(2 / pi) c,

    -E[gradient] = (beta / 4) sqrt(2 / pi) (c - r)                                           (1)

so its projection on the truth is positive iff a_c > a_r, whatever a_s is; and a small step raises
the student's cosine iff

    (c - r) . (t - a_s s) > 0                                                                (2)

which is a_c > a_r again if the errors of the teachers are orthogonal to that of the student.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from w2s_fast.losses.preference import DPO, Answers, DPONorm, Preference

N = 100_000
LENGTH = 3  # tokens of every answer, which DPONorm divides by
TRUTH = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64)
X = torch.randn(N, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def unit(cosine: float, error: int | Tensor) -> Tensor:
    """A unit vector of this cosine to the truth; its error lies along an axis or a vector."""
    axis = torch.eye(4, dtype=torch.float64)[error] if isinstance(error, int) else error
    return cosine * TRUTH + math.sqrt(1 - cosine**2) * axis


STUDENT = unit(0.8, 1)


def cosine(theta: Tensor) -> float:
    return float(theta @ TRUTH / theta.norm())


def signs(theta: Tensor) -> Tensor:
    return torch.where(X @ theta > 0, 1.0, -1.0).double()


def pair_losses(
    loss: Preference, theta: Tensor, chosen: Tensor, rejected: Tensor, x: Tensor
) -> Tensor:
    """The loss of every input alone, (N,), of the student ``theta`` against ``STUDENT``."""

    def answers(y: Tensor) -> Answers:
        length = torch.full((len(x),), LENGTH)
        return Answers(logsigmoid(y * (x @ theta)), logsigmoid(y * (x @ STUDENT)), length)

    out = loss(answers(chosen), answers(rejected))
    assert int(out.metrics["pairs"]) == len(x)
    return out.loss_sum / len(x)


def train(loss: Preference, c: Tensor, r: Tensor, steps: int, step: float) -> list[float]:
    """Gradient descent on the pairs of two teachers; the student's cosine after every step."""
    theta, path = STUDENT.clone().requires_grad_(), []
    y_c, y_r = signs(c), signs(r)
    for _ in range(steps):
        (gradient,) = torch.autograd.grad(pair_losses(loss, theta, y_c, y_r, X), theta)
        theta = (theta.detach() - step * gradient).requires_grad_()
        path.append(cosine(theta.detach()))
    return path


@pytest.mark.parametrize(
    ("loss", "beta"), [(DPO(beta=0.4), 0.4), (DPONorm(beta=5.0), 5.0 / LENGTH)], ids=["sum", "mean"]
)
@pytest.mark.parametrize(("a_c", "a_r"), [(0.6, 0.3), (0.3, 0.6), (0.9, -0.2)])
def test_expected_gradient(loss: Preference, beta: float, a_c: float, a_r: float) -> None:
    """Equation 1, within five standard errors of the mean over the inputs."""
    c, r = unit(a_c, 2), unit(a_r, 3)
    y_c, y_r = signs(c), signs(r)
    theta = STUDENT.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(pair_losses(loss, theta, y_c, y_r, X), theta)
    expected = -(beta / 4) * math.sqrt(2 / math.pi) * (c - r)
    samples = (beta / 4) * (y_c - y_r)[:, None] * X
    error = samples.std(0) / math.sqrt(N)
    assert ((gradient - expected).abs() < 5 * error).all()
    assert abs(float(gradient @ TRUTH)) > 20 * float(error[0])  # the sign is not chance
    assert (float(-gradient @ TRUTH) > 0) == (a_c > a_r)


@pytest.mark.parametrize(
    ("c", "r"),
    [
        (unit(0.6, 2), unit(0.3, 3)),  # aligned, errors of their own
        (unit(0.3, 2), unit(0.6, 3)),  # reversed
        (unit(0.6, 2), unit(0.3, 2)),  # aligned, a common error
        (unit(0.6, 1), unit(0.3, 1)),  # both err as the student does
        (unit(0.6, 2), unit(0.5, -torch.eye(4, dtype=torch.float64)[1])),  # r errs against s
    ],
)
def test_a_small_step_raises_the_cosine_iff_the_delta_is_aligned(c: Tensor, r: Tensor) -> None:
    """Equation 2, and the cosine that equation 1 predicts."""
    step, beta = 0.01, 1.0
    (reached,) = train(DPO(beta=beta), c, r, 1, step)
    moved = STUDENT + step * (beta / 4) * math.sqrt(2 / math.pi) * (c - r)
    assert reached - 0.8 == pytest.approx(cosine(moved) - 0.8, rel=0.15)
    assert (reached > 0.8) == (float((c - r) @ (TRUTH - 0.8 * STUDENT)) > 0)


def test_pairs_of_two_weak_teachers_improve_a_better_student() -> None:
    """Cosines of 0.6 and 0.3 teach a student of 0.8; the reversed pairs make it worse."""
    loss = DPONorm(beta=5.0)
    common = train(loss, unit(0.6, 2), unit(0.3, 2), 20, 0.5)
    assert common[-1] > 0.89 and min(common) > 0.8
    back = train(loss, unit(0.3, 2), unit(0.6, 2), 20, 0.5)
    assert back[-1] < 0.4 and max(back) < 0.8


def test_a_small_delta_bounds_the_gain() -> None:
    """The largest cosine of s + k (c - r) over k bounds it; a longer training loses the gain."""
    c, r = unit(0.6, 2), unit(0.3, 3)
    path = train(DPONorm(beta=5.0), c, r, 50, 0.02)
    bound = max(cosine(STUDENT + k / 1000 * (c - r)) for k in range(300))
    assert bound == pytest.approx(0.8046, abs=1e-4)
    assert bound - 1e-3 < max(path) < bound + 1e-3 and path[-1] < 0.8


def test_finetuning_on_the_chosen_labels_pulls_to_the_teacher() -> None:
    """A small step towards the teacher raises the cosine, too; convergence ends at its angle."""
    y = signs(unit(0.6, 2))

    def finetune(steps: int, step: float) -> float:
        theta = STUDENT.clone().requires_grad_()
        for _ in range(steps):
            (gradient,) = torch.autograd.grad(-logsigmoid(y * (X @ theta)).mean(), theta)
            theta = (theta.detach() - step * gradient).requires_grad_()
        return cosine(theta.detach())

    assert finetune(1, 0.05) > 0.8
    assert finetune(40, 4.0) == pytest.approx(0.6, abs=5e-3)
