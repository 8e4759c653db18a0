"""What the main loops of a kernel do for one element of a row.

A kernel goes through a row in up to three loops: ``fetch`` copies it to shared memory, ``pass``
reads it and stores nothing wide, ``write`` reads it and stores the gradient. A main loop is an
innermost loop that moves 16-byte vectors. Of several of one kind, those that can only be entered
after another of that kind are left out (a second pass that few rows need), and of alternatives the
one of most instructions counts. The quantile kernels are not counted: they add to counters in
shared memory, and how often these collide depends on the scores.

The elements of an iteration are what all its streams agree on: the least of those that its
different 16-byte loads hold, that its stores hold, and that it has exponentials for. So an unrolled
loop has the elements of all its copies, and a load or an exponential that is doubled does not.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import networkx as nx

from tools.machine_model.flow import Flow, Loop
from tools.machine_model.sass import Function, Instruction

VECTOR = 16  # bytes of a wide access
_REGISTER = re.compile(r"\b(U?R)(\d+)((?:\.\w+)*)")


@dataclass(frozen=True)
class Streams:
    """Bytes of an element of a row: read (logits and dense labels), and written (gradient)."""

    read: int
    written: int


@dataclass(frozen=True)
class LoopCount:
    """Counts of one iteration of a main loop, for one thread; accesses are in bytes.

    Attributes:
        kind: ``fetch``, ``pass`` or ``write``; ``whole`` for a kernel without a main loop.
        elements: elements of the row that the iteration handles.
        instructions: all that are issued.
        exponentials: MUFU instructions, which run at a quarter of the rate or less.
        loaded: bytes from global memory, also those that are copied to shared memory.
        stored: bytes to global memory.
        shared: bytes to and from shared memory.
        narrow: accesses of global memory below 16 bytes.
    """

    kind: str
    elements: int
    instructions: int
    exponentials: int
    loaded: int
    stored: int
    shared: int
    narrow: int


def main_loops(function: Function, streams: Streams, inner: int = 1) -> list[LoopCount]:
    """Count the main loops of a kernel, in the order fetch, pass, write.

    Args:
        streams: bytes of an element.
        inner: vectors that a loop within a main loop moves for each one that this moves itself: of
            dense labels below one vector of logits.
    """
    flow = Flow(function)
    found: dict[str, list[tuple[Loop, LoopCount]]] = {}
    for loop in _own_vectors(flow, inner):
        code = _executed(flow, loop, inner)
        if kind := _kind(code):
            found.setdefault(kind, []).append((loop, _count(kind, code, streams)))
    kinds = [k for k in ("fetch", "pass", "write") if k in found]
    return [_main(flow, found[kind]) for kind in kinds] or _whole(flow, streams)


def _whole(flow: Flow, streams: Streams) -> list[LoopCount]:
    """A kernel without a loop over the row: its whole path, for the vectors of one thread."""
    code = _executed(flow, flow.whole, 1)
    return [_count("whole", code, streams)] if any(i.wide for i in code) else []


def _own_vectors(flow: Flow, inner: int) -> list[Loop]:
    """Innermost loops that move vectors; a copy to shared memory stands for loops within it."""
    out: list[Loop] = []
    for loop in sorted(flow.loops, key=lambda o: len(o.blocks)):
        if not any(i.wide for b in loop.blocks for i in flow.code(b)):
            continue
        within = {b for o in flow.inside(loop) for b in o.blocks}
        own = [i for b in flow.path(loop, inner) if b not in within for i in flow.code(b) if i.wide]
        nested = [o for o in out if o.header in loop.blocks]
        if any(i.base == "LDGSTS" for i in own):
            out = [o for o in out if o not in nested]
            nested = []
        if own and not nested:
            out.append(loop)
    return out


def _executed(flow: Flow, loop: Loop, inner: int) -> list[Instruction]:
    return [i for block in flow.path(loop, inner) for i in flow.code(block)]


def _kind(code: Sequence[Instruction]) -> str:
    wide = {i.base for i in code if i.wide}
    loads, stores = wide & {"LDG", "LD", "LDS"}, wide & {"STG", "ST"}
    if "LDGSTS" in wide:
        return "fetch"
    if loads:
        return "write" if stores else "pass"
    return ""  # zeros, and gradients of rows that lie out of step: not the path of a usual row


def _count(kind: str, code: Sequence[Instruction], streams: Streams) -> LoopCount:
    loads, stores = _distinct(code)
    exponentials = sum(i.base == "MUFU" for i in code)
    evidence = [loads * VECTOR // streams.read]
    if stores:
        evidence.append(stores * VECTOR // streams.written)
    if powers := sum(i.opcode.startswith("MUFU.EX2") for i in code):
        evidence.append(powers)
    wide = [i.base for i in code if i.wide]
    small = ("LDG", "LD", "LDGSTS", "STG", "ST")
    return LoopCount(
        kind,
        elements=min(evidence),
        instructions=len(code),
        exponentials=exponentials,
        loaded=VECTOR * sum(b in ("LDG", "LD", "LDGSTS") for b in wide),
        stored=VECTOR * sum(b in ("STG", "ST") for b in wide),
        shared=VECTOR * sum(b in ("LDS", "LDGSTS") for b in wide),
        narrow=sum(i.base in small and not i.wide for i in code),
    )


def _distinct(code: Sequence[Instruction]) -> tuple[int, int]:
    """Wide loads, and wide stores, of different addresses."""
    version: dict[str, int] = {}
    seen: set[tuple[str, ...]] = set()
    for i in code:
        if i.wide:
            kind = "store" if i.base in ("STG", "ST") else "load"
            address = _address(i)
            registers = [f"{r}={version.get(r, 0)}" for r in _registers(address)]
            seen.add((kind, address, *registers))
        for register in _written(i):
            version[register] = version.get(register, 0) + 1
    loads = sum(key[0] == "load" for key in seen)
    return loads, len(seen) - loads


def _address(i: Instruction) -> str:
    operands = i.operands.replace(".reuse", "")
    if i.base in ("LDG", "LDS", "LD"):
        return operands.partition(",")[2].strip()
    return operands.rpartition(",")[0] if i.base in ("STG", "ST") else operands


def _registers(text: str) -> list[str]:
    """Registers that a text names; an address of 64 bits takes two."""
    out = []
    for file, number, suffix in _REGISTER.findall(text):
        many = 2 if ".64" in suffix else 1
        out += [f"{file}{int(number) + n}" for n in range(many)]
    return out


def _written(i: Instruction) -> list[str]:
    if i.base in ("STG", "ST", "STS", "LDGSTS", "BRA", "RED"):
        return []
    found = _REGISTER.match(i.operands)
    if not found:
        return []
    parts = i.opcode.split(".")
    many = 4 if "128" in parts else 2 if {"64", "WIDE"} & set(parts) or i.base == "CS2R" else 1
    return [f"{found[1]}{int(found[2]) + n}" for n in range(many)]


def _main(flow: Flow, loops: list[tuple[Loop, LoopCount]]) -> LoopCount:
    """The count of the main loop among those of one kind."""
    first = [
        (loop, count)
        for loop, count in loops
        if not any(_follows(flow, loop, other) for other, _ in loops if other != loop)
    ] or loops
    return max(first, key=lambda lc: lc[1].instructions / max(lc[1].elements, 1))[1]


def _follows(flow: Flow, loop: Loop, other: Loop) -> bool:
    """Whether a loop is entered only after another."""
    return nx.has_path(flow.graph, other.header, loop.header) and not nx.has_path(
        flow.graph, loop.header, other.header
    )
