"""Inputs at the edge, of every loss: labels and weights that are wrong, and rows that do not count.

A call is a table entry: a function of logits, weak labels and weights. New losses join by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.loss_cases import differentiate, policy_loss
from torch import Tensor

import w2s_fast
from w2s_fast import SparseTargets, W2SError
from w2s_fast.losses import LOSSES, make_loss
from w2s_fast.losses.conflict import ExplicitConflict
from w2s_fast.losses.distillation import DISTILLATIONS, make_distillation
from w2s_fast.losses.features import FeatureDistillation
from w2s_fast.losses.pairwise import make_pair_loss
from w2s_fast.losses.policy import POLICY_LOSSES, make_policy_loss
from w2s_fast.losses.preference import PREFERENCES

NAN, INF = float("nan"), float("inf")
TWO_ROWS = 4e-5  # MiB: a chunk of five fp32 logits a row
FRAC = 0.3
N = 4
SPECS = (
    *LOSSES,
    "xent:hard=true",
    "product:beta=0",
    "product:alpha=0.5,beta=2",
    "logconf_eleuther:balance=true",
    "gce:q=1",
    "reverse_ce:forward_coef=0.5",
    "entropy_min:aux_coef=0",
    "evidential:kl=0",
)
PAIRS = (
    *(name for name in PREFERENCES if name not in ("kto", "bradley_terry")),
    *(f"{loss}@dpo" for loss in ("xent", "gce", "logconf_eleuther:balance=true")),
    *(f"xent@{name}" for name in PREFERENCES if name not in ("kto", "bradley_terry")),
)
TEACHERS = (
    *(name for name in DISTILLATIONS if name != "reverse_kl"),
    *(f"reverse_kl:support={name}" for name in ("tail", "renormalised", "truncated")),
)
Call = Callable[..., tuple[Tensor, Tensor]]


def _classes(spec: str) -> int:
    return 2 if "balance" in spec else 3


def _run(spec: str, logits: Tensor, weak: Tensor, weight: Tensor | None = None) -> Any:
    """Value and gradient of a loss of class logits or, by its dimensions, of answers."""
    loss = make_loss(spec) if logits.dim() == 2 else make_pair_loss(spec)
    state = loss.init_state()
    return differentiate(
        lambda z: loss(z, weak, weight=weight, step_frac=FRAC, state=state).loss_sum, logits
    )


def _case(spec: str) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(3)
    c = _classes(spec)
    return torch.randn(N, c, generator=g), torch.randn(N, c, generator=g).softmax(1)


def _answers() -> Tensor:
    g = torch.Generator().manual_seed(4)
    logp = -5 * torch.rand(N, 2, 2, generator=g) - 1
    rest = torch.tensor([3.0, 0.2]).expand(N, 2, 2)
    return torch.cat([logp, rest], 2)


def _broken(logits: Tensor) -> Tensor:
    """Row 2 as NaN, but for the lengths of answers."""
    out = logits.clone()
    out[2, ..., :2] = NAN
    out[2, ..., 3:] = NAN
    return out


def _inputs() -> Iterator[tuple[str, Tensor, int]]:
    for spec in SPECS:
        yield spec, _case(spec)[0], _classes(spec)
    for spec in PAIRS:
        yield spec, _answers(), 2


ALL = [pytest.param(*case, id=case[0]) for case in _inputs()]


@pytest.mark.parametrize(("spec", "logits", "classes"), ALL)
def test_a_label_outside_the_classes_is_an_error(spec: str, logits: Tensor, classes: int) -> None:
    for wrong in (-1, -5, classes, 1000):
        with pytest.raises(W2SError, match=rf"{wrong}\b.*expected 0\.\.{classes - 1}"):
            _run(spec, logits, torch.tensor([0, 1, wrong, -100]))


@pytest.mark.parametrize(("spec", "logits", "classes"), ALL)
def test_the_dtype_of_hard_labels(spec: str, logits: Tensor, classes: int) -> None:
    labels = torch.tensor([0, 1, 1, -100])
    for got, expected in zip(
        _run(spec, logits, labels.int()), _run(spec, logits, labels), strict=True
    ):
        assert torch.equal(got, expected)
    for wrong in (labels > 0, labels.to(torch.complex64)):
        with pytest.raises(W2SError, match=f"{wrong.dtype}.*expected"):
            _run(spec, logits, wrong)


@pytest.mark.parametrize(("spec", "logits", "classes"), ALL)
def test_labels_of_another_width_are_an_error(spec: str, logits: Tensor, classes: int) -> None:
    for wrong in (classes - 1, classes + 1):
        with pytest.raises(W2SError, match=rf"\({N}, {wrong}\).*expected.*\({N}, {classes}\)"):
            _run(spec, logits, torch.full((N, wrong), 1 / wrong))


@pytest.mark.parametrize(("spec", "logits", "classes"), ALL)
def test_a_negative_weight_is_an_error(spec: str, logits: Tensor, classes: int) -> None:
    for labels in (torch.tensor([0, 1, 1, -100]), torch.full((N, classes), 1 / classes)):
        for wrong in (-1.0, NAN):
            with pytest.raises(W2SError, match=r"weight\[2\] is (-1|nan).*expected"):
                _run(spec, logits, labels, torch.tensor([1.0, 1.0, wrong, 1.0]))


@pytest.mark.parametrize(("spec", "logits", "classes"), ALL)
def test_weights_whose_sum_overflows_are_an_error(spec: str, logits: Tensor, classes: int) -> None:
    """A loss divided by an infinite sum would be 0, and train nothing."""
    weight = torch.full((N,), 3e38)
    for labels in (torch.tensor([0, 1, 1, 0]), torch.full((N, classes), 1 / classes)):
        with pytest.raises(W2SError, match="weight sums to inf in float32; expected a finite sum"):
            _run(spec, logits, labels, weight)


@pytest.mark.parametrize(("spec", "logits", "classes"), ALL)
def test_nan_in_rows_that_do_not_count(spec: str, logits: Tensor, classes: int) -> None:
    """Row 2 is out, by its weight or its label."""
    labels, soft = torch.tensor([0, 1, 1, 0]), F.one_hot(torch.tensor([0, 1, 1, 0]), classes)
    ignored = torch.where(torch.arange(N) == 2, -100, labels)
    weight = torch.tensor([1.0, 2.0, 0.0, 0.5])
    broken = _broken(logits)
    soft_nan = soft.float()
    soft_nan[2] = NAN
    for weak, w in ((labels, weight), (ignored, None), (soft.float(), weight), (soft_nan, weight)):
        clean = soft.float() if weak is soft_nan else weak
        value, grad = _run(spec, logits, clean, w)
        got, got_grad = _run(spec, broken, weak, w)
        assert torch.equal(got, value) and value.isfinite()
        assert torch.equal(got_grad, grad) and not grad[2].any()


@pytest.mark.parametrize(("spec", "logits", "classes"), ALL)
def test_nan_in_rows_that_count_is_seen(spec: str, logits: Tensor, classes: int) -> None:
    broken = _broken(logits)
    for labels in (torch.tensor([0, 1, 1, 0]), torch.full((N, classes), 1 / classes)):
        value, _ = _run(spec, broken, labels)
        assert value.isnan() or spec == "window"


@pytest.mark.parametrize("spec", SPECS)
def test_nan_in_a_soft_label_is_seen(spec: str) -> None:
    """Also where the student is sure of its class, which closes the window."""
    logits, weak = _case(spec)
    for z in (logits, 60 * logits):
        for broken in (slice(-1, None), slice(None)):
            q = weak.clone()
            q[1, broken] = NAN
            assert _run(spec, z, q)[0].isnan()


@pytest.mark.parametrize("spec", [s for s in SPECS if s != "smoothing" and "balance" not in s])
@pytest.mark.parametrize("hard", [False, True])
def test_an_impossible_class_changes_nothing(spec: str, hard: bool) -> None:
    """A column of -inf without weak mass; smoothing gives it some, and its loss is infinite."""
    logits, weak = _case(spec)
    wide = torch.cat([logits, torch.full((N, 1), -INF)], 1)
    labels = weak.argmax(1) if hard else F.pad(weak, (0, 1))
    value, grad = _run(spec, logits, weak.argmax(1) if hard else weak)
    got, got_grad = _run(spec, wide, labels)
    assert got_grad.isfinite().all()
    if spec.startswith("evidential"):  # its prior has a share for every class
        assert got.isfinite()
        return
    torch.testing.assert_close(got, value)
    torch.testing.assert_close(got_grad, F.pad(grad, (0, 1)))


@pytest.mark.parametrize(("spec", "logits", "classes"), ALL)
def test_hard_labels_are_their_one_hot_form(spec: str, logits: Tensor, classes: int) -> None:
    labels = torch.tensor([0, 1, 1, 0])
    soft = F.one_hot(labels, classes).float()
    for sharp in (1, 60):  # also where the probability of a label underflows
        z = sharp * logits if logits.dim() == 2 else logits
        hard, one_hot = _run(spec, z, labels), _run(spec, z, soft)
        for got, expected in zip(hard, one_hot, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


def test_generalised_cross_entropy_of_a_probability_that_underflows() -> None:
    logits = torch.tensor([[0.0, -200.0], [0.0, 1.0]])
    for q in (0.001, 0.7):
        exact = _run(f"gce:q={q}", logits.double(), torch.tensor([1, 0]))
        for got, expected in zip(
            _run(f"gce:q={q}", logits, torch.tensor([1, 0])), exact, strict=True
        ):
            torch.testing.assert_close(got.double(), expected, rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize("spec", ["entropy_eleuther", "logconf"])
@pytest.mark.parametrize("hard", [False, True])
def test_a_coefficient_of_1_removes_an_impossible_label(spec: str, hard: bool) -> None:
    spec = f"{spec}:aux_coef=1" + (",warmup_steps=0" if spec == "entropy_eleuther" else "")
    logits = torch.tensor([[0.0, -INF], [0.0, 1.0]])
    weak = torch.tensor([1, 0]) if hard else torch.full((2, 2), 0.5)
    value, grad = _run(spec, logits, weak)
    expected = _run(spec, logits.double().clamp_min(-1e4), weak)
    torch.testing.assert_close(value.double(), expected[0])
    torch.testing.assert_close(grad.double(), expected[1])
    broken = torch.full((2, 2), NAN)
    broken[1] = 0.5
    for z, q in ((logits, broken), (torch.where(logits > 0, NAN, logits), weak)):
        value, grad = _run(spec, z, q)
        assert value.isnan() and grad.isnan().any(1).tolist() == [q is broken, z is not logits]


def test_product_with_all_mass_on_an_impossible_class() -> None:
    logits = torch.tensor([[0.0, -INF]])
    value, grad = _run("product", logits, torch.tensor([[0.0, 1.0]]))
    assert value == INF and torch.equal(grad, torch.tensor([[1.0, -1.0]]))


def test_features_of_rows_that_do_not_count() -> None:
    loss, weight = FeatureDistillation(), torch.tensor([1.0, 0.0, 2.0])
    logits, weak = torch.randn(3, 5), torch.randn(3, 5)

    def run(z: Tensor, weak: Tensor) -> tuple[Tensor, Tensor]:
        return differentiate(lambda z: loss(z, weak, weight=weight).loss_sum, z)

    value, grad = run(logits, weak)
    broken, broken_weak = logits.clone(), weak.clone()
    broken[1], broken_weak[1] = NAN, NAN
    for z, q in ((broken, weak), (logits, broken_weak), (broken, broken_weak)):
        got = run(z, q)
        assert torch.equal(got[0], value) and torch.equal(got[1], grad)
    with pytest.raises(W2SError, match=r"weight\[1\] is -1"):
        loss(logits, weak, weight=torch.tensor([1.0, -1.0, 1.0]))


def _rows(hidden: Tensor, head: Tensor, weak: Tensor) -> Tensor:
    rows = w2s_fast.linear_cross_entropy(hidden, head, weak, reduction="none")
    assert isinstance(rows, Tensor)
    return rows.sum()


def _teacher() -> SparseTargets:
    probs = torch.tensor([[0.6, 0.3], [0.2, 0.5], [0.9, 0.1], [0.4, 0.4]])
    ids = torch.tensor([[0, 2], [3, 1], [4, 0], [2, 1]])
    return SparseTargets(ids, probs, 1 - probs.sum(1))


@pytest.mark.parametrize("spec", TEACHERS)
def test_distillation_of_rows_that_do_not_count(spec: str) -> None:
    loss, weight = make_distillation(spec), torch.tensor([1.0, 2.0, 0.0, 0.5])
    g = torch.Generator().manual_seed(5)
    logits, teacher = torch.randn(N, 5, generator=g), _teacher()
    broken = logits.clone()
    broken[2] = NAN
    assert teacher.rest is not None
    probs, rest = teacher.probs.clone(), teacher.rest.clone()
    probs[2], rest[2] = NAN, NAN

    def run(z: Tensor, t: SparseTargets) -> tuple[Tensor, Tensor]:
        return differentiate(lambda z: loss(z, t, weight=weight).loss_sum, z)

    value, grad = run(logits, teacher)
    for z, t in ((broken, teacher), (logits, SparseTargets(teacher.ids, probs, rest))):
        got = run(z, t)
        assert torch.equal(got[0], value) and torch.equal(got[1], grad)
    with pytest.raises(W2SError, match=r"weight\[1\] is -1"):
        loss(logits, teacher, weight=torch.tensor([1.0, -1.0, 1.0, 1.0]))


@pytest.mark.parametrize("spec", TEACHERS)
def test_distillation_with_an_impossible_class(spec: str) -> None:
    loss, teacher = make_distillation(spec), _teacher()
    logits = torch.randn(N, 5, generator=torch.Generator().manual_seed(5))
    wide = torch.cat([logits, torch.full((N, 1), -INF)], 1)
    padded = SparseTargets(
        F.pad(teacher.ids, (0, 1), value=5), F.pad(teacher.probs, (0, 1)), teacher.rest
    )

    def run(z: Tensor, t: SparseTargets) -> tuple[Tensor, Tensor]:
        return differentiate(lambda z: loss(z, t).loss_sum, z)

    value, grad = run(logits, teacher)
    for t in (teacher, padded):
        got = run(wide, t)
        torch.testing.assert_close(got[0], value, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(got[1], F.pad(grad, (0, 1)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("spec", TEACHERS)
def test_distillation_names_a_class_that_does_not_exist(spec: str) -> None:
    loss, teacher = make_distillation(spec), _teacher()
    wrong = teacher._replace(ids=torch.where(teacher.ids == 4, 5, teacher.ids))
    with pytest.raises(W2SError, match=r"\[5, 0\] in row 2.*expected different classes 0\.\.4"):
        loss(torch.randn(N, 5), wrong)


LABELS = torch.tensor([1, 0, 4, 2])
HEADS: dict[str, Callable[..., Any]] = {
    "labels": lambda h, w, out: w2s_fast.linear_cross_entropy(
        h, w, torch.where(out, -100, LABELS), reduction="sum", memory_mib=TWO_ROWS
    ),
    "weights": lambda h, w, out: w2s_fast.linear_cross_entropy(
        h, w, LABELS, weight=(~out).float(), memory_mib=TWO_ROWS
    ),
    "rows": lambda h, w, out: _rows(h, w, torch.where(out, -100, LABELS)),
    "late": lambda h, w, out: w2s_fast.linear_cross_entropy(
        h, w, torch.where(out, -100, LABELS), aux=0.5, threshold="median", memory_mib=TWO_ROWS
    ),
    "one chunk": lambda h, w, out: w2s_fast.linear_cross_entropy(
        h, w, F.one_hot(LABELS, 5).float(), weight=(~out).float()
    ),
    "info_nce": lambda h, w, out: w2s_fast.info_nce(
        h, w, positives=LABELS, weight=(~out).float(), memory_mib=TWO_ROWS
    ),
    "info_nce normalize": lambda h, w, out: w2s_fast.info_nce(
        h, w, positives=torch.where(out, -100, LABELS), normalize=True
    ),
    "forward_kl": lambda h, w, out: (
        make_distillation("forward_kl").linear(h, w, _teacher(), weight=(~out).float()).loss_sum
    ),
    "jsd": lambda h, w, out: (
        make_distillation("jsd")
        .linear(h, w, _teacher(), weight=(~out).float(), memory_mib=TWO_ROWS)
        .loss_sum
    ),
}


@pytest.mark.parametrize("name", HEADS)
def test_hidden_states_of_rows_that_do_not_count(name: str) -> None:
    """Their NaN reaches neither loss nor the gradient of the head, which sums over all rows."""
    g = torch.Generator().manual_seed(6)
    hidden, head = torch.randn(N, 3, generator=g), torch.randn(5, 3, generator=g)
    out = torch.arange(N) == 2
    results = []
    for h in (hidden, torch.where(out.unsqueeze(1), NAN, hidden)):
        leaves = h.clone().requires_grad_(), head.clone().requires_grad_()
        loss = HEADS[name](*leaves, out)
        results.append((loss.detach(), *torch.autograd.grad(loss, leaves)))
    for clean, got in zip(*results, strict=True):
        assert torch.equal(got, clean) and clean.isfinite().all()


def test_true_classes_of_a_conflict() -> None:
    loss, logits = ExplicitConflict(), torch.randn(3, 2)
    weak = torch.tensor([0, 1, 1])
    loss(logits, weak, gold=torch.tensor([0, 1, -100]))
    for wrong in (2, -1):
        with pytest.raises(W2SError, match=rf"gold label \[{wrong}\] in row 1.*expected 0\.\.1"):
            loss(logits, weak, gold=torch.tensor([0, wrong, -100]))
    with pytest.raises(W2SError, match=r"gold has dtype torch\.bool.*gold\.long\(\)"):
        loss(logits, weak, gold=weak > 0)


@pytest.mark.parametrize("name", POLICY_LOSSES)
def test_a_ratio_that_overflows(name: str) -> None:
    """Where it is clipped or the advantage is 0, the token has a finite loss and no gradient."""
    loss = policy_loss(name)
    old = torch.tensor([[-1000.0, -1.0, -INF], [-1.0, -500.0, -1.0]])
    advantage = torch.tensor([[1.0, 0.5, 2.0], [0.5, 0.0, 1.0]])
    value, grad = differentiate(
        lambda logp: loss(logp, advantage, old=old).loss_sum, torch.full((2, 3), -0.5)
    )
    assert value.isfinite() and grad.isfinite().all()


@pytest.mark.parametrize("spec", SPECS)
def test_row_weights_are_constants(spec: str) -> None:
    logits, weak = _case(spec)
    loss, weight = make_loss(spec), torch.ones(N, requires_grad=True)
    for labels in (weak, weak.argmax(1)):
        value = loss(logits, labels, weight=weight, state=loss.init_state()).loss_sum
        assert not value.requires_grad


SPARSE = torch.rand(N, 3).to_sparse()
REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "fp8 scores": (
        lambda: w2s_fast.quantile(torch.rand(4).to(torch.float8_e5m2), 0.5),
        "float8_e5m2.*expected .* fp32, bf16, fp16 or fp64",
    ),
    **{
        f"sparse {name}": (f, f"{what} .*has layout torch.sparse_coo; expected a dense tensor")
        for name, (f, what) in {
            "logits": (lambda: w2s_fast.cross_entropy(SPARSE, LABELS), "logits"),
            "labels": (lambda: w2s_fast.cross_entropy(torch.rand(N, 3), SPARSE), "weak"),
            "rows": (lambda: make_loss("reverse_ce")(SPARSE, LABELS), "logits"),
            "head": (
                lambda: w2s_fast.linear_cross_entropy(torch.rand(N, 3), SPARSE, LABELS),
                "head",
            ),
            "queries": (lambda: w2s_fast.info_nce(SPARSE, torch.rand(N, 3)), "queries"),
            "scores": (lambda: w2s_fast.quantile(SPARSE, 0.5), "scores"),
            "balanced": (lambda: w2s_fast.balanced_bias(SPARSE, torch.ones(3)), "logits"),
        }.items()
    },
}


@pytest.mark.parametrize("name", REFUSED)
def test_inputs_that_torch_would_refuse(name: str) -> None:
    f, says = REFUSED[name]
    with pytest.raises(W2SError, match=says):
        f()


def test_an_ignored_label_of_more_than_64_bits() -> None:
    for wrong in (2**70, -(2**70), 2**63):
        with pytest.raises(W2SError, match=f"ignore_index is {wrong}; expected an integer of 64"):
            w2s_fast.cross_entropy(torch.rand(N, 3), LABELS, ignore_index=wrong)


@pytest.mark.parametrize(("spec", "logits", "classes"), ALL)
def test_hard_labels_of_another_length(spec: str, logits: Tensor, classes: int) -> None:
    for n in (N - 1, N + 1):
        with pytest.raises(W2SError, match=rf"weak.*\({n},\).*expected.*\({N},\)"):
            _run(spec, logits, torch.zeros(n, dtype=torch.int64))


@pytest.mark.parametrize("name", DISTILLATIONS)
def test_learned_weights_of_rows_that_do_not_count(name: str) -> None:
    """A teacher's NaN does not reach the gradient of a weight of 0."""
    z, w = torch.zeros(2, 3), torch.tensor([1.0, 0.0], requires_grad=True)
    teacher = SparseTargets(
        torch.tensor([[0], [1]]), torch.tensor([[0.6], [NAN]]), torch.tensor([0.4, NAN])
    )
    out = make_distillation(name)(z, teacher, weight=w)
    assert torch.autograd.grad(out.loss_sum, w)[0].isfinite().all()
    assert not out.count.requires_grad


