"""Every backend of the cross-entropy against fp64, in every mode.

Grids are not full products. Where modes only add terms, each is tested with the kinds of weak
label it meets in the code; full products stand only where paths interact, and say so.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.dense_calls import KNOWN, LATE, OPEN, sample

import w2s_fast
from w2s_fast.ops import use_backend
from w2s_fast.ops.reference import KINDS, REGIMES
from w2s_fast.ops.weak_loss import batch_threshold
from w2s_fast.testing import (
    FORWARD,
    assert_cross_entropy,
    assert_within_budget,
    run_cross_entropy,
)

FP32, BF16, FP16, FP64 = torch.float32, torch.bfloat16, torch.float16, torch.float64


# Kind x gate x dtype: the phases (one pass, pass and fix-up, record and gradient) are chosen by
# exactly these three, so this product is full. N even and odd put the median between and on rows.
@pytest.mark.parametrize("dtype", [FP32, BF16, FP16], ids=str)
@pytest.mark.parametrize("rule", [{}, OPEN, LATE, KNOWN], ids=["none", "argmax", "median", "fixed"])
@pytest.mark.parametrize("kind", KINDS)
def test_kind_rule_dtype(backend: str, kind: str, rule: dict[str, Any], dtype: torch.dtype) -> None:
    assert_cross_entropy(backend, sample(kind, 5, dtype=dtype, **rule))


# Each row factor and smoothing alone, so that a wrong one is named, then all at once.
@pytest.mark.parametrize("rule", [OPEN, LATE], ids=["argmax", "median"])
@pytest.mark.parametrize(
    "extra",
    [
        {"smoothing": 0.2},
        {"focal_gamma": 2.0},
        {"max_confidence": 0.6},
        {"smoothing": 0.1, "focal_gamma": 1.5, "max_confidence": 0.7, "reduction": "mean"},
    ],
    ids=["smoothing", "focal", "window", "all"],
)
@pytest.mark.parametrize("kind", KINDS)
def test_factors(backend: str, kind: str, extra: dict[str, Any], rule: dict[str, Any]) -> None:
    assert_cross_entropy(backend, sample(kind, **rule, **extra), upstream=1.5)


# Both bend the late gate: a cap turns what the fix-up writes, z-loss what it rescales.
@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
@pytest.mark.parametrize("rule", [{}, OPEN, LATE], ids=["none", "argmax", "median"])
@pytest.mark.parametrize("kind", KINDS)
def test_softcap_and_z_loss(
    backend: str, kind: str, rule: dict[str, Any], dtype: torch.dtype
) -> None:
    assert_cross_entropy(backend, sample(kind, 5, dtype=dtype, softcap=3.0, **rule))
    assert_cross_entropy(backend, sample(kind, 5, dtype=dtype, z_loss=0.02, **rule))
    both = {"softcap": 4.0, "z_loss": 0.01, "smoothing": 0.1, "reduction": "none"}
    up = torch.linspace(-1, 2, 6)
    assert_cross_entropy(backend, sample(kind, 6, 131, dtype=dtype, **both, **rule), upstream=up)


@pytest.mark.parametrize("regime", ["huge", "confident", "ties"])
@pytest.mark.parametrize("kind", KINDS)
def test_softcap_at_its_limits(backend: str, kind: str, regime: str) -> None:
    """Where every logit sits at the cap the gradient is 0, not NaN."""
    assert_cross_entropy(backend, sample(kind, 5, 23, regime=regime, softcap=5.0, **LATE))
    two = sample(kind if kind != "rest" else "hard", 5, 2, regime=regime, softcap=5.0)
    assert_cross_entropy(backend, two | {"rule": "prior", "aux": 0.4, "z_loss": 0.1})


# 1: no choice; 3: the first with a gate; 17: a partial tile; 1000, 1003: inside one tile, even and
# odd; 4099: two tiles, the second nearly empty. Two classes have tests of their own below.
@pytest.mark.parametrize("v", [1, 3, 17, 1000, 1003, 4099])
@pytest.mark.parametrize("kind", ["hard", "rest"])
def test_class_counts(backend: str, kind: str, v: int) -> None:
    assert_cross_entropy(backend, sample(kind, 5, v, **LATE))


@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_vocabulary_of_odd_length(backend: str, kind: str, dtype: torch.dtype) -> None:
    """50257 is no multiple of any vector; the interpreter cannot afford it, 4099 covers Triton."""
    v = 4099 if backend == "triton" else 50257
    assert_cross_entropy(backend, sample(kind, 3, v, dtype, **LATE))


# The same rows cut into many tiles: running maxima, rescaled sums and tile winners all matter.
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("kind", KINDS)
def test_many_tiles(small_tiles: None, kind: str, regime: str) -> None:
    # Smoothing on masked vocabulary asks for an impossible class: infinite by definition.
    smoothing = 0.0 if regime == "masked" else 0.1
    assert_cross_entropy("triton", sample(kind, 6, 67, regime=regime, smoothing=smoothing, **OPEN))
    assert_cross_entropy("triton", sample(kind, 6, 67, regime=regime, **LATE))


# 0 rows: nothing to launch; 1: a median of one score; 33: more rows than lanes or blocks.
@pytest.mark.parametrize("n", [0, 1, 5, 33])
@pytest.mark.parametrize("reduction", ["sum", "mean", "none"])
def test_row_counts(backend: str, reduction: str, n: int) -> None:
    for kind, v in (("hard", 5), ("dense", 2)):
        rule = "median" if v > 2 else "prior"
        call = sample(kind, n, v, rule=rule, reduction=reduction)
        if n == 1 and reduction == "mean":
            del call["weight"]  # its gradient is 0 by definition: nothing to take a budget from
        upstream = torch.linspace(-1, 2, n) if reduction == "none" else 0.7
        assert_cross_entropy(backend, call, upstream=upstream)


# Numerics: huge (p underflows, lse at 1e4 is coarse), confident (1 - p cancels), ties, -inf logits.
@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
@pytest.mark.parametrize("regime", REGIMES[1:])
@pytest.mark.parametrize("kind", KINDS)
def test_regimes(backend: str, kind: str, regime: str, dtype: torch.dtype) -> None:
    for rule in (OPEN, LATE):
        assert_cross_entropy(backend, sample(kind, 5, 23, dtype, regime, **rule))


# Two classes have rules, kernels and a rows-across-lanes path of their own.
@pytest.mark.parametrize("dtype", [FP32, BF16, FP16], ids=str)
@pytest.mark.parametrize("rule", ["none", "prior", "median", "fixed"])
@pytest.mark.parametrize("kind", ["hard", "dense", "sparse"])
def test_two_classes(backend: str, kind: str, rule: str, dtype: torch.dtype) -> None:
    extra = {"threshold": 0.25} if rule == "fixed" else {}
    # 33: more rows than lanes. Triton's rows are programs of their own, and its interpreter pays
    # for each; huge and confident rows run the same code there as with more classes.
    sizes = {"plain": 33, "ties": 8, "huge": 6, "confident": 7}
    for regime, n in {"plain": 5, "ties": 4}.items() if backend == "triton" else sizes.items():
        call = sample(kind, n, 2, dtype, regime, rule=rule, **extra)
        assert_cross_entropy(backend, call, upstream=0.5)


@pytest.mark.parametrize(
    "extra", [{"smoothing": 0.2}, {"focal_gamma": 2.0}, {"max_confidence": 0.8}]
)
def test_two_class_factors(backend: str, extra: dict[str, Any]) -> None:
    for kind in ("hard", "dense"):
        call = sample(kind, 19, 2, rule="prior", reduction="mean", **extra)
        assert_cross_entropy(backend, call)


def test_ties_with_the_threshold_are_class_0_and_open(backend: str) -> None:
    two = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [2.0, 1.0]])
    out, *_ = run_cross_entropy(
        backend, {"logits": two, "weak": torch.tensor([0, 1, 1, 0]), "rule": "median", "aux": 0.5}
    )
    assert out.stats.hard_class.tolist() == [0, 0, 1, 0]
    same = torch.zeros(3, 5)
    out, *_ = run_cross_entropy(
        backend, {"logits": same, "weak": torch.tensor([0, 1, 2]), "rule": "median", "aux": 0.5}
    )
    assert out.stats.coefficient.tolist() == [0.5] * 3
    assert out.stats.argmax.tolist() == [0] * 3


@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
@pytest.mark.parametrize("given", [FP32, BF16, FP64], ids=str)
def test_dense_labels_of_another_dtype(
    backend: str, given: torch.dtype, dtype: torch.dtype
) -> None:
    call = sample("dense", dtype=dtype, **LATE)
    call["weak"] = call["weak"].to(given)
    # Anything but the logits' dtype is read as fp32; the truth is what the label became.
    assert_cross_entropy(backend, call | {"weak": call["weak"].float()})
    a, _, _ = run_cross_entropy(backend, call)
    b, _, _ = run_cross_entropy(backend, call | {"weak": call["weak"].float()})
    assert_within_budget(a.loss, b.loss.double(), b.loss, FORWARD)


def strided(z: torch.Tensor, layout: str) -> torch.Tensor:
    if layout == "rows":  # a slice of wider rows, e.g. a padded vocabulary
        return torch.cat([z, torch.full_like(z[:, :3], 9e9)], 1)[:, : z.shape[1]]
    if layout == "columns":
        return z.t().contiguous().t()
    return z[:1].expand_as(z)


@pytest.mark.parametrize("layout", ["rows", "columns", "expanded"])
@pytest.mark.parametrize("kind", KINDS)
def test_layouts(backend: str, kind: str, layout: str) -> None:
    call = sample(kind, **LATE)
    call["logits"] = strided(call["logits"], layout)
    if layout == "expanded" and isinstance(call["weak"], torch.Tensor):
        call["weak"] = call["weak"][:1].expand_as(call["weak"])
    before = call["logits"].clone()
    assert_cross_entropy(backend, call)
    assert torch.equal(call["logits"].nan_to_num(5.0), before.nan_to_num(5.0))


@pytest.mark.parametrize("rule", [OPEN, LATE], ids=["argmax", "median"])
@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_inplace(backend: str, kind: str, dtype: torch.dtype, rule: dict[str, Any]) -> None:
    for v, two in ((17, False), (2, True)):
        call = sample(kind, 5, v, dtype, **({"rule": "prior"} if two else rule))
        # The gaps between rows must survive, too; sums may be taken in another order elsewhere.
        z = strided(call["logits"], "rows")
        expected = run_cross_entropy(backend, call | {"logits": z})
        again = run_cross_entropy(backend, call | {"logits": z, "inplace": True})
        # CUDA sums by 16-byte pieces of memory: where a row starts decides the order of its sums.
        if backend != "cuda":
            assert torch.equal(again[0].loss, expected[0].loss)
        assert_within_budget(again[0].loss, expected[0].loss.double(), expected[0].loss, FORWARD)
        assert_within_budget(again[1], expected[1].double(), expected[1], FORWARD)
    assert_cross_entropy(backend, call | {"inplace": True}, upstream=2.0)


def test_aux_as_tensor_and_threshold_as_tensor(backend: str) -> None:
    call = sample("sparse", **LATE)
    a = run_cross_entropy(backend, call)
    b = run_cross_entropy(backend, call | {"aux": torch.tensor(0.4)})
    assert torch.equal(a[0].loss, b[0].loss) and torch.equal(a[1], b[1])
    with use_backend(backend):
        at = batch_threshold(call["logits"], call["weak"], "median", weight=call["weight"])
    c = run_cross_entropy(backend, call | {"threshold": at})
    assert torch.equal(a[0].stats.coefficient, c[0].stats.coefficient)
    assert_within_budget(c[1], a[1].double(), a[1], FORWARD)


def test_ignore_index_of_choice(backend: str) -> None:
    call = sample("hard", 7, **LATE)
    weak = torch.where(call["weak"] == -100, 3, call["weak"])
    out = assert_cross_entropy(backend, call | {"weak": weak, "ignore_index": 3})
    assert float(out.count) == pytest.approx(
        float(call["weight"][(weak != 3) & (call["weight"] != 0)].sum())
    )


def test_no_row_counts(backend: str) -> None:
    weak = torch.full((4,), -100)
    for v, rule in ((5, "median"), (2, "prior")):
        call = {"logits": torch.full((4, v), float("nan")), "weak": weak, "aux": 0.5, "rule": rule}
        out, grad, _ = run_cross_entropy(backend, call | {"reduction": "mean"})
        assert float(out.loss.detach()) == 0.0 and float(out.count) == 0.0
        assert bool((grad == 0).all())


@pytest.mark.parametrize("v", [2, 17])
@pytest.mark.parametrize("kind", KINDS)
def test_nan_stays_alive(backend: str, kind: str, v: int) -> None:
    for extra in ({}, {"focal_gamma": 2.0}, {"max_confidence": 0.5}, {"smoothing": 0.1}):
        call = sample(kind, 4, v, **extra)
        call["logits"][0, 1] = float("nan")
        out, grad, _ = run_cross_entropy(backend, call)
        assert bool(out.loss.isnan()) and bool(out.stats.loss[0].isnan()), extra
        assert bool(grad[0].isnan().all()), extra
        assert bool(grad[2:].isfinite().all()), extra


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("v", [2, 17])
def test_statistics(backend: str, kind: str, v: int) -> None:
    assert_statistics(backend, sample(kind, 9, v, rule="none"))


@pytest.mark.parametrize("regime", ["plain", "ties"])
def test_statistics_of_many_tiles(small_tiles: None, regime: str) -> None:
    for kind in ("hard", "dense"):
        assert_statistics("triton", sample(kind, 5, 67, regime=regime))
    # The first of equals, where the equals lie in different tiles.
    same = {"logits": torch.zeros(2, 67), "weak": torch.full((2, 67), 0.1)}
    same["logits"][1, 0] = same["weak"][1, 0] = -1.0
    out, *_ = run_cross_entropy("triton", same)
    assert out.stats.argmax.tolist() == [0, 1] and out.stats.agreement.tolist() == [True, True]


def assert_statistics(backend: str, call: dict[str, Any]) -> None:
    out, *_ = run_cross_entropy(backend, call)
    s, live = out.stats, call["weight"] != 0
    live[3] = False
    z = call["logits"][live]
    exact, eager = z.double().log_softmax(1), z.log_softmax(1)
    chosen = exact.exp().gather(1, _top(call)[live][:, None])[:, 0]
    for name, actual, truth, base in (
        ("lse", s.lse, z.double().logsumexp(1), z.logsumexp(1)),
        ("max_prob", s.max_prob, exact.exp().amax(1), eager.exp().amax(1)),
        ("entropy", s.entropy, -(exact.exp() * exact).sum(1), -(eager.exp() * eager).sum(1)),
        ("chosen", s.chosen_prob, chosen, chosen.float()),
    ):
        assert_within_budget(actual[live], truth, base, FORWARD, name)
    assert torch.equal(s.argmax[live], z.argmax(1))
    assert torch.equal(s.agreement[live], z.argmax(1) == _top(call)[live])
    assert torch.equal(s.max[live], z.amax(1))


def _top(call: dict[str, Any]) -> torch.Tensor:
    weak = call["weak"]
    if isinstance(weak, torch.Tensor):
        return weak.argmax(1) if weak.is_floating_point() else weak.clamp_min(0)
    best = torch.where(weak.ids >= 0, weak.probs, -1.0).argmax(1, keepdim=True)
    return weak.ids.gather(1, best)[:, 0].clamp_min(0)


def test_same_inputs_give_the_same_bits(backend: str) -> None:
    for kind in KINDS:
        call = sample(kind, 5, 31, **LATE)
        a, b = run_cross_entropy(backend, call), run_cross_entropy(backend, call)
        assert torch.equal(a[0].loss, b[0].loss) and torch.equal(a[1], b[1]), kind


@pytest.mark.parametrize("v", [2, 1003])
@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
def test_thread_count_does_not_change_a_bit(isa: str, v: int, dtype: torch.dtype) -> None:
    before = torch.get_num_threads()
    try:
        for kind in KINDS:
            call = sample(kind, 257, v, dtype, rule="median")
            results = []
            for threads in (1, 2):
                torch.set_num_threads(threads)
                results.append(run_cross_entropy("cpp", call))
            (a, ga, wa), (b, gb, wb) = results
            assert torch.equal(a.loss, b.loss) and torch.equal(ga, gb) and torch.equal(wa, wb), kind
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "dense"])
@pytest.mark.parametrize("dtype", [FP32, BF16, torch.float16], ids=str)
def test_large_gradient_in_a_buffer_of_its_own(isa: str, dtype: torch.dtype, soft: bool) -> None:
    """It is written past the caches, from the first aligned class of each row."""
    n, v = 200, 50257
    g = torch.Generator().manual_seed(0)
    z = torch.randn(n, v, generator=g).mul_(3).to(dtype)
    weak = torch.rand(n, v, generator=g).to(dtype) if soft else torch.arange(n)
    assert z.nbytes > 2**24, "smaller gradients are stored as usual"
    grads = []
    for inplace in (False, True):
        leaf = z.clone().requires_grad_()
        with use_backend("cpp"):
            w2s_fast.cross_entropy(leaf * 1.0, weak, inplace=inplace).backward()
        grads.append(leaf.grad)
    assert torch.equal(*grads)
