"""Preference losses against formulas written from the papers in fp64, and what all must share."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from helpers.preference_cases import FP32, FP64, HARD, Z0, answers, dpo, run, simpo, soft
from torch import Tensor

import w2s_fast
from w2s_fast.errors import W2SError
from w2s_fast.losses.preference import (
    PREFERENCES,
    Answers,
    PreferenceOut,
    PreferenceWarning,
    make_preference,
)
from w2s_fast.losses.preference.dpo import DPO, DPONorm
from w2s_fast.losses.preference.ipo import IPO
from w2s_fast.losses.preference.kto import KTO
from w2s_fast.losses.preference.orpo import ORPO
from w2s_fast.losses.preference.simpo import SimPO
from w2s_fast.losses.preference.wspo import WSPO
from w2s_fast.testing import BACKWARD, FORWARD, assert_within_budget


def wide(a: Answers) -> Answers:
    return a._replace(
        logp=a.logp.double(), reference=a.reference.double(), target=a.target.double()
    )


@pytest.mark.parametrize("name", PREFERENCES)
@pytest.mark.parametrize("label", ["hard", "soft"])
def test_value_and_gradient_of_the_paper(name: str, label: str) -> None:
    n = 9
    first, second = answers(n, 0), answers(n, 1)
    g = torch.Generator().manual_seed(2)
    q = torch.ones(n) if label == "hard" else torch.rand(n, generator=g)
    weight = torch.rand(n, generator=g)
    results = []
    for dtype in (None, FP32, FP64):  # ours, the formula in fp32, the formula in fp64
        kind = FP64 if dtype == FP64 else FP32
        a, b = (x._replace(logp=x.logp.to(kind).requires_grad_()) for x in (first, second))
        if dtype is None:
            out = run(PREFERENCES[name](), a, b, q, weight=weight)
            total = out.loss_sum
        else:
            full = [wide(x) if dtype == FP64 else x for x in (a, b)]
            total = soft(name, *full, q.to(kind), weight.to(kind))
        results.append((total, *torch.autograd.grad(total, (a.logp, b.logp))))
    ours, eager, truth = results
    assert_within_budget(ours[0], truth[0], eager[0], FORWARD, "loss")
    for mine, true, base in zip(ours[1:], truth[1:], eager[1:], strict=True):
        assert_within_budget(mine, true, base, BACKWARD, "gradient")
    pairs = 2 if name == "kto" else 1
    assert float(out.count) == pytest.approx(pairs * float(weight.sum()))
    assert not out.count.requires_grad and not any(m.requires_grad for m in out.metrics.values())


@pytest.mark.parametrize("name", PREFERENCES)
def test_q_one_and_zero_are_the_published_losses(name: str) -> None:
    first, second = answers(5, 3, FP64), answers(5, 4, FP64)
    loss = PREFERENCES[name]()
    one, zero = run(loss, first, second, 1.0), run(loss, first, second, torch.zeros(5))
    assert float(one.loss_sum) == pytest.approx(float(HARD[name](first, second).sum()), rel=1e-12)
    assert float(zero.loss_sum) == pytest.approx(float(HARD[name](second, first).sum()), rel=1e-12)


@pytest.mark.parametrize("name", PREFERENCES)
def test_swapping_the_answers_swaps_the_label(name: str) -> None:
    first, second = answers(7, 5, FP64), answers(7, 6, FP64)
    q = torch.rand(7, generator=torch.Generator().manual_seed(7), dtype=FP64)
    loss = PREFERENCES[name]()
    one, two = run(loss, first, second, q), run(loss, second, first, 1 - q)
    assert float(one.loss_sum) == pytest.approx(float(two.loss_sum), rel=1e-12)
    for key, value in one.metrics.items():
        assert float(value) == pytest.approx(float(two.metrics[key]), rel=1e-9), key


@pytest.mark.parametrize("name", PREFERENCES)
def test_parts_add_up_and_dropped_pairs_do_not_count(name: str) -> None:
    first, second = answers(6, 8, FP64), answers(6, 9, FP64)
    weight = torch.tensor([1.0, 0.0, 2.0, 0.5, 0.0, 1.5], dtype=FP64)
    q = torch.linspace(0.1, 1, 6, dtype=FP64)  # WSPO has no gradient at q = 0
    poisoned = torch.where(weight == 0, math.nan, first.logp).requires_grad_()
    loss = PREFERENCES[name]()
    whole = run(loss, first._replace(logp=poisoned), second, q, weight=weight)
    parts: list[PreferenceOut] = []
    for part in (slice(0, 2), slice(2, 6)):
        cut = [Answers(*(x[part] for x in a)) for a in (first, second)]
        parts.append(run(loss, *cut, q[part], weight=weight[part]))
    assert float(whole.loss_sum.detach()) == pytest.approx(
        sum(float(p.loss_sum) for p in parts), rel=1e-12
    )
    assert float(whole.count) == sum(float(p.count) for p in parts)
    for key in whole.metrics:
        total = sum(float(p.metrics[key]) for p in parts)
        assert float(whole.metrics[key]) == pytest.approx(total, rel=1e-9), key
    (grad,) = torch.autograd.grad(whole.loss_sum, poisoned)
    assert torch.equal(grad == 0, weight == 0)
    assert float(whole.metrics["pairs"]) == 4


@pytest.mark.parametrize("name", PREFERENCES)
@pytest.mark.parametrize("q", [1.0, 0.3])
def test_extreme_margins_stay_finite(name: str, q: float) -> None:
    length = torch.tensor([3, 3, 3])
    for far in (1e4, -1e4):
        logp = torch.tensor([-1e4 - far, -5.0, -1e-6]).clamp_max(-1e-6).requires_grad_()
        first = Answers(logp, torch.tensor([-9.0, -5.0, -1e4]), length, far * torch.ones(3))
        second = Answers(
            torch.tensor([-2.0, -2e4, -1e-6]),
            torch.tensor([-2e4, -1.0, -2.0]),
            length,
            logp.detach(),
        )
        out = run(PREFERENCES[name](), first, second, q)
        (grad,) = torch.autograd.grad(out.loss_sum, logp)
        assert bool(out.loss_sum.isfinite()) and bool(grad.isfinite().all())


def test_an_impossible_answer_that_lost_costs_nothing() -> None:
    """-inf on the other side: 0 times its infinite loss is meant to be 0."""
    logp = torch.tensor([-3.0], requires_grad=True)
    out = DPO()(Answers(logp, logp.detach()), Answers(torch.tensor([-math.inf]), logp.detach()))
    (grad,) = torch.autograd.grad(out.loss_sum, logp)
    assert float(out.loss_sum.detach()) == 0 and float(grad) == 0


def test_certain_answers_have_a_finite_orpo_gradient() -> None:
    """Probability 1 means infinite odds: the clamp must not hand on the NaN of log(0)."""
    logp = torch.zeros(2, requires_grad=True)
    first = Answers(logp, None, torch.tensor([2, 2]))
    out = ORPO()(first, first._replace(logp=torch.tensor([-1.0, 0.0])), torch.tensor([1.0, 0.0]))
    (grad,) = torch.autograd.grad(out.loss_sum, logp)
    assert bool(grad.isfinite().all()) and bool(out.loss_sum.isfinite())


def test_metrics_are_expectations_over_the_label() -> None:
    one = torch.tensor([1.0, 0.0, 2.0])
    zero = torch.tensor([0.0, 1.0, 2.0])
    out = run(PREFERENCES["bradley_terry"](), Answers(one), Answers(zero), torch.tensor([0.9] * 3))
    assert float(out.metrics["accuracy"]) == pytest.approx(0.9 + 0.1 + 0.5)
    assert float(out.metrics["margin"]) == pytest.approx(0.8 - 0.8)
    assert float(out.metrics["pairs"]) == 3


def test_label_smoothing_and_flip_rate() -> None:
    """Conservative and robust DPO as in their papers, with hard and soft labels."""
    a, b = answers(6, 10, FP64), answers(6, 11, FP64)
    plus, minus, e = dpo(a, b), dpo(b, a), 0.2
    conservative = float(((1 - e) * plus + e * minus).sum())
    robust = float((((1 - e) * plus - e * minus) / (1 - 2 * e)).sum())
    assert float(DPO(label_smoothing=e)(a, b).loss_sum) == pytest.approx(conservative, rel=1e-12)
    assert float(DPO(flip_rate=e)(a, b).loss_sum) == pytest.approx(robust, rel=1e-12)
    q = torch.linspace(0, 1, 6, dtype=FP64)
    flipped = q * (1 - 2 * e) + e  # what a judge says whose answers are flipped at rate e
    honest = float(DPO()(a, b, q).loss_sum)
    assert float(DPO(flip_rate=e)(a, b, flipped).loss_sum) == pytest.approx(honest, rel=1e-12)
    h = simpo(a, b), simpo(b, a)
    smoothed = float(((1 - e) * h[0] + e * h[1]).sum())
    assert float(SimPO(label_smoothing=e)(a, b).loss_sum) == pytest.approx(smoothed, rel=1e-12)


def test_lengths_matter_where_the_method_divides_by_them() -> None:
    a, b = answers(4, 12, FP64), answers(4, 13, FP64)
    longer = a._replace(length=a.length * 2)
    for loss in (DPONorm(), IPO(), SimPO(), ORPO()):
        assert float(loss(a, b).loss_sum) != float(loss(longer, b).loss_sum)
        with pytest.raises(W2SError, match="lengths"):
            loss(a._replace(length=None), b)
    whole = ((a.logp - a.reference - b.logp + b.reference) - 1 / 0.4) ** 2
    out = IPO(tau=0.2, average=False)(a._replace(length=None), b)
    assert float(out.loss_sum) == pytest.approx(float(whole.sum()), rel=1e-12)


def test_wspo_learns_from_the_preferred_answer_alone() -> None:
    """At gamma r = r_weak the gradient vanishes; sums of tokens differ from means."""
    a, b = answers(4, 12, FP64), answers(4, 13, FP64)
    logp = (a.reference + a.target / 0.25).requires_grad_()
    for average in (True, False):
        loss = WSPO(gamma=0.25, average=average)
        out = loss(a._replace(logp=logp), b)
        (grad,) = torch.autograd.grad(out.loss_sum, logp)
        assert float(out.loss_sum.detach()) < 1e-20 and float(grad.abs().max()) < 1e-10
    whole = (0.25 * (a.logp - a.reference) - a.target) ** 2
    out = WSPO(gamma=0.25, average=False)(a._replace(length=None), b)
    assert float(out.loss_sum) == pytest.approx(float(whole.sum()), rel=1e-12)
    for answer, match in ((a._replace(target=None), "target"), (a._replace(reference=None), "ref"),
                          (a._replace(length=None), "lengths"),
                          (a._replace(target=torch.zeros(3)), r"first.target has shape \(3,\)"),
                          ):  # fmt: skip
        with pytest.raises(W2SError, match=match):
            WSPO()(answer, b)


def test_a_beta_of_the_other_form_is_warned_about() -> None:
    """Sums and means of tokens differ by the length; the default of each form is silent."""
    for call, words in (
        (lambda: DPO(beta=5.0), r"DPO has beta=5, and multiplies sums .* did you mean DPONorm"),
        (lambda: make_preference("dpo:beta=1"), "DPO has beta=1,"),
        (lambda: DPONorm(beta=0.1), r"DPONorm has beta=0.1, and multiplies means .* mean DPO\?"),
    ):
        with pytest.warns(PreferenceWarning, match=words) as caught:
            call()
        assert len(caught) == 1
    with pytest.warns(PreferenceWarning) as caught:
        DPO(beta=5.0)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for quiet in (DPO(), DPO(beta=0.99), DPONorm(), DPONorm(beta=0.5), SimPO(), IPO(tau=5.0)):
            assert quiet.reward is not None


def test_minimum_of_soft_ipo() -> None:
    """At h = (2q - 1) / (2 tau) the gradient vanishes."""
    q, tau = torch.tensor([0.7], dtype=FP64), 0.25
    logp = ((2 * q - 1) / (2 * tau)).requires_grad_()
    zero = torch.zeros(1, dtype=FP64)
    out = IPO(tau=tau, average=False)(Answers(logp, zero), Answers(zero, zero), q)
    (grad,) = torch.autograd.grad(out.loss_sum, logp)
    assert float(grad) == pytest.approx(0, abs=1e-12)


def test_kto_weights_and_single_answers() -> None:
    a = answers(8, 14, FP64)
    q = torch.tensor([1.0, 0, 1, 0, 0.25, 0.5, 1, 0], dtype=FP64)
    loss = KTO(beta=0.3, desirable=1.3, undesirable=0.6)
    ratio = a.logp - a.reference
    good = 1.3 * (1 - (0.3 * (ratio - Z0)).sigmoid())
    bad = 0.6 * (1 - (0.3 * (Z0 - ratio)).sigmoid())
    out = loss(a, q=q, baseline=torch.tensor(Z0, dtype=FP64))
    assert float(out.loss_sum) == pytest.approx(float((q * good + (1 - q) * bad).sum()), rel=1e-12)
    assert float(out.count) == 8


def test_kto_baseline_is_one_number_of_the_whole_batch() -> None:
    a = answers(6, 15, FP64)
    a = a._replace(logp=(a.reference + 1.0).requires_grad_())
    z0 = KTO().baseline(a)
    assert float(z0) == pytest.approx(1.0) and not z0.requires_grad
    below = a._replace(logp=a.reference - 1.0)
    assert float(KTO().baseline(below)) == 0.0
    weight = torch.tensor([0.0, 1, 1, 0, 1, 1], dtype=FP64)
    poisoned = a._replace(logp=torch.where(weight == 0, math.nan, a.logp))
    assert float(KTO().baseline(poisoned, weight=weight)) == pytest.approx(1.0)
    empty = Answers(torch.zeros(0), torch.zeros(0))
    assert float(KTO().baseline(empty)) == 0.0
    # The clamp holds for the mean of all, not for parts of it.
    with pytest.raises(W2SError, match="one number"):
        KTO()(a, baseline=torch.zeros(6))


def test_bad_input_is_named() -> None:
    a, b = answers(3, 16), answers(3, 17)
    loss = DPO()
    for call, words in (
        (lambda: loss(a, b, 1.5), r"q is 1.5; expected a probability"),
        (lambda: loss(a, b, torch.tensor([0.5, -0.1, 0.5])), r"q\[1\] is -0.1"),
        (lambda: loss(a, b, torch.tensor([0.5, math.nan, 0.5])), r"q\[1\] is nan"),
        (lambda: loss(a, b, weight=torch.tensor([1.0, 1.0, -1.0])), r"weight\[2\] is -1.0"),
        (lambda: loss(a, b, torch.ones(2)), r"q has shape \(2,\); expected one number a pair"),
        (lambda: loss(a, answers(2, 0)), r"second.logp has shape \(2,\)"),
        (lambda: loss(a._replace(reference=None), b), "needs a reference"),
        (lambda: loss(a._replace(length=torch.tensor([1, 0, 1])), b), r"first.length\[1\] is 0"),
        (lambda: loss(Answers(torch.tensor([1, 2, 3])), b), "expected floating point"),
        (lambda: loss(Answers(torch.tensor(1.0)), b), "first.logp has shape"),
        (lambda: DPO(beta=0.0), "DPO: beta is 0.0; expected a number above 0"),
        (lambda: DPO(flip_rate=0.5), "flip_rate is 0.5"),
        (lambda: KTO(desirable=-1.0), "desirable is -1.0; expected a number at least 0"),
    ):
        with pytest.raises(W2SError, match=words):
            call()


def test_low_precision_numbers_are_summed_in_fp32() -> None:
    a, b = answers(5, 18, torch.bfloat16), answers(5, 19, torch.bfloat16)
    assert DPO()(a, b).loss_sum.dtype == FP32
    assert DPO()(answers(5, 18, FP64), answers(5, 19, FP64)).loss_sum.dtype == FP64


def test_no_pairs_are_no_loss() -> None:
    empty = Answers(torch.zeros(0, requires_grad=True), *[torch.zeros(0)] * 3)
    for name, kind in PREFERENCES.items():
        out = run(kind(), empty, empty)
        assert float(out.loss_sum.detach()) == 0 and float(out.count) == 0, name


@pytest.mark.parametrize("name", PREFERENCES)
def test_from_hidden_states_to_gradients(name: str) -> None:
    """linear_logprob and the loss, against full logits in eager PyTorch and the paper's formula."""
    pairs, t, d, v = 3, 6, 8, 23
    g = torch.Generator().manual_seed(20)
    hidden = torch.randn(2 * pairs, t, d, generator=g)  # the first answers, then the second
    head = torch.randn(v, d, generator=g) / 2
    tokens = torch.randint(0, v, (2 * pairs, t), generator=g)
    mask = torch.rand(2 * pairs, t, generator=g) < 0.6
    mask[:, 0] = True
    length = mask.sum(1)
    reference = -2.0 * length - torch.rand(2 * pairs, generator=g)
    target = torch.randn(2 * pairs, generator=g)
    q, weight = torch.tensor([0.9, 0.2, 1.0]), torch.tensor([1.0, 0.5, 2.0])

    def pair(logp: Tensor) -> tuple[Answers, Answers]:
        columns = (x.split(pairs) for x in (logp, reference, length, target))
        both = zip(*columns, strict=True)
        first, second = (Answers(a, b.to(a.dtype), c, d.to(a.dtype)) for a, b, c, d in both)
        return first, second

    results = []
    for dtype in (None, FP64, FP32):
        kind = FP32 if dtype is None else dtype
        h, w = hidden.to(kind).requires_grad_(), head.to(kind).requires_grad_()
        if dtype is None:
            budget = 7 * v * 4 / 2**20  # seven rows a chunk
            logp = w2s_fast.linear_logprob(h, w, tokens, mask=mask, memory_mib=budget)
            total = run(PREFERENCES[name](), *pair(logp), q, weight=weight).loss_sum
        else:
            by_token = (h @ w.t()).log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
            first, second = pair((by_token * mask).sum(1))
            total = soft(name, first, second, q.to(kind), weight.to(kind))
        results.append((total, *torch.autograd.grad(total, (h, w))))
    for what, ours, truth, eager in zip(("loss", "hidden", "head"), *results, strict=True):
        c = FORWARD if what == "loss" else BACKWARD
        assert_within_budget(ours, truth, eager, c, f"{name}: {what}")
    assert bool((results[0][1][~mask] == 0).all())


def test_specs() -> None:
    assert make_preference("dpo:beta=0.2,label_smoothing=0.1") == DPO(beta=0.2, label_smoothing=0.1)
    assert make_preference("ipo:average=false") == IPO(average=False)
    assert make_preference("w2s_fast.losses.preference.kto:KTO:beta=0.3") == KTO(beta=0.3)
    for spec, words in (
        ("dop", "unknown preference loss 'dop'.*did you mean 'dpo'"),
        ("dpo:gamma=1", "has no field 'gamma'"),
        ("dpo:beta=x", "beta is 'x'; expected float"),
        ("w2s_fast.losses:Xent", "is not a subclass of w2s_fast.losses.preference.Preference"),
    ):
        with pytest.raises(W2SError, match=words):
            make_preference(spec)