def test_a_probability_far_below_the_others_is_exact() -> None:
    z = torch.tensor([[0.0, -14.0]], dtype=torch.float64)
    p = z.softmax(1)
    weak = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    expected = -p[0, 0].log() - (p * p.log()).sum()
    value = make_loss("entropy_min:aux_coef=1")(z, weak).loss_sum
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=0)


def test_compiled_losses_make_unknown_labels_nan() -> None:
    """A compiled graph does not look at values; a row of weight 0 stays out of it."""
    reverse = torch.compile(lambda z, y: make_loss("reverse_ce")(z, y).loss_sum, backend="eager")
    for wrong in (2, -1):
        assert reverse(torch.zeros(3, 2), torch.tensor([0, wrong, -100])).isnan()
    hard = torch.compile(
        lambda z, q, w: make_loss("hard_xent")(z, q, weight=w).loss_sum, backend="eager"
    )
    soft = torch.tensor([[0.6, 0.4], [NAN, 0.5], [0.2, 0.8]])
    assert hard(torch.zeros(3, 2), soft, torch.ones(3)).isnan()
    assert hard(torch.zeros(3, 2), soft, torch.tensor([1.0, 0, 1])).isfinite()


def test_a_large_ratio_is_exact() -> None:
    old, new = torch.tensor([-41.0]), torch.tensor([-1.0])
    value, grad = differentiate(
        lambda logp: make_policy_loss("ppo")(logp, torch.tensor([-1.0]), old=old).loss_sum, new
    )
    torch.testing.assert_close(value, torch.tensor(40.0).exp())
    torch.testing.assert_close(grad, torch.tensor([40.0]).exp())


