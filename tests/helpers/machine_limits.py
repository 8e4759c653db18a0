"""What the machine code of each row kernel may cost: the limits that the kernels are held to.

Counts are of ``tools.machine_model``, from the disassembly; they are not measurements. One mode a
kernel is held; a better kernel lowers its line in the same commit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import pytest

from tools.machine_model import write
from tools.machine_model.prediction import Kernel, predict

ARCHES = (80, 90, 100)
# By Little's law what an SM of sm_90 and of sm_100 must have on the way to keep the memory busy:
# 4.8 TB/s x 800 ns / 132 SMs, at the 0.84 of it that we aim for, and 8 TB/s x 800 ns / 148 SMs.
NEEDED = {80: 0, 90: 24_000, 100: 43_000}


class Limit(NamedTuple):
    """Most that a kernel may cost an element of a row, each for sm_80, sm_90 and sm_100.

    Attributes:
        instructions: issued.
        exponentials: of the special function unit.
        loaded: bytes from global memory.
        shared: bytes to and from shared memory.
        memory: architectures on which the kernel must be predicted memory-bound: at most 1.05 of
            the time that its bytes take.
        starved: architectures on which it may have fewer bytes in flight than ``NEEDED``.
    """

    instructions: tuple[float, float, float]
    exponentials: float
    loaded: tuple[float, float, float]
    shared: tuple[float, float, float] = (0, 0, 0)
    memory: tuple[int, ...] = ()
    starved: tuple[int, ...] = ()


# Half an instruction of room for versions of the compiler; one more an element is too much.
# Starved are CUDA kernels with one load a thread and iteration, and Triton's with one block an SM.
LIMITS = {
    "cuda": {
        "RowsKernel<BF16, None>": Limit(
            (23.9, 25.6, 26.5), 2.05, (4, 2, 2), (0, 6, 6), memory=(80,)
        ),
        "RowsKernel<BF16, BF16>": Limit((39.5, 44.4, 44.5), 2.05, (8, 4, 4), (0, 12, 12)),
        "RowsKernel<float, None>": Limit(
            (29.0, 32.3, 33.5), 2.05, (8, 4, 4), (0, 12, 12), memory=(90,)
        ),
        "RowsKernel<float, float>": Limit((46.5, 60.5, 58.3), 2.05, (16, 8, 8), (0, 24, 24)),
        "GradientKernel<BF16, None>": Limit(
            (11.0, 11.3, 11.4), 1.05, (2, 2, 2), memory=ARCHES, starved=(90, 100)
        ),
        "GradientKernel<BF16, BF16>": Limit(
            (14.1, 14.5, 14.7), 1.05, (4, 4, 4), memory=ARCHES, starved=(100,)
        ),
        "FixupKernel<BF16>": Limit((6.3, 6.4, 5.4), 0, (2, 2, 2), memory=ARCHES, starved=(100,)),
        "ScaleKernel<BF16>": Limit((6.4, 6.3, 5.6), 0, (2, 2, 2), memory=ARCHES, starved=(100,)),
    },
    "triton": {
        "rows hard bf16": Limit(
            (19.3, 18.6, 15.2), 2.05, (4, 4, 4), memory=(80, 90), starved=(100,)
        ),
        "rows dense plain bf16": Limit((34.5, 33.1, 30.3), 2.05, (8, 8, 8), memory=(80,)),
        "rows dense fp32": Limit((34.9, 33.3, 35.0), 2.05, (16, 16, 16), memory=(100,)),
        "rows sparse cap fp32": Limit((82.0, 80.9, 74.5), 7.1, (8, 8, 8), starved=(100,)),
        "gradient sparse bf16": Limit((12.7, 12.0, 10.5), 2.05, (2, 2, 2), memory=ARCHES),
        "fixup sparse fp32": Limit((3.7, 3.7, 3.6), 0, (4, 4, 4), memory=ARCHES),
        "scale bf16": Limit((5.5, 5.5, 4.9), 0, (2, 2, 2), memory=ARCHES),
    },
}
LOOPS = {
    "cuda": {"RowsKernel": {"pass", "write"}, "": {"write"}},
    "triton": {"rows": {"pass", "write"}, "scale": {"whole"}, "": {"write"}},
}


def rows_not_on_page(kernels: Iterable[Kernel], compiler: str) -> list[str]:
    """Return rows of docs/machine_model.md that would differ; skip if another compiler made it."""
    text = write.PAGE.read_text()
    if compiler not in text:
        pytest.skip(f"docs/machine_model.md was not written with {compiler}")
    sections = {
        arch: text.partition(f"(sm_{arch}), predicted")[2].partition("\n## ")[0] for arch in ARCHES
    }
    return [
        f"sm_{k.arch}: {write.row(k)}"
        for k in kernels
        if write.is_listed(k) and write.row(k) not in sections[k.arch]
    ]


def all_complaints(kernels: Iterable[Kernel]) -> list[str]:
    """Return what is wrong with each kernel, in lines."""
    return [f"{k.name} sm_{k.arch}: {why}" for k in kernels for why in complaints(k)]


def complaints(kernel: Kernel) -> Iterator[str]:
    """Say in what a compiled kernel is over its limits; a kernel without a line has none."""
    limit = LIMITS[kernel.backend].get(kernel.name)
    if limit is None:
        return
    loops = next(v for k, v in LOOPS[kernel.backend].items() if kernel.name.startswith(k))
    if {n.kind for n in kernel.loops} - {"fetch"} != loops:
        yield f"loops {[n.kind for n in kernel.loops]}, not {sorted(loops)}"
        return
    at = ARCHES.index(kernel.arch)
    most = {
        "instructions": limit.instructions[at],
        "exponentials": limit.exponentials,
        "loaded": limit.loaded[at],
        "shared": limit.shared[at],
    }
    for what, allowed in most.items():
        if (cost := kernel.per_element(what)) > allowed:
            yield f"{cost:.2f} {what} an element, at most {allowed}"
    # A kernel without a loop also loads what it needs once.
    if narrow := sum(n.narrow for n in kernel.loops if n.kind != "whole"):
        yield f"{narrow} accesses of a row below 16 bytes"
    starved = kernel.in_flight < NEEDED[kernel.arch]
    if starved and kernel.arch not in limit.starved:
        yield f"{kernel.in_flight} bytes in flight, at least {NEEDED[kernel.arch]}"
    if not starved and kernel.arch in limit.starved:
        yield f"{kernel.in_flight} bytes in flight are enough: say so in its limit"
    bound = predict(kernel).bound
    if kernel.arch in limit.memory and bound != "memory":
        yield f"predicted {bound}-bound, not memory-bound"
