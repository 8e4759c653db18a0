"""Checked vote matrices: n rows, m sources, classes 0 .. K-1, and -1 where a source abstains.

Snorkel and WRENCH use the same encoding. Symbols are the K classes and, last, the abstention K.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from w2s_fast.errors import DataWarning, W2SError

ABSTAIN = -1
MIN_SOURCES = 3  # two sources cannot be told from one accurate and one random source
_HASHED_ROWS = 2048
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
    low, high = (int(v) for v in torch.aminmax(matrix))
    if low < ABSTAIN or high >= n_classes:
        row, source = (int(i) for i in ((matrix < ABSTAIN) | (matrix >= n_classes)).nonzero()[0])
        raise W2SError(
            f"vote of source {source} for row {row} is {int(matrix[row, source])}; expected "
            f"0 to {n_classes - 1}, or -1 where the source abstains"
        )
    return matrix.to(torch.int8 if n_classes <= 127 else torch.int16)


def covered_rows(votes: Tensor) -> Tensor:
    """Return (n,) bool: at least one source votes for the row."""
    return (votes >= 0).any(1)


def symbols_of(votes: Tensor, n_classes: int) -> Tensor:
    """Return votes (n, m) as int64 symbols: abstentions become K."""
    return torch.where(votes < 0, n_classes, votes).long()


def row_blocks(n_rows: int, size: int) -> Iterator[slice]:
    """Yield slices of at most ``size`` rows that cover all rows in order."""
    for start in range(0, n_rows, size):
        yield slice(start, min(start + size, n_rows))


def summarize_votes(votes: Any, n_classes: int) -> VoteSummary:
    """Summarize votes: uncovered rows, coverage, constant, duplicated and one-sided sources.

    Args:
        votes: (n, m) integers of -1 .. K-1.
        n_classes: K.

    Raises:
        W2SError: As ``check_votes``.
    """
    votes = check_votes(votes, n_classes)
    counts = count_symbols(votes, n_classes)
    cast, voted_for = counts[:-1].sum(0), (counts[:-1] > 0).sum(0)
    constant = counts.amax(0) == len(votes)
    one_sided = (voted_for == 1) & ~constant
    return VoteSummary(
        n_rows=len(votes),
        n_uncovered=int((~covered_rows(votes)).sum()),
        coverage=cast / len(votes),
        constant=tuple(constant.nonzero()[:, 0].tolist()),
        duplicates=_equal_columns(votes),
        one_sided=tuple(one_sided.nonzero()[:, 0].tolist()),
    )


def count_symbols(votes: Tensor, n_classes: int) -> Tensor:
    """Return how often each source gives each symbol, (K+1, m) float64, abstentions last."""
    m = votes.shape[1]
    counts = torch.zeros(n_classes + 1, m, dtype=torch.float64, device=votes.device)
    offsets = torch.arange(m, device=votes.device) + m
    for rows in row_blocks(len(votes), _HASHED_ROWS):
        codes = (votes[rows].long() * m + offsets).flatten()
        counts += torch.bincount(codes, minlength=(n_classes + 1) * m).view(n_classes + 1, m)
    return counts.roll(-1, 0)


def _equal_columns(votes: Tensor) -> tuple[tuple[int, ...], ...]:
    """Return groups of equal columns; candidates are columns with equal hashes."""
    n, m = votes.shape
    # Sums of products of integers are exact in float64, so equal columns hash equally.
    keys = torch.arange(2 * _HASHED_ROWS, device=votes.device).view(2, -1) * 40503 % 61 + 1
    hashes = torch.zeros(2, m, dtype=torch.float64, device=votes.device)
    for rows in row_blocks(n, _HASHED_ROWS):
        part = votes[rows].double()
        hashes += keys[:, : len(part)].double() @ part
    groups: dict[tuple[float, ...], list[list[int]]] = {}
    for source, value in enumerate(map(tuple, hashes.T.tolist())):
        equal = groups.setdefault(value, [])
        for group in equal:
            if torch.equal(votes[:, group[0]], votes[:, source]):
                group.append(source)
                break
        else:
            equal.append([source])
    found = (tuple(group) for equal in groups.values() for group in equal if len(group) > 1)
    return tuple(sorted(found))


def check_any_vote(votes: Tensor) -> None:
    """Raise if every source abstains for every row.

    Raises:
        W2SError: It does.
    """
    if not bool((votes >= 0).any()):
        raise W2SError("every source abstains for every row; expected at least one vote")


def check_sources(votes: Tensor, n_classes: int, *, independent: bool = True) -> None:
    """Check that votes identify rates: three sources vote, and warn about suspicious sources.

    Args:
        votes: checked votes (n, m).
        n_classes: K.
        independent: the model assumes independent sources, so duplicates distort it.

    Raises:
        W2SError: No source votes, or fewer than three sources vary.
    """
    check_any_vote(votes)
    summary = summarize_votes(votes, n_classes)
    varying = votes.shape[1] - len(summary.constant)
    if varying < MIN_SOURCES:
        raise W2SError(
            f"{varying} of {votes.shape[1]} sources vary over the rows; rates are identified by "
            f"at least {MIN_SOURCES}: add sources, or use MajorityVote"
        )
    if summary.constant:
        _warn(f"{_named(summary.constant)} the same vote in every row and carry no information")
    duplicates = [g for g in summary.duplicates if not set(g) <= set(summary.constant)]
    if duplicates and independent:
        groups = "; ".join(", ".join(map(str, g)) for g in duplicates[:_NAMED])
        _warn(
            f"{len(duplicates)} groups of sources have equal votes in every row ({groups}); "
            "copies count as independent evidence: remove them, or use TreeDawidSkene"
        )


def _named(sources: Sequence[int]) -> str:
    names = ", ".join(map(str, sources[:_NAMED]))
    more = f" and {len(sources) - _NAMED} more" if len(sources) > _NAMED else ""
    return f"sources {names}{more} have"


def _warn(message: str) -> None:
    warnings.warn(message, DataWarning, stacklevel=4)