def test_info_nce_of_queries_that_do_not_count() -> None:
    """Gradients of the documents alone, and normalized queries, of which one is no number."""
    g = torch.Generator().manual_seed(8)
    q, d = (torch.randn(3, 4, generator=g) for _ in range(2))
    w = torch.tensor([1.0, 0.0, 1.0])
    for symmetric in (False, True):  # with it a query of weight 0 is a negative of others
        got = w2s_fast.info_nce(q, d, weight=w, normalize=True, symmetric=symmetric)
        units = F.normalize(q), F.normalize(d)
        torch.testing.assert_close(got, w2s_fast.info_nce(*units, weight=w, symmetric=symmetric))
    q[1] = NAN
    for options in ({"weight": w}, {"positives": torch.tensor([0, -100, 2])}):
        grad = differentiate(lambda x, o=options: w2s_fast.info_nce(q, x, **o), d)[1]
        assert grad.isfinite().all()
    leaves = q.clone().requires_grad_(), d.clone().requires_grad_()
    rows = w2s_fast.info_nce(*leaves, reduction="none")  # out by its upstream gradient
    loss = torch.where(torch.arange(3) == 1, 0.0, rows).sum()
    assert all(g.isfinite().all() for g in torch.autograd.grad(loss, leaves))
    grad = differentiate(lambda x: w2s_fast.info_nce(x, d, weight=w, normalize=True), q)[1]
    assert grad.isfinite().all()


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_hidden_states_of_a_split_vocabulary(reduction: str, one_rank: Any) -> None:
    """Row 2 is out by its label, or by the upstream gradient of its loss."""
    hidden, head = torch.ones(N, 3), torch.ones(5, 3, requires_grad=True)
    hidden[2] = NAN
    hidden.requires_grad_()
    labels = [torch.tensor([1, 0, -100, 2]), torch.tensor([1, 0, 4, 2])]
    for ids in labels if reduction == "none" else labels[:1]:
        loss = w2s_fast.vocab_parallel_cross_entropy(
            hidden, head, ids, group=one_rank, reduction=reduction
        )
        if reduction == "none":
            loss = torch.where(torch.arange(N) == 2, 0.0, loss).sum()
        assert all(g.isfinite().all() for g in torch.autograd.grad(loss, (hidden, head)))
