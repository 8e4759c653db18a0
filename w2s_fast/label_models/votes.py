"""Checked vote matrices: n rows, m sources, classes 0 .. K-1, and -1 where a source abstains.

Snorkel and WRENCH use the same encoding. Symbols are the K classes and, last, the abstention K.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from w2s_fast.errors import DataWarning, W2SError
from w2s_fast.ops.dispatch import host_backend

ABSTAIN = -1
MIN_SOURCES = 3  # two sources cannot be told from one accurate and one random source
_UNSIGNED = (torch.uint8, torch.uint16, torch.uint32, torch.uint64)
_NAMED = 5  # sources that a message names; it counts the others


@dataclass(frozen=True)
class VoteSummary:
    """What a vote matrix contains.

    Attributes:
        n_rows: number of rows.
        n_uncovered: rows for which every source abstains.
        coverage: (m,) share of rows for which a source votes.
        constant: sources with the same symbol in every row, which carry no information.
        duplicates: groups of two or more sources whose votes are equal in every row.
        one_sided: sources that vote for one class only, and abstain elsewhere.
    """

    n_rows: int
    n_uncovered: int
    coverage: Tensor
    constant: tuple[int, ...]
    duplicates: tuple[tuple[int, ...], ...]
    one_sided: tuple[int, ...]


def check_classes(n_classes: int) -> int:
    """Return the number of classes if it is an integer of at least two.

    Raises:
        W2SError: It is not.
    """
    try:
        number = operator.index(n_classes)
    except TypeError:
        number = 0
    if number < 2:
        raise W2SError(f"n_classes is {n_classes!r}; expected an integer of at least 2")
    return number


def as_cpu_tensor(values: Any, message: str) -> Tensor:
    """Return a tensor, an array or nested lists as a tensor on the CPU; memory maps stay on disk.

    Raises:
        W2SError: With ``message``, the values are no rectangular numbers.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*not writable")  # it is only read
            tensor = torch.as_tensor(values).cpu()
            if tensor.is_floating_point() and isinstance(values, list | tuple):
                return torch.as_tensor(values, dtype=torch.float64)  # as Python's numbers are
            return tensor
    except (TypeError, ValueError, RuntimeError) as e:
        raise W2SError(f"{message}: {e}") from e


def check_votes(votes: Any, n_classes: int, n_sources: int | None = None) -> Tensor:
    """Check votes and convert them to a tensor (n, m) of int8, or of int16 above 127 classes.

    Args:
        votes: (n, m) integers of -1 .. K-1: a tensor, an array, or nested lists.
        n_classes: K.
        n_sources: m of the fitted model; None accepts any.

    Raises:
        W2SError: Shape, dtype or a vote is wrong.
    """
    check_classes(n_classes)
    matrix = as_cpu_tensor(votes, "votes cannot be read as an integer matrix (n, m)")
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise W2SError(
            f"votes have shape {tuple(matrix.shape)}; expected (rows, sources), neither of them 0"
        )
    if matrix.is_floating_point() or matrix.is_complex() or matrix.dtype == torch.bool:
        raise W2SError(
            f"votes have dtype {matrix.dtype}; expected integer class ids, -1 for an abstention"
        )
    if matrix.dtype in _UNSIGNED:  # few operations take them
        matrix = matrix.long()
    if n_sources is not None and matrix.shape[1] != n_sources:
        raise W2SError(
            f"votes have {matrix.shape[1]} sources; the model was fitted on {n_sources}: "
            "pass the same sources in the same order"
        )
    checked: Tensor | None = host_backend("votes").narrow(matrix, n_classes)
    if checked is None:
        row, source = (int(i) for i in ((matrix < ABSTAIN) | (matrix >= n_classes)).nonzero()[0])
        raise W2SError(
            f"vote of source {source} for row {row} is {int(matrix[row, source])}; expected "
            f"0 to {n_classes - 1}, or -1 where the source abstains"
        )
    return checked


class OneHotVotes(Protocol):
    """The one-hot matrix X (n, K m) of votes: column l m + j is 1 where source j votes for l.

    Attributes:
        votes: checked votes (n, m).
        n_classes: K.
    """

    votes: Tensor
    n_classes: int

    def __len__(self) -> int: ...

    def times(self, table: Tensor, bias: Tensor | None = None, *, softmax: bool = False) -> Tensor:
        """Return X @ table + bias, (n, C), or its softmax, of ``table`` (K, m, C)."""

    def transposed_times(self, weights: Tensor) -> Tensor:
        """Return X^T @ weights as (K, m, C), of ``weights`` (n, C)."""


def one_hot(votes: Tensor, n_classes: int) -> OneHotVotes:
    """Return the one-hot matrix of checked votes (n, m), for products of float64."""
    matrix: OneHotVotes = host_backend("votes").OneHotVotes(votes, n_classes)
    return matrix


