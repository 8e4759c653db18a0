r"""Generate labeling functions of features from about a hundred labeled rows.

A generator makes candidates, chooses for each when it abstains (``abstention``) and takes functions
one by one, the next one by

    (1 - diversity) F1_j + diversity (1 - |C_j n C| / |C_j u C|)

C_j are the labeled rows for which candidate j votes, C those for which a function already taken
votes. All these scores are computed out of fold: the votes for a labeled row come from candidates
that were fitted without its fold.

What the functions are worth is estimated in the same way. The whole procedure, choices included, is
repeated without each fold; its j-th function votes for the rows of the fold. So the accuracy of the
j-th function in ``summary`` is about chance if the labels are random, however many candidates were
tried. It is a property of the procedure: the j-th function of a repetition may be another one.

Source: Varma and Re 2018 (Snuba), whose scores are of the rows that fitted the functions; Roberts
et al. 2022 (arXiv 2208.14362, AutoWS-Bench-101).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.label_models._options import check_number
from w2s_fast.label_models.votes import ABSTAIN
from w2s_fast.labeling.abstention import cast_votes, choose_thresholds
from w2s_fast.labeling.rows import check_features, check_labels, check_names
from w2s_fast.labeling.summary import FunctionSummary, function_summary
from w2s_fast.ops.votes.blocks import row_blocks

_ROWS = 4096  # rows of a block of votes
_FOLDS = 3  # fewest: one whose rows are judged, one that candidates are chosen on, one to fit them


class Candidates(ABC):
    """Fitted functions, which give a class and a confidence and never abstain."""

    @abstractmethod
    def predict(self, x: Tensor, columns: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return classes (n, c) int64 and confidence (n, c) float64 of rows (n, D) float64.

        Args:
            x: Rows.
            columns: Positions of the candidates that are evaluated; None takes all c.
        """

    @abstractmethod
    def describe(self, column: int, feature_names: Sequence[str] | None) -> str:
        """Return a name for a candidate."""


@dataclass(frozen=True)
class GeneratedFunctions:
    """Labeling functions of features.

    Attributes:
        names: m names, the function with the best score first.
        thresholds: (m,) float64, the confidence from which a function votes.
        summary: Coverage and accuracy of the out-of-fold votes on the labeled rows.
        cross_fitted_votes: (n, m) int64, the out-of-fold votes for the labeled rows.
        n_features: D.
    """

    names: tuple[str, ...]
    thresholds: Tensor
    summary: FunctionSummary
    cross_fitted_votes: Tensor
    n_features: int
    _candidates: Candidates
    _columns: Tensor

    def votes(self, features: Any) -> Tensor:
        """Return votes (n, m) int64 for features (n, D) as those that the functions were fitted to.

        Raises:
            W2SError: The features are wrong, or have another number of columns.
        """
        x = check_features(features, self.n_features)
        out = torch.empty(len(x), len(self.names), dtype=torch.int64)
        for rows in row_blocks(len(x), _ROWS):
            classes, confidence = self._candidates.predict(x[rows].double(), self._columns)
            out[rows] = cast_votes(classes, confidence, self.thresholds)
        return out


