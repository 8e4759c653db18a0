"""Rows of logits in a chunk: the default memory budget and the rule, for every op in chunks."""

from __future__ import annotations

import math

from w2s_fast.errors import W2SError

DEFAULT_MEMORY_MIB: float = 64  # for the logits of one chunk
MIB = 1 << 20
# Rows of a chunk are a multiple of this where the budget allows: GEMM tiles stay full.
ROUND_ROWS = 64


def rows_per_chunk(n: int, v: int, itemsize: int, memory_mib: float) -> int:
    """Return the rows of logits that ``memory_mib`` holds; chunks of a call are nearly equal.

    Raises:
        W2SError: if the budget is not a positive number or holds less than one row.
    """
    row = v * itemsize
    if not (isinstance(memory_mib, int | float) and 0 < memory_mib < math.inf):
        raise W2SError(f"memory_mib is {memory_mib!r}; expected a positive number of MiB")
    fit = int(memory_mib * MIB) // row
    if fit < 1:
        raise W2SError(
            f"memory_mib is {memory_mib}, one row of {v} logits takes {row / MIB:.3g} MiB; "
            f"expected at least that, and 64 rows or more to run at speed"
        )
    if fit >= n:
        return max(n, 1)
    chunks = -(-n // fit)
    even = -(-n // chunks)
    rounded = -(-even // ROUND_ROWS) * ROUND_ROWS
    return rounded if rounded <= fit else even
