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
        instructions: issued; 0 where another kernel serves 128256 classes.
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
# Starved are CUDA kernels with one load a thread and iteration, and the soft-capped one of Triton.
LIMITS = {
    "cuda": {
        "RowsKernel<BF16, None, loss>": Limit(
            (0, 13.0, 13.3), 2.05, (0, 2, 2), (0, 6, 6), memory=(90, 100)
        ),
        "RowsKernel<BF16, None, entropy>": Limit(
            (13.9, 14.5, 14.5), 2.05, (4, 2, 2), (0, 6, 6), memory=(80, 90)
        ),
        "RowsKernel<BF16, BF16, entropy>": Limit(
            (0, 24.0, 23.7), 2.05, (0, 4, 4), (0, 12, 12), memory=(90,)
        ),
        "RowsKernel<float, None, entropy>": Limit(
            (14.5, 16.1, 15.1), 2.05, (8, 4, 4), (0, 12, 12), memory=(90, 100)
        ),
        "RowsKernel<float, float, entropy>": Limit(
            (0, 26.6, 24.6), 2.05, (0, 8, 8), (0, 24, 24), memory=(90, 100)
        ),
        "GradientKernel<BF16, None, loss>": Limit((6.3, 6.5, 7.0), 1.05, (2, 2, 2), memory=ARCHES),
        "GradientKernel<BF16, BF16, all>": Limit(
            (12.3, 12.4, 14.9), 1.05, (4, 4, 4), memory=ARCHES
        ),
        "FixupKernel<BF16>": Limit((6.3, 6.4, 5.4), 0, (2, 2, 2), memory=ARCHES, starved=(100,)),
        "ScaleKernel<BF16>": Limit((6.4, 6.3, 5.6), 0, (2, 2, 2), memory=ARCHES, starved=(100,)),
    },
    "triton": {
        "rows hard bf16": Limit((15.4, 15.5, 14.8), 2.05, (4, 4, 4), memory=(80, 90)),
        "rows dense plain bf16": Limit((30.6, 30.1, 27.0), 2.05, (8, 8, 8), memory=(80,)),
        "rows dense fp32": Limit((27.0, 27.5, 27.4), 2.05, (16, 16, 16), memory=(100,)),
        "rows sparse cap fp32": Limit((76.4, 77.4, 69.9), 7.1, (8, 8, 8), starved=(100,)),
        "gradient sparse bf16": Limit((11.3, 11.4, 9.9), 2.05, (2, 2, 2), memory=ARCHES),
        "fixup sparse fp32": Limit((3.7, 3.7, 3.6), 0, (4, 4, 4), memory=ARCHES),
        "scale bf16": Limit((5.5, 5.5, 4.9), 0, (2, 2, 2), memory=ARCHES),
    },
}


def launched(backend: str) -> set[tuple[str, int]]:
    """Return the kernels with a line and the architectures on which each is launched."""
    lines = LIMITS[backend].items()
    return {
        (n, a) for n, limit in lines for a, m in zip(ARCHES, limit.instructions, strict=True) if m
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
