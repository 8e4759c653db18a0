"""Blocks of rows: memory of a pass does not grow with the number of rows."""

from __future__ import annotations

from collections.abc import Iterator


def row_blocks(n_rows: int, size: int) -> Iterator[slice]:
    """Yield slices of at most ``size`` rows that cover all rows in order."""
    for start in range(0, n_rows, size):
        yield slice(start, min(start + size, n_rows))
