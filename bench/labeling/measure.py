"""Score labels that were made from 100 labeled rows: by functions, and by plain supervision.

A seed draws the labeled rows; scores are of the other rows. Rows without votes get the largest
class of the labeled rows, and the accuracy on covered rows stands apart. Label models are given the
class balance of the labeled rows.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.labeling.data import DESCRIPTIONS, Texts, encoder_states, tf_idf
from w2s_fast.errors import DataWarning, W2SError
from w2s_fast.label_models import DawidSkene, covered_rows, majority_vote
from w2s_fast.labeling import (
    GENERATORS,
    accuracy_oracle,
    affinity_labels,
    apply_functions,
    keyword_candidates,
    label_word_votes,
    make_generator,
    select_functions,
)
from w2s_fast.labeling.generator import stratified_folds
from w2s_fast.labeling.logistic import fit_many
from w2s_fast.labeling.views import scale_rows

LABELED = 100
SEEDS = tuple(range(5))
ANCHOR = 100.0
TEMPERATURE = 0.05  # of cosines between a text and the descriptions of the classes
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1)
QUESTIONS = 50
CLUSTERS = 10


@dataclass(frozen=True)
class Split:
    """One draw of labeled rows ``known`` (r,), their labels, and the other rows."""

    data: Texts
    known: Tensor
    rest: Tensor
    seed: int

    @property
    def labels(self) -> Tensor:
        return torch.from_numpy(self.data.labels)[self.known]

    @property
    def balance(self) -> Tensor:
        """Class balance of the labeled rows, with a pseudo-row per class."""
        counts = torch.bincount(self.labels, minlength=2).double() + 1
        return counts / counts.sum()


@dataclass(frozen=True)
class Prepared:
    """A data set with its features by name, the votes of all keywords, zero-shot probabilities."""

    data: Texts
    features: dict[str, Tensor]
    keyword_votes: Tensor
    zero_shot: Tensor | None


def prepare(data: Texts, encoder: Path | None) -> Prepared:
    """Compute what does not depend on the labeled rows."""
    features, zero_shot = {"tf-idf": tf_idf(data)[0]}, None
    if encoder is not None:
        states = torch.from_numpy(encoder_states(encoder, data.texts))
        classes = torch.from_numpy(encoder_states(encoder, DESCRIPTIONS[data.name]))
        features["encoder"] = states
        unit = torch.nn.functional.normalize
        zero_shot = (unit(states) @ unit(classes).T / TEMPERATURE).softmax(1)
    pool = keyword_candidates(data.texts, 2, min_df=10, max_words=300)
    return Prepared(data, features, apply_functions(pool, data.texts, n_classes=2), zero_shot)


def draw(data: Texts, seed: int, labeled: int) -> Split:
    """Draw the labeled rows of a seed."""
    order = torch.randperm(len(data.texts), generator=torch.Generator().manual_seed(seed))
    return Split(data, order[:labeled], order[labeled:], seed)


def measure(
    prepared: Prepared, seeds: tuple[int, ...] = SEEDS, labeled: int = LABELED
) -> Iterator[dict[str, Any]]:
    """Yield a row of scores for each seed and way to label."""
    for seed in seeds:
        split = draw(prepared.data, seed, labeled)
        facts = {"data": prepared.data.name, "seed": seed, "n": len(split.rest), "labeled": labeled}
        for features, name, label in _ways(prepared, split):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DataWarning)  # generated functions may be alike
                scores = label()
            yield {**facts, "features": features, "method": name, **scores}


Way = tuple[str, str, Callable[[], dict[str, Any]]]


def _ways(prepared: Prepared, split: Split) -> Iterator[Way]:
    rest = split.rest
    yield "none", "constant", lambda: _score_classes(split, torch.full((len(rest),), _top(split)))
    yield "none", "hand-written", lambda: _score_votes(split, prepared.data.votes[rest])
    yield "none", "keywords, 100 labels", lambda: _keywords(prepared, split, split.known)
    yield (
        "none",
        "keywords, expert",
        lambda: _keywords(prepared, split, torch.cat([split.known, rest])),
    )
    if prepared.zero_shot is not None:
        yield "encoder", "zero-shot", lambda: _score_votes(split, _zero_shot(prepared, split)[rest])
    for features, x in prepared.features.items():
        yield features, "few-shot", lambda x=x: _score_classes(split, few_shot(x, split))
        for spec in GENERATORS:
            yield features, spec, lambda x=x, s=spec: _score_votes(split, _generated(s, x, split))
        for name, k in (("affinity", None), (f"affinity, {CLUSTERS} clusters", CLUSTERS)):
            yield features, name, lambda x=x, k=k: _score_classes(split, _affinity(x, split, k))
    if prepared.zero_shot is not None:
        both = joined(prepared.features.values(), split)
        yield "both", "few-shot", lambda: _score_classes(split, few_shot(both, split))
        yield "both", "all functions", lambda: _score_votes(split, _all(prepared, split))


def joined(features: Iterable[Tensor], split: Split) -> Tensor:
    """Return features side by side, each scaled so that labeled rows have mean squared length 1."""
    parts = []
    for x in features:
        mean, scale = scale_rows(x[split.known].double())
        parts.append((x.double() - mean) / scale)
    return torch.cat(parts, 1)


def few_shot(x: Tensor, split: Split) -> Tensor:
    """Classify rows by logistic regression; the penalty has the best five-fold accuracy."""
    known, y = x[split.known].double(), split.labels
    center, scale = scale_rows(known)
    fold = stratified_folds(y, 5, split.seed)
    keep = torch.stack([*(fold != f for f in range(int(fold.max()) + 1)), fold >= 0])
    z, best, chosen = ((known - center) / scale)[None], -1.0, None
    for l2 in PENALTIES:
        weights, bias = fit_many(z, y, 2, keep, l2)
        guess = (z @ weights[:, 0] + bias[:, 0, None]).argmax(2)  # (folds + 1, n)
        right = float((guess[fold, torch.arange(len(y))] == y).double().mean())
        if right > best:
            best, chosen = right, (weights[-1, 0], bias[-1, 0])
    assert chosen is not None
    rows = (x[split.rest].double() - center) / scale
    return (rows @ chosen[0] + chosen[1]).argmax(1)


def _generated(spec: str, x: Tensor, split: Split) -> Tensor:
    functions = make_generator(spec).fit(x[split.known], split.labels, 2, seed=split.seed)
    return functions.votes(x[split.rest])


def _affinity(x: Tensor, split: Split, n_clusters: int | None) -> Tensor:
    probs = affinity_labels(x, split.known, split.labels, 2, n_clusters=n_clusters, seed=split.seed)
    return probs[split.rest].argmax(1)


def _zero_shot(prepared: Prepared, split: Split) -> Tensor:
    return label_word_votes(prepared.zero_shot, class_balance=split.balance)[:, None]


def _keywords(prepared: Prepared, split: Split, judged: Tensor) -> dict[str, Any]:
    """Select one-word functions by answers that the labels of the rows ``judged`` give."""
    votes = prepared.keyword_votes
    gold = torch.from_numpy(prepared.data.labels)[judged]
    chosen = select_functions(
        votes,
        2,
        accuracy_oracle(votes[judged], gold, 2),
        features=list(prepared.features.values())[-1],
        n_questions=QUESTIONS,
        seed=split.seed,
    ).chosen
    return _score_votes(split, votes[split.rest][:, list(chosen)])


def _all(prepared: Prepared, split: Split) -> Tensor:
    """Return the votes of all generated functions on both kinds of features, and of zero-shot."""
    generated = [
        _generated(spec, x, split) for x in prepared.features.values() for spec in GENERATORS
    ]
    return torch.cat([*generated, _zero_shot(prepared, split)[split.rest]], 1)


def _top(split: Split) -> int:
    return int(split.balance.argmax())


def _score_classes(split: Split, classes: Tensor) -> dict[str, Any]:
    """Return the scores of classes (n,) for every row."""
    right = float((classes.numpy() == split.data.labels[split.rest]).mean())
    scores = {"accuracy": right, "covered_accuracy": right, "coverage": 1.0, "functions": 0}
    return {**scores, "majority_accuracy": right}


def _score_votes(split: Split, votes: Tensor) -> dict[str, Any]:
    """Return the scores of votes (n, m): of Dawid-Skene, and of the majority vote."""
    gold = torch.from_numpy(split.data.labels)[split.rest]
    covered = covered_rows(votes)
    majority = majority_vote(votes, 2, class_balance=split.balance)
    models = {"majority_accuracy": majority, "accuracy": _dawid_skene(votes, split, majority)}
    scores: dict[str, Any] = {"functions": votes.shape[1]}
    scores["coverage"] = float(covered.double().mean())
    for name, probs in models.items():
        classes = torch.where(covered, probs.argmax(1), _top(split))
        scores[name] = float((classes == gold).double().mean())
        if name == "accuracy":
            scores["covered_accuracy"] = float((classes == gold)[covered].double().mean())
    return scores


def _dawid_skene(votes: Tensor, split: Split, otherwise: Tensor) -> Tensor:
    """Return the posterior of Dawid-Skene; fewer than three functions leave the majority vote."""
    if votes.shape[1] < 3:
        return otherwise
    model = DawidSkene(2, class_balance=split.balance, anchor=ANCHOR)
    try:
        return model.fit(votes).posterior(votes)
    except W2SError:  # fewer than three functions vary
        return otherwise


def rounded(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row with its scores rounded to four digits."""
    return {k: round(v, 4) if isinstance(v, float | np.floating) else v for k, v in row.items()}
