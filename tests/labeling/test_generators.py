"""Generated functions: planted ones are recovered, and what is reported of them is honest."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from w2s_fast import W2SError
from w2s_fast.label_models import covered_rows, majority_vote
from w2s_fast.labeling import GENERATORS, Generator, Stumps, make_generator
from w2s_fast.labeling.abstention import cast_votes, choose_thresholds, f1_of_votes
from w2s_fast.labeling.generator import stratified_folds, take_diverse
from w2s_fast.labeling.logistic import fit_many
from w2s_fast.labeling.views import random_views

NAMES = tuple(GENERATORS)


def clouds(
    n: int, k: int = 2, dims: int = 20, distance: float = 3.0, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows around a center per class; only the first k features differ between classes."""
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % k
    x = torch.randn(n, dims, generator=g, dtype=torch.float64)
    x[torch.arange(n), y] += distance
    return x, y


def accuracy(votes: torch.Tensor, y: torch.Tensor) -> float:
    return float((votes == y[:, None])[votes >= 0].double().mean())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("k", [2, 3])
def test_functions_are_right_on_new_rows(name: str, k: int) -> None:
    x, y = clouds(120, k, distance=4.0)
    new_x, new_y = clouds(600, k, distance=4.0, seed=1)
    functions = make_generator(name).fit(x, y, k)
    votes = functions.votes(new_x)
    assert votes.shape == (600, len(functions.names)) and votes.dtype == torch.int64
    first = votes[:, 0]
    assert float((first == new_y)[first >= 0].double().mean()) > 0.85
    covered = covered_rows(votes)
    assert float(covered.double().mean()) > 0.6
    chosen = majority_vote(votes, k)[covered].argmax(1)
    assert float((chosen == new_y[covered]).double().mean()) > 0.85  # 1/k is chance


def test_planted_stump_is_recovered() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.rand(100, 30, generator=g)
    y = (x[:, 7] > 0.6).long()
    functions = Stumps(max_functions=1).fit(x, y, 2, feature_names=[f"word {i}" for i in range(30)])
    name, cut = functions.names[0].split(" > ")
    below, above = x[y == 0, 7].max(), x[y == 1, 7].min()
    assert name == "word 7" and below < float(cut) < above
    new = torch.rand(1000, 30, generator=g)
    apart = (new[:, 7] - 0.6).abs() > 0.05
    assert torch.equal(functions.votes(new)[apart, 0], (new[apart, 7] > 0.6).long())


def test_a_word_count_makes_a_function_that_abstains() -> None:
    """The word is in 30 of 50 texts of class 1: its absence says too little for a vote."""
    x = torch.zeros(100, 1)
    y = torch.tensor([0] * 50 + [1] * 50)
    x[70:] = 1.0
    functions = Stumps().fit(x, y, 2)
    assert functions.votes(torch.tensor([[0.0], [1.0], [2.0]]))[:, 0].tolist() == [-1, 1, 1]
    assert functions.summary.polarity == ((1,),) and functions.summary.accuracy[0] == 1.0


