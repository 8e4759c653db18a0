"""Labels of generation tasks that a method makes: completions, or pairs of completions.

An item may have several rows or none, so every row names its item. What a method leaves out it
counts in ``report``, which results.json shows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from w2s_fast.errors import W2SError

Samples = list[list[str]]  # n completions of each of N items


@dataclass(frozen=True, eq=False)
class Prompts:
    """The items of the transfer set, as a method's function of texts receives them.

    Attributes:
        ids: (N,) identifiers.
        texts: (N,) prompts.
    """

    ids: Sequence[str]
    texts: Sequence[str]

    def __len__(self) -> int:
        return len(self.ids)

    def rows_of(self, ids: Iterable[str]) -> np.ndarray:
        """Return the (R,) int64 items of R identifiers."""
        row_of = {item: row for row, item in enumerate(self.ids)}
        return np.array([row_of[item] for item in ids], dtype=np.int64)


@dataclass(frozen=True, eq=False, kw_only=True)
class TextLabels:
    """Completions that a student learns.

    Attributes:
        rows: (R,) int64 item of each completion.
        texts: (R,) completions.
        report: JSON values: what became of every item, for results.json.
    """

    rows: np.ndarray
    texts: Sequence[str]
    report: Mapping[str, Any] = field(default_factory=dict)

    def check(self, n: int) -> None:
        """Check the rows against ``n`` items.

        Raises:
            W2SError: There are no rows, or their number or an item does not fit.
        """
        _check_rows(self.rows, n, {"texts": self.texts}, self.report)


@dataclass(frozen=True, eq=False, kw_only=True)
class PairLabels:
    """Pairs of completions that a student learns by a preference loss.

    Attributes:
        rows: (R,) int64 item of each pair.
        chosen: (R,) completions that are preferred.
        rejected: (R,) the other completions.
        q: (R,) probability in [0, 1] that ``chosen`` is the better one; None: 1.
        prefixes: (R,) texts between the prompt and both completions, such as earlier steps; None:
            the completions follow the prompt.
        report: JSON values: what became of every item, for results.json.
    """

    rows: np.ndarray
    chosen: Sequence[str]
    rejected: Sequence[str]
    q: np.ndarray | None = None
    prefixes: Sequence[str] | None = None
    report: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def soft(self) -> np.ndarray:
        """(R, 2) float32 probabilities that ``chosen`` and ``rejected`` are the better one."""
        q = np.ones(len(self.rows)) if self.q is None else self.q
        return np.stack([q, 1 - q], axis=1).astype(np.float32)

    def check(self, n: int) -> None:
        """Check the pairs against ``n`` items.

        Raises:
            W2SError: There are no pairs, or their number, an item or a probability does not fit.
        """
        columns: dict[str, Sequence[Any]] = {"chosen": self.chosen, "rejected": self.rejected}
        if self.prefixes is not None:
            columns["prefixes"] = self.prefixes
        if self.q is not None:
            columns["q"] = self.q.tolist()
            bad = np.flatnonzero(~((self.q >= 0) & (self.q <= 1)))
            if len(bad):
                raise W2SError(f"q[{bad[0]}] is {self.q[bad[0]]}; expected a probability in [0, 1]")
        _check_rows(self.rows, n, columns, self.report)


def _check_rows(
    rows: np.ndarray, n: int, columns: Mapping[str, Sequence[Any]], report: Mapping[str, Any]
) -> None:
    if not len(rows):
        raise W2SError(
            f"the method keeps none of {n} items ({_counted(report)}); loosen its settings, there "
            "would be nothing to train on"
        )
    for name, values in columns.items():
        if len(values) != len(rows):
            raise W2SError(f"{name} has {len(values)} entries for {len(rows)} rows")
    if rows.min() < 0 or rows.max() >= n:
        raise W2SError(f"rows name items {rows.min()} to {rows.max()}; expected 0 to {n - 1}")


def _counted(report: Mapping[str, Any]) -> str:
    """Return a report in one line, with the number of ids in place of a list of them."""
    parts = []
    for name, value in report.items():
        if isinstance(value, Mapping):
            parts.append(f"{name}: {_counted(value)}")
        else:
            listed = isinstance(value, Sequence) and not isinstance(value, str)
            parts.append(f"{len(value) if listed else value} {name}")
    return ", ".join(parts)