@dataclass(frozen=True, kw_only=True)
class Generator(ABC):
    """Base of the generators.

    Attributes:
        max_functions: Most functions that are returned.
        min_confidence: Least confidence from which a function may vote, in [0, 1].
        diversity: Weight of the rows that only this function covers, in [0, 1).
        folds: Number of folds, 3 or more; at most that of labeled rows of the rarest class, or 3.
    """

    max_functions: int = 10
    min_confidence: float = 0.5
    diversity: float = 0.5
    folds: int = 5

    def __post_init__(self) -> None:
        check_number("max_functions", self.max_functions, 1)
        check_number("min_confidence", self.min_confidence, 0.0, 1.0)
        check_number("diversity", self.diversity, 0.0, 1.0)
        check_number("folds", self.folds, _FOLDS)

    @abstractmethod
    def fit_candidates(
        self, x: Tensor, labels: Tensor, n_classes: int, keep: Tensor, seed: int
    ) -> list[Candidates]:
        """Fit the candidates to B sets of rows; candidate j is of the same kind in all of them.

        Args:
            x: (n, D) float64.
            labels: (n,) int64.
            n_classes: K.
            keep: (B, n) bool, the rows of each set; a class may have no row in it.
            seed: Seed of random choices, which do not depend on the set.
        """

    def fit(
        self,
        features: Any,
        labels: Any,
        n_classes: int,
        seed: int = 0,
        *,
        feature_names: Sequence[str] | None = None,
    ) -> GeneratedFunctions:
        """Generate functions from labeled rows.

        Args:
            features: (n, D) finite numbers.
            labels: (n,) integers of 0 .. K-1, two or more rows of every class.
            n_classes: K.
            seed: Seed of folds and random choices.
            feature_names: D names for the names of functions.

        Raises:
            W2SError: Features or labels are wrong, or no candidate is confident about any row.
        """
        x = check_features(features).double()
        y = check_labels(labels, len(x), n_classes)
        _check_varying(x)
        names = None
        if feature_names is not None:
            names = check_names(feature_names, x.shape[1], "feature_names")
        fold = stratified_folds(y, self.folds, seed)
        fitted = self._train_without(x, y, n_classes, fold, seed)
        columns, thresholds = self._choose(x, y, n_classes, fold, fitted, ())
        if not len(columns):
            raise W2SError(
                f"no function is confident about any of the {len(x)} labeled rows; label more "
                f"rows, or lower min_confidence ({self.min_confidence:g})"
            )
        held_out = torch.full((len(x), len(columns)), ABSTAIN)
        for f in range(int(fold.max()) + 1):
            chosen, beta = self._choose(x, y, n_classes, fold, fitted, (f,))
            chosen, beta = chosen[: len(columns)], beta[: len(columns)]
            rows = fold == f
            held_out[rows, : len(chosen)] = cast_votes(*fitted[(f,)].predict(x[rows], chosen), beta)
        candidates = fitted[()]
        described = tuple(candidates.describe(j, names) for j in columns.tolist())
        return GeneratedFunctions(
            names=described,
            thresholds=thresholds,
            summary=function_summary(held_out, y, described, n_classes),
            cross_fitted_votes=held_out,
            n_features=x.shape[1],
            _candidates=candidates,
            _columns=columns,
        )

    def _train_without(
        self, x: Tensor, y: Tensor, n_classes: int, fold: Tensor, seed: int
    ) -> dict[tuple[int, ...], Candidates]:
        """Return candidates by the folds that they were fitted without: none, one or two."""
        n_folds = int(fold.max()) + 1
        single = [(f,) for f in range(n_folds)]
        double = [(f, g) for g in range(n_folds) for f in range(g)]
        left_out: list[tuple[int, ...]] = [(), *single, *double]
        keep = torch.stack([~torch.isin(fold, torch.tensor(s).long()) for s in left_out])
        return dict(zip(left_out, self.fit_candidates(x, y, n_classes, keep, seed), strict=True))

    def _choose(
        self,
        x: Tensor,
        y: Tensor,
        n_classes: int,
        fold: Tensor,
        fitted: dict[tuple[int, ...], Candidates],
        without: tuple[int, ...],
    ) -> tuple[Tensor, Tensor]:
        """Choose candidates and their thresholds on the rows outside of the folds ``without``."""
        parts = []
        for g in range(int(fold.max()) + 1):
            if g not in without:
                rows = (fold == g).nonzero()[:, 0]
                key = tuple(sorted((*without, g)))
                parts.append((rows, *fitted[key].predict(x[rows])))
        rows, classes, confidence = (torch.cat(part) for part in zip(*parts, strict=True))
        threshold, f1 = choose_thresholds(
            classes, confidence, y[rows], n_classes, self.min_confidence
        )
        votes = cast_votes(classes, confidence, threshold)
        columns = take_diverse(votes, f1, self.max_functions, self.diversity)
        return columns, threshold[columns]


def take_diverse(votes: Tensor, f1: Tensor, most: int, diversity: float) -> Tensor:
    """Take functions one by one, by F1 and by how far their rows differ from those covered already.

    Functions that vote for no row, and copies of one already taken, are left out.

    Args:
        votes: (n, c) votes.
        f1: (c,) their F1.
        most: Most functions taken.
        diversity: Weight of the Jaccard distance, see the module.

    Returns:
        Positions of at most ``most`` functions, in the order in which they were taken.
    """
    cast = votes >= 0
    open_ = cast.any(0)
    covered = torch.zeros(len(votes), dtype=torch.bool)
    taken: list[int] = []
    while len(taken) < most and bool(open_.any()):
        common = (cast & covered[:, None]).sum(0)
        union = (cast | covered[:, None]).sum(0).clamp(min=1)
        score = (1 - diversity) * f1 + diversity * (1 - common / union)
        best = int(score.masked_fill(~open_, -1.0).argmax())
        taken.append(best)
        covered |= cast[:, best]
        open_ &= ~(votes == votes[:, [best]]).all(0)
    return torch.tensor(taken, dtype=torch.int64)


def stratified_folds(labels: Tensor, folds: int, seed: int) -> Tensor:
    """Return the fold of each row, (n,) int64; the rows of a class are spread over all folds.

    There are at most as many folds as rows of the rarest class, but three at least.
    """
    counts = torch.bincount(labels)
    folds = max(_FOLDS, min(folds, int(counts[counts > 0].min())))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    order = order[labels[order].argsort(stable=True)]
    fold = torch.empty(len(labels), dtype=torch.int64)
    fold[order] = torch.arange(len(labels)) % folds
    return fold


def _check_varying(x: Tensor) -> None:
    if bool((x == x[0]).all()):
        raise W2SError(
            f"every feature is constant over the {len(x)} labeled rows; expected features that vary"
        )
