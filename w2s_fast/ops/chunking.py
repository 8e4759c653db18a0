"""Rows of logits in a chunk: the default memory budget and the rule, for every op in chunks."""

from __future__ import annotations

import math

import torch

from w2s_fast.errors import W2SError

MIB = 1 << 20
# Rows of a chunk are a multiple of this where the budget allows: GEMM tiles stay full.
ROUND_ROWS = 64
CPU_MIB = 64.0
# Every chunk reads and writes the fp32 gradient of the head, 8 V D bytes beside 6 R V D operations
# of R rows. With 256 rows that takes an H200 about as long as the products, with 1024 a fifth of
# it, with 4096 a twentieth (bytes at peak bandwidth, operations at 700 TFLOP/s).
DEVICE_MIB = 1024.0
DEVICE_ROWS = 1024
_SHARE_OF_FREE = 4


def default_memory_mib(
    v: int, itemsize: int, device: torch.device, same_on_all_ranks: bool = False
) -> float:
    """Return the MiB that the logits of a chunk may take where the caller gave no budget.

    64 on a CPU. On a GPU 1024, or what 1024 rows of V logits take if that is more, but at most a
    quarter of the free memory, and never less than 64 rows. ``same_on_all_ranks`` ignores the free
    memory: ranks whose chunks communicate must agree on them.
    """
    if device.type == "cpu":
        return CPU_MIB
    row = v * itemsize / MIB
    wanted = max(DEVICE_MIB, DEVICE_ROWS * row)
    if same_on_all_ranks or device.type != "cuda":
        return wanted
    return max(min(wanted, _free_mib(device, _SHARE_OF_FREE * wanted) / _SHARE_OF_FREE), 64 * row)


def _free_mib(device: torch.device, enough: float) -> float:
    """Return free memory, with what torch's allocator holds in reserve, or a number >= enough."""
    if torch.cuda.is_current_stream_capturing():
        return enough  # no query of the driver while a graph is captured
    free = torch.cuda.mem_get_info(device)[0]
    if free < enough * MIB:  # the statistics of the allocator take longer than the query
        free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return free / MIB


def rows_per_chunk(n: int, v: int, itemsize: int, memory_mib: float) -> int:
    """Return the rows of logits that ``memory_mib`` holds; chunks of a call are nearly equal.

    Raises:
        W2SError: if the budget is not a positive number or holds less than one row.
    """
    row = v * itemsize
    if not (isinstance(memory_mib, int | float) and 0 < memory_mib < math.inf):
        raise W2SError(f"memory_mib is {memory_mib!r}; expected a positive number of MiB, or None")
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
