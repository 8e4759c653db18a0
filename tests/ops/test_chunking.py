"""Rows of a chunk: never more than the budget holds, nearly equal, rounded where there is room."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from w2s_fast.errors import W2SError
from w2s_fast.ops import chunking
from w2s_fast.ops.chunking import MIB, ROUND_ROWS, default_memory_mib, rows_per_chunk
from w2s_fast.ops.fused_linear import gemm
from w2s_fast.ops.info_nce.api import default_memory_mib as default_similarities_mib


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


CUDA = torch.device("cuda")


def test_default_budget_of_a_cpu() -> None:
    assert default_memory_mib(128_256, 2, torch.device("cpu")) == 64


@pytest.mark.parametrize("free_mib", [140_000.0, 3000.0, 0.0])
@pytest.mark.parametrize(("v", "itemsize"), [(128_256, 2), (1_000_000, 4), (32, 4)])
def test_default_budget_of_a_gpu(
    v: int, itemsize: int, free_mib: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1 GiB or 1024 rows, a quarter of the free memory at most, 64 rows at least."""
    monkeypatch.setattr(chunking, "_free_mib", lambda device, enough: free_mib)
    budget, row = default_memory_mib(v, itemsize, CUDA), v * itemsize / MIB
    assert budget <= max(free_mib / 4, 64 * row)
    rows = rows_per_chunk(1 << 20, v, itemsize, budget)
    if free_mib > 100_000:
        assert budget == max(1024, 1024 * row)
        assert rows >= 1024
    else:
        assert rows >= 64


def test_ranks_agree_on_the_default_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunking, "_free_mib", lambda device, enough: 1.0)
    assert default_memory_mib(128_256, 2, CUDA, same_on_all_ranks=True) == 1024


def test_free_memory_counts_what_the_allocator_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100 * MIB, 1000 * MIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 700 * MIB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 300 * MIB)
    assert chunking._free_mib(CUDA, 50.0) == 100  # enough without asking the allocator
    assert chunking._free_mib(CUDA, 4096.0) == 500
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert chunking._free_mib(CUDA, 4096.0) == 4096  # a captured graph asks nobody


def test_a_chunk_keeps_the_products_busy() -> None:
    """H200: 6 R V D operations at 700 TFLOP/s beside 8 V D bytes of head gradient at 4.8 TB/s."""
    v = 128_256
    rows = rows_per_chunk(4096, v, 2, default_memory_mib(v, 2, CUDA, same_on_all_ranks=True))
    products, gradient = 6 * rows / 700e12, 8 / 4.8e12
    assert gradient < 0.05 * products


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("v", [50257, 128_256, 3])
def test_rows_of_a_chunk_are_aligned_on_a_gpu(v: int, dtype: torch.dtype) -> None:
    hidden = torch.empty((4, 8), dtype=dtype, device="meta")
    buffer = gemm.logits_buffer(hidden, hidden.new_empty((v, 8)), 6)
    assert buffer is not None and buffer.shape == (6, v) and buffer.stride(1) == 1
    assert buffer.stride(0) * buffer.element_size() % 16 == 0
    assert buffer.stride(0) - v < 8


def test_a_gpu_multiplies_large_tiles() -> None:
    head = torch.empty((50257, 4096), dtype=torch.bfloat16, device="meta")
    widths = [at.stop - at.start for at in gemm.tiles(head, 2048)]
    assert sum(widths) == 50257
    assert all(w == 8192 for w in widths[:-1]) and len(widths) == 7


def test_similarities_of_a_chunk() -> None:
    """A GPU needs products of 1024 queries; what the documents take decides from 16384 on."""
    for m, mib in ((1000, 64), (16384, 64), (65536, 256)):
        documents = torch.empty((m, 8), dtype=torch.bfloat16, device="meta")
        assert default_similarities_mib(documents) == mib
    assert default_similarities_mib(torch.empty(65536, 8)) == 8
