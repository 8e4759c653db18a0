"""Teachers as sums of heads against full fp64 logits: every divergence, mode and option."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.teacher_cases import (
    BF16,
    CHUNKS,
    FP16,
    FP32,
    FP64,
    WHOLE,
    V,
    check,
    run,
    sample,
    teacher_terms,
)  # fmt: skip
from torch import Tensor

from w2s_fast.ops.fused_linear.teacher.divergences import DIVERGENCES
from w2s_fast.testing import BACKWARD, FORWARD, assert_within_budget

OTHERS = [d for d in DIVERGENCES if d != "cross_entropy"]
LATE = {"aux": 0.4, "threshold": "median"}


@pytest.mark.parametrize("memory_mib", [WHOLE, CHUNKS], ids=["whole", "chunks"])
@pytest.mark.parametrize("gate", [{}, {"aux": 0.4}, LATE, {"aux": 0.4, "threshold": 0.2}], ids=str)
def test_cross_entropy(backend: str, gate: dict[str, Any], memory_mib: float) -> None:
    check(backend, sample(temperature=1.5, memory_mib=memory_mib, **gate), 1.5)


@pytest.mark.parametrize("gate", [{}, LATE], ids=str)
@pytest.mark.parametrize("divergence", OTHERS)
def test_divergence(backend: str, divergence: str, gate: dict[str, Any]) -> None:
    check(backend, sample(divergence=divergence, temperature=2.0, memory_mib=CHUNKS, **gate), 1.5)


@pytest.mark.parametrize("learned", [False, True], ids=["fixed", "learned"])
@pytest.mark.parametrize("dtype", [BF16, FP16, FP64], ids=str)
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_dtypes(divergence: str, dtype: torch.dtype, learned: bool) -> None:
    options = {"divergence": divergence, "learned": learned, "temperature": 3.0}
    check("cpp", sample(dtype, 40, 131, memory_mib=11 * 131 * 8 / 2**20, **options))


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_gradient_of_scales(divergence: str) -> None:
    for extra in ({}, {"reduction": "sum"}, LATE, {"memory_mib": CHUNKS, "temperature": 2.0}):
        options = {"divergence": divergence, "temperature": 3.0, **extra}
        check("cpp", sample(FP32, 24, 61, learned=True, **options), 0.7)
    options |= {"reduction": "none", **LATE}
    check("cpp", sample(FP32, 24, 61, learned=True, **options), torch.linspace(-1, 2, 24))


@pytest.mark.parametrize("divergence", ["cross_entropy", "jsd"])
@pytest.mark.parametrize(
    "extra",
    [{"softcap": 3.0}, {"z_loss": 0.02}, {"reduction": "sum"}, {"reduction": "none"}],
    ids=lambda e: next(iter(e)),
)
def test_terms_of_the_loss(divergence: str, extra: dict[str, Any]) -> None:
    for learned in (False, True):
        call = sample(FP32, 24, 61, divergence=divergence, learned=learned, memory_mib=4 * CHUNKS)
        check("cpp", call | extra)


def test_smoothing() -> None:
    for learned in (False, True):
        check("cpp", sample(FP32, 24, 61, smoothing=0.2, learned=learned, memory_mib=0.01, **LATE))


@pytest.mark.parametrize("divergence", ["cross_entropy", "reverse_kl"])
def test_two_classes(backend: str, divergence: str) -> None:
    """The threshold is then a quantile of margins at the mean of the target."""
    for memory_mib in (WHOLE, CHUNKS / 8):
        for threshold in (None, "median", 0.3):
            call = sample(v=2, divergence=divergence, memory_mib=memory_mib, aux=0.4)
            del call["bias"]  # its gradient is a difference of equals
            check(backend, call | {"threshold": threshold})


def test_threshold_is_that_of_dense_labels() -> None:
    """Two classes and the prior: gates from a lazy target equal those of its probabilities."""
    from w2s_fast.ops.fused_linear.cross_entropy import linear_cross_entropy
    from w2s_fast.ops.fused_linear.teacher.reference import teacher_log_probs

    call = sample(n=40, v=2, memory_mib=CHUNKS / 8)
    parts = {k: call[k].nan_to_num(0.0) for k in ("hidden", "head", "bias", "weight")}
    teacher = [t._replace(hidden=t.hidden.nan_to_num(0.0)) for t in call["teacher"]]
    q = teacher_log_probs(teacher, FP32, 1.0).exp()
    for divergence in ("cross_entropy", "hellinger"):
        _, ours = linear_cross_entropy(
            **parts, teacher=teacher, aux=0.3, divergence=divergence, return_stats=True
        )
        _, dense = linear_cross_entropy(**parts, weak=q, aux=0.3, return_stats=True)
        torch.testing.assert_close(ours.threshold, dense.threshold)
        assert torch.equal(ours.hard_class, dense.hard_class)


def test_statistics_are_those_of_dense_labels() -> None:
    from w2s_fast.ops.fused_linear.cross_entropy import linear_cross_entropy
    from w2s_fast.ops.fused_linear.teacher.reference import teacher_log_probs

    call = sample()
    parts = {k: call[k] for k in ("hidden", "head", "bias", "weight")}
    q = teacher_log_probs(call["teacher"], FP32, 1.0).exp().nan_to_num(0.0)
    _, dense = linear_cross_entropy(**parts, weak=q, return_stats=True)
    counted = call["weight"] != 0
    for divergence in ("cross_entropy", "jsd"):
        _, ours = linear_cross_entropy(
            **parts, teacher=call["teacher"], divergence=divergence, return_stats=True
        )
        for name in ("lse", "max", "argmax", "max_prob", "chosen_prob", "entropy", "agreement"):
            actual, expected = (getattr(s, name)[counted] for s in (ours, dense))
            torch.testing.assert_close(actual, expected, msg=name)


def test_positions_and_sequences() -> None:
    """States of the teacher are (B, T, D), or one row for each of the positions."""
    from w2s_fast.ops.fused_linear.cross_entropy import linear_cross_entropy

    call = sample(n=12)
    hidden, head = call["hidden"].nan_to_num(0.0), call["head"]
    flat = [t._replace(hidden=t.hidden.nan_to_num(0.0)) for t in call["teacher"]]
    deep = [t._replace(hidden=t.hidden.view(3, 4, -1)) for t in flat]
    expected = linear_cross_entropy(hidden, head, teacher=flat, weight=call["weight"])
    actual = linear_cross_entropy(
        hidden.view(3, 4, -1), head, teacher=deep, weight=call["weight"].view(3, 4)
    )
    assert torch.equal(actual, expected)
    at = torch.tensor([2, 5, 7])
    some = [t._replace(hidden=t.hidden[at]) for t in flat]
    actual = linear_cross_entropy(hidden.view(3, 4, -1), head, teacher=some, positions=at)
    assert torch.equal(actual, linear_cross_entropy(hidden[at], head, teacher=some))


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_row_counts(divergence: str) -> None:
    for n in (0, 2):
        call = sample(n=n, divergence=divergence, learned=n == 0, memory_mib=CHUNKS, aux=0.4)
        if n:
            check("cpp", call)
        else:
            loss, _, grads = run("cpp", call)
            assert loss == 0
            assert all(not g.any() for g in grads.values())


def test_dtypes_of_teacher_and_student_may_differ() -> None:
    call = sample(FP32, teacher=teacher_terms(BF16))
    wide = [
        t._replace(
            hidden=t.hidden.float(),
            head=t.head.float(),
            bias=None if t.bias is None else t.bias.float(),
        )
        for t in call["teacher"]
    ]
    loss, _, grads = run("cpp", call)
    expected, _, others = run("cpp", call | {"teacher": wide})
    torch.testing.assert_close(loss, expected, rtol=2e-2, atol=0)
    torch.testing.assert_close(grads["head"], others["head"], rtol=0.1, atol=2e-2)


# Values at the edges.
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_huge_logits(divergence: str) -> None:
    """Logits of 1e4: differences of logarithms, no overflow but where a divergence is infinite."""
    call = sample(divergence=divergence)
    for part in ("hidden", "weight"):
        call[part] = call[part].nan_to_num(0.0)
    call["teacher"] = [t._replace(hidden=1e3 * t.hidden.nan_to_num(0.0)) for t in call["teacher"]]
    call["hidden"] = 1e3 * call["hidden"]
    loss, _, grads = run("cpp", call)
    if divergence == "pearson":  # p^2 / q overflows: its value is beyond fp32
        return
    truth = check("cpp", call)
    assert loss.isfinite() and truth is not None
    assert all(g.isfinite().all() for g in grads.values())


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_class_that_both_rule_out(divergence: str) -> None:
    """A bias of -inf on both sides: probability 0, no part of any divergence."""
    call = sample(divergence=divergence, learned=True)
    call["bias"][3] = -torch.inf
    term = call["teacher"][0]
    bias = torch.zeros(V)
    bias[3] = -torch.inf
    call["teacher"] = [term._replace(bias=bias)]
    loss, _, grads = run("cpp", call)
    shorter = {**call, "head": _without(call["head"]), "bias": _without(call["bias"])}
    shorter["teacher"] = [term._replace(head=_without(term.head))]
    expected, _, others = run("cpp", shorter)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(_without(grads["head"]), others["head"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(grads["scales"], others["scales"], rtol=1e-5, atol=1e-6)


def _without(t: Tensor) -> Tensor:
    return torch.cat([t[:3], t[4:]])


@pytest.mark.parametrize("divergence", ["cross_entropy", "forward_kl", "reverse_kl", "jsd"])
def test_nan_stays_in_its_row(divergence: str) -> None:
    call = sample(divergence=divergence, reduction="none", memory_mib=CHUNKS)
    call["weight"][1] = 1.0
    call["hidden"][1] = 0.0
    loss, _, grads = run("cpp", call)  # the teacher's state in row 1 is NaN
    assert loss.isnan().nonzero().flatten().tolist() == [1]
    assert grads["hidden"].isnan().any(1).nonzero().flatten().tolist() == [1]


# Relations that hold whatever the numbers.
def test_forward_kl_is_cross_entropy_minus_entropy() -> None:
    from w2s_fast.ops.fused_linear.teacher.reference import teacher_log_probs

    call = sample(reduction="none")
    log_q = teacher_log_probs(call["teacher"], FP32, 1.0)
    entropy = -(log_q.exp() * log_q).sum(1).nan_to_num(0.0) * call["weight"]
    ce, _, one = run("cpp", call)
    kl, _, two = run("cpp", call | {"divergence": "forward_kl"})
    torch.testing.assert_close(kl, ce - entropy)
    assert_within_budget(two["head"], one["head"].double(), one["head"], BACKWARD)


@pytest.mark.parametrize("divergence", OTHERS)
def test_zero_where_the_student_is_the_teacher(divergence: str) -> None:
    call = sample(divergence=divergence)
    call["hidden"] = call["hidden"].nan_to_num(0.0)
    call["teacher"] = [(1.0, call["hidden"], call["head"], call["bias"])]
    loss, _, grads = run_plain(call)
    assert float(loss.abs()) < 1e-6
    if divergence != "total_variation":  # which has no derivative there
        assert float(grads.abs().max()) < 1e-6


def run_plain(call: dict[str, Any]) -> tuple[Tensor, None, Tensor]:
    from w2s_fast.ops.fused_linear.cross_entropy import linear_cross_entropy

    head = call["head"].clone().requires_grad_()
    loss = linear_cross_entropy(**(call | {"head": head}))
    loss.backward()
    return loss.detach(), None, head.grad


def test_jsd_tends_to_both_kullback_leibler_divergences() -> None:
    call = sample(FP64, reduction="sum")
    for beta, divergence in ((1e-9, "forward_kl"), (1 - 1e-9, "reverse_kl")):
        limit = run("ref", call | {"divergence": divergence})[0]
        jsd = run("ref", call | {"divergence": "jsd", "beta": beta})[0] / min(beta, 1 - beta)
        torch.testing.assert_close(jsd, limit, rtol=1e-4, atol=0)


def test_scales_are_linear_in_the_logits() -> None:
    """Two terms of one model are one with the sum of scales; T divides all scales."""
    call = sample()
    scale, *rest = call["teacher"][0]
    expected = run("cpp", call | {"teacher": [call["teacher"][0]]})[0]
    halves = [call["teacher"][0]._replace(scale=float(scale) * share) for share in (0.25, 0.75)]
    for teacher, temperature in ((halves, 1.0), ([(2 * float(scale), *rest)], 2.0)):
        changed = call | {"teacher": [*map(_term, teacher)], "temperature": temperature}
        assert_within_budget(run("cpp", changed)[0], expected.double(), expected, FORWARD)


def _term(values: Any) -> Any:
    from w2s_fast import TeacherHead

    return TeacherHead(*values)


@pytest.mark.parametrize("divergence", ["cross_entropy", "forward_kl"])
def test_class_that_only_the_student_rules_out(divergence: str) -> None:
    """Infinite loss with a finite gradient; a self-target of 1 removes the teacher's part."""
    call = sample(divergence=divergence, reduction="none")
    call["bias"][3] = -torch.inf
    counted = call["weight"] != 0
    loss, _, grads = run("cpp", call)
    assert (loss[counted] == torch.inf).all()
    assert grads["hidden"].isfinite().all()
    loss, stats, grads = run("cpp", call | {"aux": 1.0})
    expected = -stats.max_prob.log() * call["weight"]
    torch.testing.assert_close(loss[counted], expected[counted])
    assert grads["hidden"].isfinite().all()
