"""Losses: each against a formula written here from its source, and the contract all share."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from helpers.loss_cases import case, differentiate, evidential_by_hand, quantile_of
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.losses import LOSSES, Loss, canonical_spec, make_loss
from w2s_fast.losses.logconf import LogConf, LogConfEleuther
from w2s_fast.testing import assert_fp64

FRAC = 0.3  # every schedule is past or inside its warm-up, none at 0


def _gradient(loss: Loss, logits: Tensor, weak: Tensor, **kwargs: object) -> tuple[Tensor, Tensor]:
    state = loss.init_state()
    return differentiate(
        lambda z: loss(z, weak, step_frac=FRAC, state=state, **kwargs).loss_sum,  # type: ignore[arg-type]
        logits,
    )


def _target(name: str, p: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """(T, omega) of each loss at FRAC, from the papers and the released code."""
    n, c = p.shape
    omega = torch.ones(n, dtype=p.dtype)
    hard = F.one_hot(p.argmax(1), c).to(p.dtype)
    if name.startswith("logconf") and c == 2:
        q = 0.5 if name == "logconf_paper" else float(w[:, 1].mean())
        rows = p[-32:, 0] if name == "logconf_eleuther" else p[:, 0]
        first = p[:, 0] >= quantile_of(rows, q)
        hard = torch.stack([first, ~first], 1).to(p.dtype)
    if name == "logconf_paper" and c > 2:
        top = p.amax(1)
        a = 0.5 * (top >= quantile_of(top, 0.5)).to(p.dtype).unsqueeze(1)
        return (1 - a) * w + a * hard, omega
    if name.startswith("logconf"):
        return 0.5 * w + 0.5 * hard, omega
    if name == "hard_xent":
        return F.one_hot(w.argmax(1), c).to(p.dtype), omega
    if name == "product":
        return p * w / (p * w).sum(1, keepdim=True), omega
    if name == "window":
        return w, (p.amax(1) < 0.65).to(p.dtype)
    if name == "smoothing":
        return 0.9 * w + 0.1 / c, omega
    if name == "entropy_eleuther":
        return 0.5 * w + 0.5 * p, omega
    if name == "focal":
        return w, (1 - p.gather(1, w.argmax(1, keepdim=True)).squeeze(1)) ** 2
    assert name == "xent"
    return w, omega


# Losses whose gradient passes through the student's probabilities elsewhere than in log p.
THROUGH_P = ("gce", "reverse_ce", "reverse_kl", "entropy_min")
OF_LOGITS = ("evidential",)  # of logits, not of their softmax: tests/losses/test_evidential.py


def _through_p(name: str, p: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """Row losses (n,) and their gradients (n, C), derived by hand."""
    log_p, log_w = p.log(), w.clamp_min(1e-4).log()
    if name == "gce":
        pull = w * p**0.7
        return (w * (1 - p**0.7)).sum(1) / 0.7, p * pull.sum(1, keepdim=True) - pull
    if name == "reverse_ce":
        rows = -(p * log_w).sum(1)
        return rows, -p * (log_w + rows.unsqueeze(1))
    if name == "reverse_kl":
        rows = (p * (log_p - log_w)).sum(1)
        return rows, p * (log_p - log_w - rows.unsqueeze(1))
    entropy = -(p * log_p).sum(1)
    rows = -(w * log_p).sum(1) + 0.1 * entropy
    return rows, p * w.sum(1, keepdim=True) - w - 0.1 * p * (log_p + entropy.unsqueeze(1))


@pytest.mark.parametrize("classes", [2, 3, 7])
@pytest.mark.parametrize("name", LOSSES)
def test_gradient_identity(name: str, classes: int) -> None:
    """dL/dz = omega (p sum T - T), or what was derived by hand; and the value; fp64 to 1e-10."""
    logits, weak = case(33, classes, seed=classes)
    weak[3] = F.one_hot(torch.tensor(1), classes).double()  # a label that is sure
    weight = torch.linspace(0, 2, 33, dtype=torch.float64)
    # A batch statistic leaves rows of weight 0 out, which the formulas here do not know.
    weight = torch.ones_like(weight) if name.startswith("logconf") else weight
    value, grad = _gradient(make_loss(name), logits, weak, weight=weight)
    p = logits.softmax(1)
    if name in OF_LOGITS:
        rows, expected = evidential_by_hand(logits, weak, FRAC)
        omega = torch.ones_like(rows)
    elif name in THROUGH_P:
        rows, expected = _through_p(name, p, weak)
        omega = torch.ones_like(rows)
    else:
        target, omega = _target(name, p, weak)
        rows = omega * -(target * p.log()).sum(1)
        expected = p * target.sum(1, keepdim=True) - target
    assert (grad - (omega * weight).unsqueeze(1) * expected).abs().max() < 1e-10
    assert abs(value - (weight * rows).sum()) < 1e-10


@pytest.mark.parametrize("spec", [*THROUGH_P, "gce:q=0.01", "gce:q=1", "reverse_ce:forward_coef=2"])
def test_gradient_is_that_of_the_value(spec: str) -> None:
    """Finite differences, soft labels and (``gce`` over the fused op) hard ones."""
    logits, weak = case(5, 3, seed=8)
    weight = torch.tensor([1.0, 0.5, 0.0, 2.0, 1.0], dtype=torch.float64)
    for labels in (weak, torch.tensor([0, 2, 1, -100, 1])):
        loss, z = make_loss(spec), logits.clone()
        _, grad = _gradient(loss, z, labels, weight=weight)
        for i, k in ((0, 0), (1, 2), (2, 1), (3, 1), (4, 0)):
            up, down = z.clone(), z.clone()
            up[i, k] += 1e-5
            down[i, k] -= 1e-5
            slope = (loss(up, labels, weight=weight).loss_sum
                     - loss(down, labels, weight=weight).loss_sum) / 2e-5  # fmt: skip
            assert abs(slope - grad[i, k]) < 1e-8, (i, k)


def test_what_the_bounded_losses_are_made_of() -> None:
    """Limits and sums that the sources state."""
    logits, weak = case(9, 4, seed=10)
    p, hard = logits.softmax(1), weak.argmax(1)
    chosen = p.gather(1, hard.unsqueeze(1)).squeeze(1)

    def value(spec: str, labels: Tensor) -> float:
        return float(make_loss(spec)(logits, labels).loss_sum)

    assert value("gce:q=1", hard) == pytest.approx(float((1 - chosen).sum()), abs=1e-12)
    assert value("gce:q=1e-9", hard) == pytest.approx(value("xent", hard), rel=1e-7)
    assert value("gce:q=0.5", hard) <= 9 / 0.5
    e4 = math.exp(-4)  # symmetric cross-entropy: log 0 is -4
    assert value(f"reverse_ce:floor={e4!r},forward_coef=2", hard) == pytest.approx(
        2 * value("xent", hard) + 4 * float((1 - chosen).sum()), abs=1e-10
    )
    uniform = torch.full_like(weak, 0.25)
    assert _gradient(make_loss("reverse_ce"), logits, uniform)[1].abs().max() < 1e-15
    assert _gradient(make_loss("reverse_kl"), weak.log(), weak)[1].abs().max() < 1e-15
    assert value("reverse_kl", p) == pytest.approx(0, abs=1e-12)


def test_a_masked_row_passes_nothing_on() -> None:
    """Not even a NaN of its own."""
    logits, weak = case(3, 2, seed=11)
    logits[1] = float("nan")
    weight = torch.tensor([1.0, 0.0, 1.0])
    for name in LOSSES:
        if make_loss(name).batch_rule(2) is not None:
            continue
        for labels in (weak, weak.argmax(1)):
            value, grad = _gradient(make_loss(name), logits, labels, weight=weight)
            assert value.isfinite() and torch.equal(grad[1], torch.zeros(2).double()), name


def test_row_losses_name_a_shape_that_does_not_fit() -> None:
    with pytest.raises(W2SError, match=r"weak has shape \(3, 2\); expected \(3, 4\)"):
        make_loss("reverse_ce")(torch.zeros(3, 4), torch.full((3, 2), 0.5))


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("size", [1, 4, 32])
def test_micro_batches_with_the_exact_threshold(name: str, classes: int, size: int) -> None:
    """Row gradients are those of the full batch to rounding in fp64; sums and counts add up."""
    logits, weak = case(32, classes, seed=5)
    weight = torch.ones(32, dtype=torch.float64)
    weight[7] = 0
    loss = make_loss(name)
    whole, grad = _gradient(loss, logits, weak, weight=weight)
    state = loss.init_state()
    at = loss.threshold(logits, weak, weight=weight, state=state)
    assert (at is None) == (loss.batch_rule(classes) is None)
    z = logits.clone().requires_grad_()
    total, count = 0.0, 0.0
    for i in range(0, 32, size):
        part = slice(i, i + size)
        out = loss(
            z[part], weak[part], weight=weight[part], step_frac=FRAC, threshold=at, state=state
        )  # fmt: skip
        state = out.state
        out.loss_sum.backward()
        total, count = total + float(out.loss_sum.detach()), count + float(out.count)
    assert z.grad is not None
    assert_fp64(z.grad, grad)
    assert total == pytest.approx(float(whole), abs=1e-12) and count == 31
    assert torch.equal(grad[7], torch.zeros(classes, dtype=torch.float64))
    after = loss(logits, weak, weight=weight, step_frac=FRAC, state=loss.init_state()).state
    assert (state is None) == (after is None)
    assert state is None or torch.equal(state.nan_to_num(), after.nan_to_num())


@pytest.mark.parametrize("alpha,beta", [(1, 1), (0.5, 2), (2, 0)])
def test_product_in_log_space(served: None, alpha: float, beta: float) -> None:
    """Equals the released formula where that is finite, and is finite where it is 0 / 0."""
    logits, weak = case(8, 3, seed=2, dtype=torch.float32)
    logits[0], weak[0] = torch.tensor([1e4, 0.0, 0.0]), torch.tensor([0.0, 1.0, 0.0])
    logits[1], weak[1] = torch.tensor([0.0, -1e4, 1e4]), torch.tensor([0.5, 0.5, 0.0])
    weak[2] = 0.0  # no mass: nothing to learn
    weak[3] = torch.tensor([1.0, 0.0, 0.0])
    p = logits.softmax(1)
    released = p**beta * weak**alpha
    released = released / released.sum(1, keepdim=True)
    _, grad = _gradient(make_loss(f"product:alpha={alpha},beta={beta}"), logits, weak)
    finite = released.isfinite().all(1)
    assert (~finite).sum() >= 1 and finite.sum() >= 5
    assert (grad - (p - released))[finite].abs().max() < 1e-6
    assert grad.isfinite().all()
    assert torch.equal(grad[2], torch.zeros(3))
    if beta:
        assert torch.allclose(grad[0], torch.tensor([1.0, -1.0, 0.0]))


def test_hard_labels_and_ignored_rows() -> None:
    """Integer labels give what their one-hot form gives; -100 is a row that is not there."""
    logits, _ = case(20, 2, seed=3)
    labels = torch.arange(20) % 2
    onehot = F.one_hot(labels, 2).double()
    ignored = labels.clone()
    ignored[[0, 11]] = -100
    kept = ignored != -100
    for name in LOSSES:
        loss = make_loss(name)
        _, hard = _gradient(loss, logits, labels)
        _, soft = _gradient(loss, logits, onehot)
        assert (hard - soft).abs().max() < 1e-12, name
        value, part = _gradient(loss, logits, ignored)
        rest, alone = _gradient(loss, logits[kept], labels[kept])
        assert abs(value - rest) < 1e-12, name
        assert torch.equal(part[~kept], torch.zeros(2, 2, dtype=torch.float64)), name
        assert (part[kept] - alone).abs().max() < 1e-12, name
        assert loss.count(ignored) == 18, name


def test_metrics_are_sums_over_rows_that_count() -> None:
    logits, weak = case(10, 3, seed=4)
    weight = torch.ones(10, dtype=torch.float64)
    weight[2] = 0
    logits[2], weak[2] = torch.tensor([9.0, 0, 0]), torch.tensor([0.8, 0.1, 0.1])  # agrees, is out
    same = (logits.argmax(1) == weak.argmax(1)) & (weight > 0)
    p = logits.softmax(1)[weight > 0]
    z = logits.requires_grad_()
    for name in ("xent", "entropy_eleuther", "reverse_ce", "gce"):
        for labels in (weak, weak.argmax(1)):
            found = make_loss(name)(z, labels, weight=weight).metrics
            assert found["rows"] == 9 and found["agreement"] == same.sum(), name
            assert abs(found["max_prob"] - p.amax(1).sum()) < 1e-12, name
            assert abs(found["entropy"] + (p * p.log()).sum()) < 1e-12, name
            assert all(not m.requires_grad for m in found.values()), name


def test_bf16_logits_give_bf16_gradients_and_fp32_sums(served: None) -> None:
    logits, weak = case(16, 2, seed=6, dtype=torch.float32)
    z = logits.bfloat16().requires_grad_()
    out = make_loss("logconf")(z, weak, step_frac=FRAC)
    out.loss_sum.backward()
    assert out.loss_sum.dtype == torch.float32 and z.grad is not None
    assert z.grad.dtype == torch.bfloat16


def test_make_loss() -> None:
    assert make_loss("logconf:aux_coef=0.75, warmup_frac=0.2") == LogConf(
        aux_coef=0.75, warmup_frac=0.2
    )
    assert make_loss(" xent:hard=true ") == LOSSES["xent"](hard=True)  # type: ignore[call-arg]
    assert make_loss("w2s_fast.losses.logconf:LogConf:aux_coef=1") == LogConf(aux_coef=1.0)
    assert isinstance(make_loss("logconf_eleuther:window=8"), LogConfEleuther)


@pytest.mark.parametrize(
    ("spec", "canonical"),
    [
        ("hard_xent", "hard_xent:hard=True"),
        (" logconf:aux_coef=1 ", "logconf:aux_coef=1.0,warmup_frac=0.1"),
        ("w2s_fast.losses.logconf:LogConf:aux_coef=1", "logconf:aux_coef=1.0,warmup_frac=0.1"),
    ],
)
def test_canonical_spec(spec: str, canonical: str) -> None:
    assert canonical_spec(spec) == canonical == canonical_spec(canonical)
    assert make_loss(canonical) == make_loss(spec)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("logcnf", "did you mean 'logconf'"),
        ("logconf:auxcoef=1", "did you mean 'aux_coef'"),
        ("logconf:aux_coef=much", "expected float"),
        ("logconf:aux_coef=1.5", r"aux_coef is 1.5; expected a number in \[0, 1\]"),
        ("logconf:aux_coef=nan", "aux_coef is nan"),
        ("xent:hard=maybe", "expected bool"),
        ("xent:hard", "expected field=value"),
        ("product:alpha=0", "above 0"),
        ("window:radius=0.7", "radius is 0.7"),
        ("gce:q=0", "q is 0, which is cross-entropy"),
        ("gce:q=1.1", r"expected a number in \[0, 1\]"),
        ("reverse_kl:floor=0", "floor is 0"),
        ("no.such:Thing", "cannot be imported"),
        ("w2s_fast.errors:W2SError", "not a subclass"),
    ],
)
def test_bad_specs(spec: str, says: str) -> None:
    with pytest.raises(W2SError, match=says) as caught:
        make_loss(spec)
    assert "\n" not in str(caught.value)
