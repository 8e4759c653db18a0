r"""Summarize labeling functions: coverage, overlaps, conflicts, and accuracy with an interval.

    low, high = (p + z^2/2n -+ z sqrt(p (1 - p)/n + z^2/4n^2)) / (1 + z^2/n)

p is the accuracy over the n labeled rows for which a function votes, z the normal quantile. The
interval stays within [0, 1] and holds for few rows.

Sources: coverage, overlaps and conflicts as in Snorkel's LFAnalysis; the interval: Wilson 1927.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.label_models.votes import (
    VoteSummary,
    as_cpu_tensor,
    check_votes,
    covered_rows,
    summarize_votes,
)
from w2s_fast.labeling.rows import check_names
from w2s_fast.metrics.estimates import LEVEL


@dataclass(frozen=True)
class FunctionSummary:
    """What m functions do to n rows; ``print`` shows it as a table.

    Attributes:
        names: m names.
        polarity: The classes that each function votes for, ascending.
        coverage: (m,) float64 share of rows for which a function votes.
        overlaps: (m,) share of rows for which it and another function vote.
        conflicts: (m,) share of rows for which another function votes for another class.
        n_labeled: (m,) int64 labeled rows for which it votes.
        accuracy: (m,) share of these that are right; NaN where there are none.
        low: (m,) lower end of Wilson's 95 % interval of the accuracy.
        high: (m,) upper end.
        votes: Uncovered rows, constant functions and copies.
    """

    names: tuple[str, ...]
    polarity: tuple[tuple[int, ...], ...]
    coverage: Tensor
    overlaps: Tensor
    conflicts: Tensor
    n_labeled: Tensor
    accuracy: Tensor
    low: Tensor
    high: Tensor
    votes: VoteSummary

    def __str__(self) -> str:
        """Return a table with a line per function."""
        width = min(40, max(8, *map(len, self.names)))
        head = (
            f"{'function':<{width}} {'votes':>7} {'coverage':>8} {'overlaps':>8} "
            f"{'conflicts':>9} {'labeled':>7} {'accuracy':>8}  95 %"
        )
        covered = self.votes.n_rows - self.votes.n_uncovered
        last = f"{covered} of {self.votes.n_rows} rows are covered"
        return "\n".join([head, *(self._line(j, width) for j in range(len(self.names))), last])

    def _line(self, j: int, width: int) -> str:
        name = self.names[j] if len(self.names[j]) <= width else self.names[j][: width - 3] + "..."
        classes = ",".join(map(str, self.polarity[j])) or "none"
        line = (
            f"{name:<{width}} {classes:>7} {self.coverage[j]:8.3f} {self.overlaps[j]:8.3f} "
            f"{self.conflicts[j]:9.3f} {int(self.n_labeled[j]):7d}"
        )
        if not self.n_labeled[j]:
            return line
        return f"{line} {self.accuracy[j]:8.3f}  {self.low[j]:.3f} – {self.high[j]:.3f}"


def function_summary(
    votes: Any,
    labels: Any = None,
    names: Sequence[str] | None = None,
    n_classes: int | None = None,
) -> FunctionSummary:
    """Summarize the votes of labeling functions.

    Args:
        votes: (n, m) integers of -1 .. K-1.
        labels: (n,) integers, -1 where a row has no label; None if no row has one.
        names: m names; None numbers the functions.
        n_classes: K; None takes the largest class of votes and labels.

    Raises:
        W2SError: Votes, labels or the number of names are wrong.
    """
    gold = None if labels is None else _check_partial_labels(labels)
    n_classes = _largest(votes, gold) + 1 if n_classes is None else n_classes
    matrix = check_votes(votes, n_classes)
    if gold is not None and gold.shape != (len(matrix),):
        raise W2SError(f"labels have shape {tuple(gold.shape)}; expected ({len(matrix)},)")
    if gold is not None and bool((gold >= n_classes).any()):
        raise W2SError(f"a label is {int(gold.max())}; expected -1 to {n_classes - 1}")
    m = matrix.shape[1]
    cast = matrix >= 0
    n_labeled, right = _count_right(matrix, gold)
    return FunctionSummary(
        names=check_names(range(m) if names is None else names, m, "votes"),
        polarity=tuple(tuple(column[column >= 0].unique().tolist()) for column in matrix.T),
        coverage=cast.double().mean(0),
        overlaps=(cast & (cast.sum(1, keepdim=True) > 1)).double().mean(0),
        conflicts=(cast & _disputed(matrix)[:, None]).double().mean(0),
        n_labeled=n_labeled,
        accuracy=right / n_labeled,
        low=wilson_interval(right, n_labeled)[0],
        high=wilson_interval(right, n_labeled)[1],
        votes=summarize_votes(matrix, n_classes),
    )


def wilson_interval(right: Tensor, n: Tensor, level: float = LEVEL) -> tuple[Tensor, Tensor]:
    """Return the ends of Wilson's interval of a share, NaN for n = 0.

    Args:
        right: (m,) numbers of successes.
        n: (m,) numbers of trials.
        level: Coverage.
    """
    n = n.double()
    z = NormalDist().inv_cdf((1 + level) / 2)
    p = right.double() / n
    center = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * (p * (1 - p) / n + z * z / (4 * n * n)).sqrt() / (1 + z * z / n)
    # At p = 0 and p = 1 one end is exactly p, which rounding would move.
    return (
        torch.where(p == 0, p, (center - half).clamp(min=0)),
        torch.where(p == 1, p, (center + half).clamp(max=1)),
    )


def _count_right(votes: Tensor, gold: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return (m,) labeled rows with a vote, and how many of these votes are right."""
    if gold is None:
        none = torch.zeros(votes.shape[1], dtype=torch.int64)
        return none, none
    cast = (votes >= 0) & (gold >= 0)[:, None]
    return cast.sum(0), (cast & (votes == gold[:, None])).sum(0)


def _disputed(votes: Tensor) -> Tensor:
    """Return (n,) bool: two functions vote for different classes of the row."""
    highest = votes.amax(1)
    lowest = torch.where(votes >= 0, votes, torch.iinfo(votes.dtype).max).amin(1)
    return covered_rows(votes) & (lowest != highest)


def _check_partial_labels(labels: Any) -> Tensor:
    gold = as_cpu_tensor(labels, "labels cannot be read as integers (n,)")
    if gold.is_floating_point() or gold.is_complex() or gold.dtype == torch.bool:
        raise W2SError(f"labels have dtype {gold.dtype}; expected integers, -1 for no label")
    gold = gold.long()
    if gold.numel() and int(gold.min()) < -1:
        raise W2SError(f"a label is {int(gold.min())}; expected a class, or -1 for no label")
    return gold


def _largest(votes: Any, gold: Tensor | None) -> int:
    """Return the largest class, at least 1; ``check_votes`` refuses what is no integer matrix."""
    matrix = as_cpu_tensor(votes, "votes cannot be read as an integer matrix (n, m)")
    top = max((int(t.max()) for t in (matrix, gold) if t is not None and t.numel()), default=1)
    return max(1, top)