@pytest.mark.slow
@given(st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_stumps_know_only_the_order_of_values(seed: int) -> None:
    """Increasing maps leave the votes on the fitted rows, and constant features change nothing."""
    rng = np.random.default_rng(seed)
    x = rng.integers(-6, 7, (60, 5)).astype(float)
    y = (x[:, 1] + rng.normal(size=60) > 0).astype(int)
    if min(np.bincount(y, minlength=2)) < 6:
        return
    stumps = Stumps(min_confidence=0.2, diversity=0.0)
    votes = stumps.fit(x, y, 2).votes(x)
    assert torch.equal(stumps.fit(np.exp(x / 3), y, 2).votes(np.exp(x / 3)), votes)
    wider = np.hstack([x, np.ones((60, 3))])  # constant features are of no use
    assert torch.equal(stumps.fit(wider, y, 2).votes(wider), votes)


@pytest.mark.parametrize("name", NAMES)
def test_other_names_of_classes_give_the_same_functions(name: str) -> None:
    x, y = clouds(90)
    fold = stratified_folds(y, 5, 0)
    new, _ = clouds(200, seed=5)
    classes, confidence = make_generator(name)._train_without(x, y, 2, fold, 0)[()].predict(new)
    renamed = make_generator(name)._train_without(x, 1 - y, 2, fold, 0)[()].predict(new)
    torch.testing.assert_close(confidence, renamed[1], atol=1e-5, rtol=0)
    sure = confidence > 1e-3
    assert float(sure.double().mean()) > 0.4
    assert torch.equal(1 - classes[sure], renamed[0][sure])


@pytest.mark.parametrize("name", NAMES)
def test_order_of_rows_does_not_matter_to_fitted_candidates(name: str) -> None:
    x, y = clouds(80)
    order = torch.randperm(80, generator=torch.Generator().manual_seed(3))
    fold = stratified_folds(y, 5, 0)
    new, _ = clouds(200, seed=5)
    one = make_generator(name)._train_without(x, y, 2, fold, 0)
    two = make_generator(name)._train_without(x[order], y[order], 2, fold[order], 0)
    for without in ((), (1,), (0, 4)):
        expected, shuffled = one[without].predict(new), two[without].predict(new)
        torch.testing.assert_close(expected[1], shuffled[1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_no_fold_sees_its_own_labels(name: str) -> None:
    """Candidates without a fold do not change if the labels of that fold do."""
    x, y = clouds(60)
    fold = stratified_folds(y, 5, 0)
    changed = torch.where(fold == 2, 1 - y, y)
    one = make_generator(name)._train_without(x, y, 2, fold, 0)
    two = make_generator(name)._train_without(x, changed, 2, fold, 0)
    assert len(one) == 1 + 5 + 10
    for without in one:
        (classes, confidence), (classes_2, confidence_2) = (
            c[without].predict(x) for c in (one, two)
        )
        # Regressions are solved together, to a tolerance.
        change = (confidence - confidence_2).abs() + 2.0 * (classes != classes_2) * (
            confidence > 1e-3
        )
        assert (float(change.max()) < 1e-3) == (2 in without), without


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_random_labels_have_the_accuracy_of_chance(name: str) -> None:
    """Though 200 features are tried, cross-fitted accuracy is that of guessing."""
    generator = make_generator(f"{name}:min_confidence=0,max_functions=5")
    right = cast = 0
    fitted = []
    for seed in range(15):
        g = torch.Generator().manual_seed(seed)
        x = torch.randn(60, 200, generator=g)
        y = torch.arange(60)[torch.randperm(60, generator=g)] % 2
        functions = generator.fit(x, y, 2, seed=seed)
        votes = functions.cross_fitted_votes
        right += int((votes == y[:, None]).sum())
        cast += int((votes >= 0).sum())
        fitted.append(accuracy(functions.votes(x), y))
    # Votes of five functions for 60 rows of 15 data sets; functions for a row depend on each other.
    assert abs(right / cast - 0.5) < 4 * 0.5 / (15 * 60) ** 0.5
    assert np.mean(fitted) > 0.6, "on the rows that fitted them the same functions look good"


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_reported_accuracy_is_that_on_new_rows(name: str) -> None:
    reported, new = [], []
    for seed in range(6):
        x, y = clouds(100, dims=40, distance=1.5, seed=seed)
        functions = make_generator(name).fit(x, y, 2, seed=seed)
        new_x, new_y = clouds(1000, dims=40, distance=1.5, seed=100 + seed)
        reported.append(accuracy(functions.cross_fitted_votes, y))
        new.append(accuracy(functions.votes(new_x), new_y))
    assert np.mean(reported) == pytest.approx(np.mean(new), abs=0.06)
    assert np.mean(new) > 0.55


@pytest.mark.parametrize("name", NAMES)
def test_same_seed_same_functions(name: str) -> None:
    x, y = clouds(60, distance=1.5)
    votes = [make_generator(name).fit(x, y, 2, seed=s).votes(x) for s in (0, 0)]
    assert torch.equal(*votes)


def test_imbalanced_classes_and_two_rows_of_a_class() -> None:
    x, y = clouds(60)
    rare = torch.cat([(y == 0).nonzero()[:, 0], (y == 1).nonzero()[:2, 0]])
    for name in NAMES:
        functions = make_generator(name).fit(x[rare], y[rare], 2)
        assert (functions.votes(x) >= 0).any()


def test_thresholds_have_the_best_f1() -> None:
    g = torch.Generator().manual_seed(0)
    classes = torch.randint(2, (80, 6), generator=g)
    confidence = torch.rand(80, 6, generator=g).double()
    y = torch.randint(2, (80,), generator=g)
    threshold, f1 = choose_thresholds(classes, confidence, y, 2, 0.5)
    for j in range(6):
        scores = {}
        for beta in np.linspace(0.5, 0.9, 9):
            votes = torch.where(confidence[:, j] >= beta, classes[:, j], -1)
            total = 0.0
            for c in range(2):
                tp = int(((votes == c) & (y == c)).sum())
                total += 2 * tp / (int((votes == c).sum()) + int((y == c).sum()))
            scores[float(beta)] = total / 2
        assert float(f1[j]) == pytest.approx(max(scores.values()))
        assert float(threshold[j]) == pytest.approx(
            max(b for b, s in scores.items() if s > max(scores.values()) - 1e-12)
        )


def test_of_equally_good_thresholds_the_largest_is_taken() -> None:
    y = torch.arange(10) % 2
    sure = torch.ones(10, 1, dtype=torch.float64)
    threshold, f1 = choose_thresholds(y[:, None], sure, y, 2, 0.5)
    assert threshold.tolist() == pytest.approx([0.9]) and f1.tolist() == [1.0]


def test_f1_of_known_votes() -> None:
    votes = torch.tensor([[0, -1], [0, -1], [1, 1], [-1, 1]])
    y = torch.tensor([0, 1, 1, 1])
    # Function 0: class 0 has 2 / (2 + 1), class 1 has 2 / (1 + 3); function 1: 0 and 4 / (2 + 3).
    assert f1_of_votes(votes, y, 2).tolist() == pytest.approx([(2 / 3 + 1 / 2) / 2, 0.4])


def test_a_confidence_at_the_threshold_votes() -> None:
    classes, confidence = torch.tensor([[1], [1]]), torch.tensor([[0.3 + 0.6], [0.89]]).double()
    assert cast_votes(classes, confidence - 1e-15, torch.tensor([0.9]).double()).tolist() == [
        [1],
        [-1],
    ]


def test_diverse_functions_are_taken() -> None:
    votes = torch.tensor([[1, 1, -1, -1, 1], [1, 1, -1, -1, 1], [-1, 1, 1, -1, -1]])
    f1 = torch.tensor([0.9, 0.8, 0.5, 0.95, 0.9]).double()
    # 3 never votes, 4 copies 0; of the others 2 covers what 0 does not.
    assert take_diverse(votes, f1, 3, 0.5).tolist() == [0, 2, 1]
    assert take_diverse(votes, f1, 3, 0.0).tolist() == [0, 1, 2]
    assert take_diverse(votes, f1, 1, 0.0).tolist() == [0]


@given(st.lists(st.integers(0, 3), min_size=4, max_size=60), st.integers(3, 8))
def test_folds_hold_no_class_alone(labels: list[int], folds: int) -> None:
    y = torch.tensor(labels)
    fold = stratified_folds(y, folds, 0)
    sizes = torch.bincount(fold)
    assert int(sizes.max() - sizes.min()) <= 1 and 3 <= len(sizes) <= max(3, folds)
    for c in y.unique():
        if int((y == c).sum()) >= 2:
            assert len(fold[y == c].unique()) >= 2


@pytest.mark.parametrize("name", NAMES)
def test_units_and_origin_of_features_do_not_matter(name: str) -> None:
    x, y = clouds(60, distance=1.5)
    fold = stratified_folds(y, 5, 0)
    one, other = (
        make_generator(name)._train_without(z, y, 2, fold, 0)[()].predict(z)
        for z in (x, 100 * x + 7)
    )
    torch.testing.assert_close(one[1], other[1], atol=1e-4, rtol=0)


def test_regressions_are_minima() -> None:
    """Each of the regressions that are solved together has no gradient left."""
    g = torch.Generator().manual_seed(0)
    rows = torch.randn(3, 40, 5, generator=g).double()
    y = torch.randint(3, (40,), generator=g)
    keep = torch.rand(4, 40, generator=g) < 0.7
    weights, bias = fit_many(rows, y, 3, keep, 1e-2)
    for b in range(4):
        for v in range(3):
            w = weights[b, v].clone().requires_grad_()
            o = bias[b, v].clone().requires_grad_()
            logits = rows[v, keep[b]] @ w + o
            loss = torch.nn.functional.cross_entropy(logits, y[keep[b]]) + 1e-2 * w.square().sum()
            loss.backward()
            assert float(w.grad.abs().max()) < 1e-4 and float(o.grad.abs().max()) < 1e-4


def test_views_are_different_shares_of_features() -> None:
    views = random_views(20, 6, 0.25, 0)
    assert views.shape == (6, 5) and len({tuple(v) for v in views.tolist()}) == 6
    assert random_views(4, 10, 1.0, 0).tolist() == [[0, 1, 2, 3]]
    assert len(random_views(3, 10, 0.3, 0)) <= 3


def test_specs() -> None:
    assert make_generator("stumps:max_functions=7,pseudo_rows=1") == Stumps(
        max_functions=7, pseudo_rows=1.0
    )
    assert all(issubclass(kind, Generator) for kind in GENERATORS.values())


X, Y = clouds(20)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": X[:, 0]}, "features have shape (20,); expected (rows, features)"),
        ({"features": X.clone().index_put_((torch.tensor(3), torch.tensor(1)), torch.tensor(
            float("nan"), dtype=torch.float64))}, "feature 1 of row 3 is nan, one of 1 that are"),
        ({"features": X * 1j}, "features have dtype torch.complex128; expected real numbers"),
        ({"features": torch.ones(20, 3)}, "every feature is constant over the 20 labeled rows"),
        ({"features": [["a"]]}, "features cannot be read as numbers (n, D)"),
        ({"labels": Y[:5]}, "labels have shape (5,); expected one a row, (20,)"),
        ({"labels": Y.double()}, "labels have dtype torch.float64; expected integer class ids"),
        ({"labels": torch.where(Y == 1, -1, Y)}, "label of row 1 is -1; expected 0 to 1: pass"),
        ({"labels": Y * 0}, "class 1 has 0 labeled rows; expected at least 2 of every class"),
        ({"labels": (torch.arange(20) == 3).long()}, "class 1 has 1 labeled rows; expected at l"),
        ({"n_classes": 3}, "class 2 has 0 labeled rows"),
        ({"n_classes": 1}, "n_classes is 1"),
        ({"feature_names": ["a"]}, "feature_names has 1 names; expected 20"),
    ],
)  # fmt: skip
def test_wrong_data(change: dict[str, Any], message: str) -> None:
    with pytest.raises(W2SError, match=re.escape(message)):
        Stumps().fit(**{"features": X, "labels": Y, "n_classes": 2, **change})


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("stump", "unknown generator 'stump'; expected one of stumps, logistic, neighbors; did"),
        ("stumps:depth=2", "generator 'stumps:depth=2' has no field 'depth'; it has"),
        ("stumps:folds=2", "folds is 2; expected a number at least 3"),
        ("stumps:min_confidence=2", "min_confidence is 2.0; expected a number from 0 to 1"),
        ("stumps:diversity=-1", "diversity is -1.0"),
        ("stumps:max_functions=0", "max_functions is 0"),
        ("stumps:pseudo_rows=-1", "pseudo_rows is -1.0"),
        ("logistic:share=0", "share is 0.0"),
        ("logistic:l2=0", "l2 is 0.0"),
        ("neighbors:k=0", "k is 0"),
        ("neighbors:share=2", "share is 2.0"),
    ],
)
def test_wrong_settings(spec: str, message: str) -> None:
    with pytest.raises(W2SError, match=re.escape(message)):
        make_generator(spec)


def test_other_features_than_fitted() -> None:
    functions = Stumps().fit(X, Y, 2)
    with pytest.raises(W2SError, match="features have 3 columns; the functions were fitted to 20"):
        functions.votes(X[:, :3])
    with pytest.raises(W2SError, match="feature 0 of row 0 is inf"):
        functions.votes(X / 0.0)


def test_no_confident_function() -> None:
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(20, 2, generator=g), torch.arange(20) % 2
    with pytest.raises(W2SError, match="no function is confident about any of the 20 labeled rows"):
        make_generator("logistic:min_confidence=1,l2=10").fit(x, y, 2)