def covered_rows(votes: Tensor) -> Tensor:
    """Return (n,) bool: at least one source votes for the row."""
    return (votes >= 0).any(1)


def symbols_of(votes: Tensor, n_classes: int) -> Tensor:
    """Return votes (n, m) as int64 symbols: abstentions become K."""
    return torch.where(votes < 0, n_classes, votes).long()


def summarize_votes(votes: Any, n_classes: int) -> VoteSummary:
    """Summarize votes: uncovered rows, coverage, constant, duplicated and one-sided sources.

    Args:
        votes: (n, m) integers of -1 .. K-1.
        n_classes: K.

    Raises:
        W2SError: As ``check_votes``.
    """
    return _summarize(check_votes(votes, n_classes), n_classes)


def _summarize(votes: Tensor, n_classes: int) -> VoteSummary:
    counts, hashes, n_covered = host_backend("votes").summarize(votes, n_classes)
    n, cast = len(votes), counts.sum(0)
    constant = constant_columns(counts, n)
    one_sided = (counts > 0).sum(0) == 1
    one_sided[list(constant)] = False
    return VoteSummary(
        n_rows=n,
        n_uncovered=n - n_covered,
        coverage=cast / n,
        constant=constant,
        duplicates=_equal_columns(votes, hashes.tolist()),
        one_sided=tuple(one_sided.nonzero()[:, 0].tolist()),
    )


def _equal_columns(votes: Tensor, hashes: Sequence[float]) -> tuple[tuple[int, ...], ...]:
    """Return groups of equal columns; candidates are columns with equal hashes."""
    groups: dict[float, list[list[int]]] = {}
    for source, value in enumerate(hashes):
        equal = groups.setdefault(value, [])
        for group in equal:
            if torch.equal(votes[:, group[0]], votes[:, source]):
                group.append(source)
                break
        else:
            equal.append([source])
    repeated = (tuple(group) for equal in groups.values() for group in equal if len(group) > 1)
    return tuple(sorted(repeated))


def check_any_vote(coverage: Tensor) -> None:
    """Raise if every source abstains for every row.

    Args:
        coverage: (m,) share of rows for which a source votes, or (n,) bool rows with votes.

    Raises:
        W2SError: It does.
    """
    if not bool(coverage.any()):
        raise W2SError("every source abstains for every row; expected at least one vote")


def check_sources(votes: Tensor, n_classes: int, *, independent: bool = True) -> int:
    """Check that votes identify rates: three sources vote, and warn about suspicious sources.

    Args:
        votes: checked votes (n, m).
        n_classes: K.
        independent: the model assumes independent sources, so duplicates distort it.

    Returns:
        The number of rows with votes.

    Raises:
        W2SError: No source votes, or fewer than three sources vary.
    """
    summary = _summarize(votes, n_classes)
    check_columns(summary.coverage, summary.constant, summary.duplicates, independent=independent)
    return summary.n_rows - summary.n_uncovered


def constant_columns(counts: Tensor, n_rows: int) -> tuple[int, ...]:
    """Return the sources with one symbol in all rows, from counts (K, m) of votes."""
    constant = torch.maximum(counts.amax(0), n_rows - counts.sum(0)) == n_rows
    return tuple(constant.nonzero()[:, 0].tolist())


def check_columns(
    coverage: Tensor,
    constant: Sequence[int],
    duplicates: Sequence[Sequence[int]],
    *,
    independent: bool = True,
) -> None:
    """Check what is known of the columns of votes, see ``VoteSummary``, as ``check_sources``.

    Raises:
        W2SError: No source votes, or fewer than three sources vary.
    """
    check_any_vote(coverage)
    varying = len(coverage) - len(constant)
    if varying < MIN_SOURCES:
        raise W2SError(
            f"{varying} of {len(coverage)} sources vary over the rows; rates are identified by "
            f"at least {MIN_SOURCES}: add sources, or use MajorityVote (label_model: majority)"
        )
    if constant:
        _warn(f"{_named(constant)} the same vote in every row, which carries no information")
    duplicates = [g for g in duplicates if not set(g) <= set(constant)]
    if duplicates and independent:
        groups = "; ".join(", ".join(map(str, g)) for g in duplicates[:_NAMED])
        _warn(
            f"{len(duplicates)} groups of sources have equal votes in every row ({groups}); "
            "copies count as independent evidence: remove them, or use TreeDawidSkene"
        )


def _named(sources: Sequence[int]) -> str:
    names = ", ".join(map(str, sources[:_NAMED]))
    if len(sources) == 1:
        return f"source {names} has"
    more = f" and {len(sources) - _NAMED} more" if len(sources) > _NAMED else ""
    return f"sources {names}{more} have"


def _warn(message: str) -> None:
    warnings.warn(message, DataWarning, stacklevel=5)
