"""From counts to a predicted time: the slowest of issue slots, exponentials and memory.

Nothing here was measured. Latencies, partly filled last waves and launches are left out: times on a
GPU are longer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from tools.machine_model.loops import LoopCount, Streams
from tools.machine_model.machine import MACHINES, Machine

ROWS, CLASSES = 8192, 128_256  # what times are predicted for
ISSUED = 0.75  # of the issue slots that real kernels use
BOUND = 1.05  # memory-bound: at most this many times the memory floor


@dataclass(frozen=True)
class Kernel:
    """A compiled kernel and how it is launched.

    Attributes:
        backend: ``cuda`` or ``triton``.
        name: kernel and mode.
        arch: compute capability times ten.
        streams: bytes of an element of a row.
        loops: the main loops.
        registers: of a thread.
        threads: of a block.
        shared: bytes of a block, static and dynamic.
        tile: bytes that a block copies to shared memory before it reads any; 0 if it does not.
        classes: of a row.
    """

    backend: str
    name: str
    arch: int
    streams: Streams
    loops: tuple[LoopCount, ...]
    registers: int
    threads: int
    shared: int
    tile: int = 0
    classes: int = CLASSES

    @property
    def machine(self) -> Machine:
        """The GPU that times are predicted for."""
        return MACHINES[self.arch]

    @property
    def blocks(self) -> int:
        """Blocks on an SM."""
        return self.machine.blocks_of(self.registers, self.threads, self.shared)

    @property
    def in_flight(self) -> int:
        """Bytes that the loads of an SM can have on the way: of one iteration, or the tile."""
        first = next((n.loaded for n in self.loops if n.loaded), 0)
        return self.blocks * (self.tile or first * self.threads)

    def per_element(self, what: str) -> float:
        """Return a field of ``LoopCount``, summed over the loops, for one element of the row."""
        return sum(getattr(n, what) / n.elements for n in self.loops)


def to_dict(kernel: Kernel) -> dict[str, Any]:
    """Return a kernel as JSON can hold it."""
    return asdict(kernel)


def from_dict(fields: Mapping[str, Any]) -> Kernel:
    """Return the kernel of ``to_dict``."""
    loops = tuple(LoopCount(**n) for n in fields["loops"])
    return Kernel(**{**fields, "streams": Streams(**fields["streams"]), "loops": loops})


@dataclass(frozen=True)
class Prediction:
    """Predicted times in seconds, not measured.

    Attributes:
        issue: of all instructions at 75 % of the issue slots.
        exponentials: of the special function unit.
        memory: of the bytes of global memory at full bandwidth.
        floor: of the bytes that no kernel can avoid.
    """

    issue: float
    exponentials: float
    memory: float
    floor: float

    @property
    def time(self) -> float:
        """The predicted time."""
        return max(self.issue, self.exponentials, self.memory)

    @property
    def bound(self) -> str:
        """What limits the kernel: ``memory`` only where that is within 5 % of the floor."""
        if self.time <= BOUND * self.floor:
            return "memory"
        limits = {"issue": self.issue, "exponentials": self.exponentials, "cache": self.memory}
        return max(limits, key=lambda name: limits[name])


def predict(kernel: Kernel, rows: int = ROWS) -> Prediction:
    """Predict the time of a kernel for this many rows."""
    m, elements = kernel.machine, rows * kernel.classes
    lanes = m.sms * m.clock
    floor = elements * (kernel.streams.read + kernel.streams.written) / m.bandwidth
    return Prediction(
        issue=elements * kernel.per_element("instructions") / 32 / (lanes * m.issue) / ISSUED,
        exponentials=elements * kernel.per_element("exponentials") / (lanes * m.special),
        memory=elements * _traffic(kernel) / m.bandwidth,
        floor=floor,
    )


def _traffic(kernel: Kernel) -> float:
    """Bytes of global memory an element.

    A row that is read twice is read from L2 the second time as far as the rows that all blocks have
    begun, on average half a row each, fit it.
    """
    loaded = [n.loaded / n.elements for n in kernel.loops if n.loaded]
    live = kernel.machine.sms * kernel.blocks * kernel.classes * kernel.streams.read / 2
    missed = max(0.0, 1 - kernel.machine.l2 / live) if live else 0.0
    return sum(loaded[:1]) + missed * sum(loaded[1:]) + kernel.per_element("stored")
