"""Rows of a chunk: never more than the budget holds, nearly equal, rounded where there is room."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from w2s_fast.errors import W2SError
from w2s_fast.ops.chunking import MIB, ROUND_ROWS, rows_per_chunk


@given(
    n=st.integers(0, 100_000),
    v=st.integers(1, 300_000),
    itemsize=st.sampled_from([2, 4, 8]),
    memory_mib=st.floats(0.01, 4096),
)
def test_a_chunk_fits_and_wastes_no_pass(n: int, v: int, itemsize: int, memory_mib: float) -> None:
    fit = int(memory_mib * MIB) // (v * itemsize)
    if fit < 1:
        with pytest.raises(W2SError, match="one row of"):
            rows_per_chunk(n, v, itemsize, memory_mib)
        return
    rows = rows_per_chunk(n, v, itemsize, memory_mib)
    assert 1 <= rows <= max(fit, 1)
    if n > fit:
        chunks = math.ceil(n / fit)  # as few as the budget allows
        assert math.ceil(n / rows) <= chunks
        assert rows % ROUND_ROWS == 0 or rows == math.ceil(n / chunks)


@pytest.mark.parametrize("memory_mib", [0, -1, math.nan, math.inf, "64"])
def test_a_budget_that_is_none(memory_mib: object) -> None:
    with pytest.raises(W2SError, match="memory_mib is .*; expected a positive number of MiB"):
        rows_per_chunk(8, 8, 4, memory_mib)  # type: ignore[arg-type]
