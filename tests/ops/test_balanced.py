"""Balanced hard labels: exact counts, the largest sum of logits, and the loss on top."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

import w2s_fast
from w2s_fast.ops import dispatch, use_backend
from w2s_fast.ops.balanced import device as balanced_device
from w2s_fast.ops.balanced.api import balanced_bias, class_counts
from w2s_fast.ops.cross_entropy.api import cross_entropy
from w2s_fast.ops.quantile.api import quantile
from w2s_fast.ops.results import WeakLossOut
from w2s_fast.ops.weak_loss import batch_threshold, weak_loss
from w2s_fast.testing import assert_cross_entropy

SHAPES = [(1, 3), (9, 3), (40, 3), (40, 5), (75, 4), (200, 10), (64, 64)]


def problem(n: int, k: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(1000 * k + n + seed)
    prior = torch.rand(k, generator=g)
    return torch.randn(n, k, generator=g) * 2, prior / prior.sum()


def counts_of(hard: Tensor, k: int) -> Tensor:
    return torch.bincount(hard, minlength=k)


def score(z: Tensor, hard: Tensor) -> float:
    return float(z.double().gather(1, hard[:, None]).sum())


def bound(z: Tensor, counts: Tensor, bias: Tensor) -> float:
    """No labeling with these counts has a larger sum of logits, whatever the bias (duality)."""
    y = z.double() + bias.double()
    return float(y.amax(1).sum() - (counts * bias.double()).sum())


@pytest.mark.parametrize(("n", "k"), SHAPES)
@pytest.mark.parametrize("solver", ["cpp", "ref"])
def test_optimal_with_exact_counts(solver: str, n: int, k: int) -> None:
    if why := dispatch.missing(solver):
        pytest.skip(f"backend {solver} is missing: {why}")
    z, prior = problem(n, k)
    with use_backend(solver):
        bias, hard = balanced_bias(z, prior)
    counts = class_counts(prior, torch.tensor(n))
    assert int(counts.sum()) == n and (counts - n * prior).abs().max() < 1
    assert torch.equal(counts_of(hard, k), counts)
    assert score(z, hard) == pytest.approx(bound(z, counts, bias), abs=1e-4)
    # Its own argmax under the bias, and with room: the bias is not at the edge of a decision.
    assert torch.equal((z + bias).argmax(1), hard)
    assert bias.dtype == torch.float32 and abs(float(bias.mean())) < 1e-4


def test_no_labeling_is_better() -> None:
    """All labelings of seven rows, one by one."""
    z, prior = problem(7, 3)
    counts = class_counts(prior, torch.tensor(7))
    every = torch.cartesian_prod(*[torch.arange(3)] * 7)
    fits = (torch.nn.functional.one_hot(every, 3).sum(1) == counts).all(1)
    sums = z.double()[torch.arange(7), every[fits]].sum(1)
    assert torch.equal(balanced_bias(z, prior).hard, every[fits][sums.argmax()])


def test_equals_the_assignment_problem() -> None:
    """A column for every place in a class."""
    z, prior = problem(150, 7)
    counts = class_counts(prior, torch.tensor(150))
    columns = torch.arange(7).repeat_interleave(counts)
    _, place = linear_sum_assignment(-z.double()[:, columns].numpy())
    assert torch.equal(balanced_bias(z, prior).hard, columns[torch.from_numpy(place)])


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("solver", ["cpp", "ref"])
def test_infinite_logits_leave_the_others_their_digits(solver: str, seed: int) -> None:
    """As few impossible labels as can be, and then the largest sum of the finite logits."""
    if why := dispatch.missing(solver):
        pytest.skip(f"backend {solver} is missing: {why}")
    z, prior = problem(30, 4, seed)
    hidden = torch.rand(30, 4, generator=torch.Generator().manual_seed(seed)) < 0.4
    z = torch.where(hidden, -math.inf, z)
    counts = class_counts(prior, torch.tensor(30))
    columns = torch.arange(4).repeat_interleave(counts)
    _, place = linear_sum_assignment(-z.double().nan_to_num(neginf=-1e4)[:, columns].numpy())
    with use_backend(solver):
        labels = balanced_bias(z, prior).hard
    best, ours = (z.gather(1, h[:, None])[:, 0] for h in (columns[torch.from_numpy(place)], labels))
    assert torch.equal(counts_of(labels, 4), counts)
    assert ours.isinf().sum() == best.isinf().sum()
    sums = [float(x[x.isfinite()].double().sum()) for x in (ours, best)]
    assert sums[0] == pytest.approx(sums[1], abs=1e-4)


@pytest.mark.parametrize("solver", ["cpp", "ref"])
def test_no_sum_of_finite_logits_outweighs_an_infinite_one(solver: str) -> None:
    """One impossible label would save three rows ten each."""
    if why := dispatch.missing(solver):
        pytest.skip(f"backend {solver} is missing: {why}")
    no = -math.inf
    z = torch.tensor([[no, -10.0, no], [no, 0.0, -10.0], [-10.0, -10.0, 0.0]])
    with use_backend(solver):
        assert balanced_bias(z, torch.ones(3)).hard.tolist() == [1, 2, 0]


@pytest.mark.parametrize("seed", range(6))
def test_solvers_agree(seed: int) -> None:
    """Core, numpy and the fixed number of steps find the same labels where nothing ties."""
    z, prior = problem(120, 3 + seed, seed)
    keep = torch.rand(120, generator=torch.Generator().manual_seed(seed)) < 0.7
    prior[seed % 3] = 0.0
    answers = {}
    for solver in ("cpp", "ref"):
        if not dispatch.missing(solver):
            with use_backend(solver):
                answers[solver] = balanced_bias(z, prior, keep=keep)
    counts = class_counts(prior, keep.sum())
    answers["device"] = balanced_device.solve(z, counts, keep)
    expected = answers["ref"][1]
    for name, (bias, hard) in answers.items():
        assert torch.equal(hard[keep], expected[keep]), name
        assert torch.equal((z + bias).argmax(1)[keep], expected[keep]), name
    if "cpp" in answers:
        assert torch.allclose(answers["cpp"][0], answers["ref"][0], atol=1e-5)


@pytest.mark.parametrize("counts", [(0, 30, 0), (30, 0, 0), (0, 12, 18)])
def test_empty_and_full_classes_leave_a_margin(counts: tuple[int, ...]) -> None:
    """Nothing bounds a bias from one side there: it must not stop where a row ties."""
    z, _ = problem(30, 3)
    target = torch.tensor(counts)
    answers = {"device": balanced_device.solve(z, target, torch.ones(30, dtype=torch.bool))}
    for solver in ("cpp", "ref"):
        if not dispatch.missing(solver):
            with use_backend(solver):
                answers[solver] = balanced_bias(z, target.float())
    for name, (bias, hard) in answers.items():
        assert torch.equal(counts_of(hard, 3), target), name
        top = (z + bias).topk(2, 1)
        assert torch.equal(top.indices[:, 0], hard), name
        assert (top.values[:, 0] - top.values[:, 1]).min() > 1e-4, name


def test_the_bias_keeps_the_largest_margin() -> None:
    """Three points on a line each way: the bias lies in the middle of what is possible."""
    z = torch.tensor([[4.0, 0.0, -9.0], [1.0, 0.0, -9.0], [-9.0, 0.0, 2.0]])
    for solver in ("cpp", "ref"):
        if not dispatch.missing(solver):
            with use_backend(solver):
                bias, hard = balanced_bias(z, torch.tensor([1.0, 1.0, 1.0]))
            assert hard.tolist() == [0, 1, 2]
            y = z + bias
            top = y.topk(2, 1).values
            # Rows 0 and 1 lie 4 and 1 above class 1: the best common margin is half their gap.
            assert float((top[:, 0] - top[:, 1]).min()) == pytest.approx(1.5, abs=1e-5)


@pytest.mark.parametrize("kind", ["equal", "rounded"])
@pytest.mark.parametrize("solver", ["cpp", "ref", "device"])
def test_ties_are_split_exactly(solver: str, kind: str) -> None:
    z, prior = problem(90, 4)
    z = torch.zeros_like(z) if kind == "equal" else z.round()
    counts = class_counts(prior, torch.tensor(90))
    if solver == "device":
        bias, hard = balanced_device.solve(z, counts, torch.ones(90, dtype=torch.bool))
    else:
        if why := dispatch.missing(solver):
            pytest.skip(f"backend {solver} is missing: {why}")
        with use_backend(solver):
            bias, hard = balanced_bias(z, prior)
        assert score(z, hard) == pytest.approx(bound(z, counts, bias), abs=1e-4)
        own = (z + bias).gather(1, hard[:, None])[:, 0]
        assert ((z + bias).amax(1) - own).max() < 1e-5  # ties apart, the argmax
    assert torch.equal(counts_of(hard, 4), counts)


def test_two_classes_are_the_quantile_rule() -> None:
    for seed in range(5):
        z, prior = problem(31, 2, seed)
        at = quantile(z[:, 0] - z[:, 1], prior[1].double())
        bias, hard = balanced_bias(z, prior)
        assert torch.equal(hard, torch.where(z[:, 0] - z[:, 1] >= at, 0, 1))
        assert int(hard.sum()) == math.ceil(float(prior[1]) * 30)
        assert float(bias[1] - bias[0]) == pytest.approx(float(at), abs=1e-6)


def test_counts_round_by_largest_remainder() -> None:
    n = torch.tensor(10)
    assert class_counts(torch.tensor([1.0, 1.0, 1.0]), n).tolist() == [4, 3, 3]
    assert class_counts(torch.tensor([0.26, 0.37, 0.37]), n).tolist() == [2, 4, 4]
    assert class_counts(torch.tensor([0.0, 3.0, 0.0]), n).tolist() == [0, 10, 0]
    assert class_counts(torch.zeros(3), n).tolist() == [4, 3, 3]


def test_infinite_and_nan_logits(backend: str) -> None:
    z, _ = problem(20, 3)
    z[:, 2] = -math.inf  # masked class, which the prior does not ask for
    z[4] = math.nan
    prior = torch.tensor([0.5, 0.5, 0.0])
    with use_backend(backend):
        _, hard = balanced_bias(z, prior)
    rest = torch.arange(20) != 4
    assert counts_of(hard[rest], 3).tolist() == [10, 9, 0]


def test_nothing_kept_and_no_rows(backend: str) -> None:
    z, prior = problem(6, 3)
    with use_backend(backend):
        bias, hard = balanced_bias(z, prior, keep=torch.zeros(6, dtype=torch.bool))
        assert bias.isfinite().all() and hard.shape == (6,)
        assert balanced_bias(z[:0], prior).hard.shape == (0,)
    none = torch.zeros(6, dtype=torch.bool)
    bias, hard = balanced_device.solve(z, class_counts(prior, none.sum()), none)
    assert bias.isfinite().all()


@pytest.mark.parametrize(
    ("z", "prior", "keep", "message"),
    [
        (torch.zeros(3), torch.ones(3), None, "shape \\(3,\\)"),
        (torch.zeros(3, 3).long(), torch.ones(3), None, "torch.int64"),
        (torch.zeros(3, 3), torch.ones(2), None, "prior has shape \\(2,\\)"),
        (torch.zeros(3, 3), torch.tensor([1.0, -1.0, 1.0]), None, "non-negative"),
        (torch.zeros(3, 3), torch.tensor([1.0, math.nan, 1.0]), None, "nan"),
        (torch.zeros(3, 3), torch.zeros(3), None, "not all 0"),
        (torch.zeros(3, 3), torch.ones(3), torch.ones(3), "keep has shape"),
    ],
)
def test_bad_input_names_the_value(
    z: Tensor, prior: Tensor, keep: Tensor | None, message: str
) -> None:
    with pytest.raises(w2s_fast.W2SError, match=message):
        balanced_bias(z, prior, keep=keep)


def test_opcheck() -> None:
    z, prior = problem(9, 3)
    torch.library.opcheck(torch.ops.w2s_fast.balanced_bias, (z, prior, None))


def weak_labels(kind: str, n: int, k: int) -> Tensor | w2s_fast.SparseTargets:
    g = torch.Generator().manual_seed(n)
    soft = torch.randn(n, k, generator=g).mul(2).softmax(1)
    if kind == "hard":
        return soft.argmax(1)
    if kind == "dense":
        return soft
    probs, ids = soft.topk(2)
    return w2s_fast.SparseTargets(ids, probs, 1 - probs.sum(1))


@pytest.mark.parametrize("kind", ["hard", "dense", "sparse"])
def test_loss_with_rule_prior(backend: str, kind: str) -> None:
    """Value, gradients and hard classes of the loss, by the definition in fp64."""
    z, _ = problem(23, 5)
    weight = torch.rand(23, generator=torch.Generator().manual_seed(1)) + 0.1
    weight[3] = 0.0
    weak = weak_labels(kind, 23, 5)
    fixed = {"weak": weak, "rule": "prior", "weight": weight, "aux": 0.4, "reduction": "mean"}

    def check(**extra: object) -> WeakLossOut:
        return assert_cross_entropy(backend, {"logits": z.clone(), **fixed, **extra})

    out = check()
    assert out.stats is not None and out.stats.threshold.shape == (5,)
    counted = weight != 0
    # The residual of sparse labels belongs to no class: the prior is that of the top-k mass.
    hard = counts_of(out.stats.hard_class[counted], 5)
    assert not torch.equal(hard, counts_of(z.argmax(1)[counted], 5))
    check(reduction="none", focal_gamma=1.5)
    check(smoothing=0.1, max_confidence=0.9)
    check(inplace=True)
    # Through a bias from elsewhere, as parts of a batch use it.
    bias = batch_threshold(z, weak, "prior", weight=weight)
    again = check(threshold=bias)
    assert again.stats is not None
    assert torch.equal(again.stats.hard_class[counted], out.stats.hard_class[counted])


def test_parts_of_a_batch_add_up(backend: str) -> None:
    z, _ = problem(24, 4)
    weak = weak_labels("dense", 24, 4)
    with use_backend(backend):
        whole = weak_loss(z, weak, aux=0.5, rule="prior").loss
        bias = batch_threshold(z, weak, "prior")
        parts = [
            weak_loss(z[i : i + 8], weak[i : i + 8], aux=0.5, rule="prior", threshold=bias).loss
            for i in (0, 8, 16)
        ]
    assert float(sum(parts)) == pytest.approx(float(whole), rel=1e-6)


def test_public_rule_compile_and_refusals(backend: str) -> None:
    z, _ = problem(12, 3)
    weak = weak_labels("dense", 12, 3)

    def step(z: Tensor) -> Tensor:
        return cross_entropy(z, weak, aux=0.5, threshold="prior")

    with use_backend(backend):
        loss, stats = cross_entropy(z, weak, aux=0.5, threshold="prior", return_stats=True)
        counts = class_counts(weak.mean(0), torch.tensor(12))
        assert torch.equal(counts_of(stats.hard_class, 3), counts)
        assert float(torch.compile(step, backend="aot_eager", fullgraph=True)(z)) == pytest.approx(
            float(loss), rel=1e-6
        )
        with pytest.raises(w2s_fast.W2SError, match=r"threshold has shape \(\)"):
            weak_loss(z, weak, aux=0.5, rule="prior", threshold=torch.tensor(0.5))
        with pytest.raises(w2s_fast.W2SError, match="2 to 64 classes"):
            cross_entropy(torch.zeros(2, 65), torch.tensor([0, 1]), aux=0.5, threshold="prior")
