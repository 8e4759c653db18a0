"""Find words that one thread stores and another loads with no barrier between, in PTX.

A kernel is carried out for all threads of one block at once, with real addresses and sizes and
without data. A register holds, for every thread, the numbers that it may have; what was loaded,
shuffled or computed in floating point may be anything, so a branch on it is taken both ways and the
paths meet again at its post-dominator. A loop that ends on data runs twice. Every access since the
last barrier stays open, on every path, and a new one is held against all of them: two threads, one
byte, one of the two a store. A thread's own words are no race, because its address is a number of
its own; an address that depends on data may be any in its buffer.

A barrier is bar.sync of the whole block. A shuffle is none; bar.warp.sync is one within a warp, and
the shared memory of another block needs a cluster barrier. Atomics and relaxed loads do not race
with each other. Two stores are held against each other only where neither they nor their addresses
depend on data: which of several entries a label names is not known here. An asynchronous copy stays
open, for its own thread too, until that has waited for its group. Blocks of a grid are not held
against each other.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import zip_longest
from typing import Any

import numpy as np

from helpers.races.access import IN_BLOCK, IN_WARP, OPEN, PENDING, Access, conflict, may_conflict
from helpers.races.ptx import Kernel, Op
from helpers.races.values import ANY, REGION, Value, compute, const, may_be, narrowed, union

Params = dict[tuple[int, int], int | tuple[int, ...]]
SHARED = -1  # the number of the buffer that is shared memory
TURNS = 2  # of a loop that ends on data


@cache
def number(text: str) -> Value:
    """A number as it stands in an instruction."""
    if not re.fullmatch(r"-?(0x[0-9a-fA-F]+|\d+)", text):
        return ANY
    return const((int(text, 0) + 2**63) % 2**64 - 2**63)


def pointer(i: int) -> int:
    """The address of the ``i``-th buffer: nothing that is added to it leads to another one."""
    return (i + 1 << REGION) + (1 << REGION - 1)


@dataclass
class State:
    """Registers of all threads, who may be here, and what is open."""

    active: Any
    sure: Any  # who certainly is
    regs: dict[str, Value] = field(default_factory=dict)
    open: dict[Access, int] = field(default_factory=dict)
    groups: list[set[Access]] = field(default_factory=lambda: [set()])
    written: set[str] = field(default_factory=set)  # registers, since the last fork

    def fork(self, mask: Any, sure: Any) -> State:
        groups = [set(g) for g in self.groups]
        sure = self.sure & sure
        return State(self.active & mask, sure, dict(self.regs), dict(self.open), groups)

    def join(self, sides: list[State], live: set[str]) -> None:
        """Where two paths meet that began here; nobody reads any but the ``live`` registers."""
        a, b = sides
        written = (a.written | b.written) & live
        self.written |= written
        for name in written:
            x, y = a.regs.get(name), b.regs.get(name)
            both = x is not None and y is not None and x is not y
            self.regs[name] = union(x, y, a.active, b.active) if both else x or y
        self.open = {**a.open, **b.open}
        for access in a.open.keys() & b.open.keys():
            self.open[access] = min(a.open[access], b.open[access])
        groups = zip_longest(a.groups[::-1], b.groups[::-1], fillvalue=set())
        self.groups = [x | y for x, y in groups][::-1]

    def meet(self, level: int, keep: bool) -> None:
        """Threads met at a barrier: what had been completed before it is known to them."""
        self.open = {
            access: was if was == PENDING else max(was, level)
            for access, was in self.open.items()
            if keep or was == PENDING
        }

    def wait(self, later: int) -> None:
        """Of the groups of asynchronous copies only the last ``later`` may still be on the way."""
        done = self.groups[: len(self.groups) - 1 - later]
        self.groups = self.groups[len(done) :]
        for access in set().union(*done):
            self.open[access] = max(self.open.get(access, OPEN), OPEN)


class Machine:
    """One block of one kernel."""

    def __init__(self, kernel: Kernel, params: Params, special: dict[str, int]) -> None:
        self.kernel, self.params = kernel, params
        self.special = {"%ntid.x": kernel.threads, "%ctaid.x": 0, "%ctaid.y": 0} | special
        self.tid = np.arange(self.special["%ntid.x"])
        self.found: dict[tuple[int, int], str] = {}
        self.seen: set[int] = set()  # lines of accesses that were carried out
        self.known: dict[Any, Access] = {}
        self.tested: set[tuple[Access, Access, int]] = set()
        self.turns: dict[int, int] = {}

    def start(self) -> None:
        every = np.ones(len(self.tid), bool)
        self.run(0, self.kernel.end, State(every, every))

    def run(self, block: int, stop: int, state: State) -> State:
        """From the start of ``block`` to the start of ``stop``."""
        while block != stop:
            body = self.kernel.blocks[block]
            for op in body.ops:
                self.step(op, state)
            if len(body.next) == 1:
                block = body.next[0]
                continue
            block, state = self.branch(block, state)
        return state

    def branch(self, block: int, state: State) -> tuple[int, State]:
        body = self.kernel.blocks[block]
        taken, passed = (m & state.active for m in self.guard(body.ops[-1], state))
        sides = [s for s in zip(body.next, (taken, passed), strict=True) if s[1].any()]
        if len(sides) == 1:
            return sides[0][0], state
        open_ended = bool((taken & passed).any())
        if open_ended and self.turns.get(block, 0) >= TURNS:
            out = [s for s in sides if not self.kernel.returns(s[0], block, body.join)]
            if len(out) == 1:
                return out[0][0], state
        self.turns[block] = self.turns.get(block, 0) + open_ended
        ends = []
        for (target, mask), other, holds in zip(sides, (passed, taken), (True, False), strict=True):
            side = state.fork(mask, mask & ~other)
            self.learn(body.ops[-1].guard, holds, side)
            ends.append(self.run(target, body.join, side))
        self.turns[block] -= open_ended
        state.join(ends, self.kernel.live_at(body.join))
        return body.join, state

    def learn(self, guard: str, holds: bool, state: State) -> None:
        """What is known of a register once a branch on its comparison was taken."""
        why = self.read(guard.lstrip("!"), state).why
        if why is None or state.regs.get(why[1]) is not why[2] or len(why[3].lo) > 1:
            return  # not a comparison with one number, or the register has changed since
        state.regs[why[1]] = narrowed(why, holds != guard.startswith("!"))
        state.written.add(why[1])

    def guard(self, op: Op, state: State) -> tuple[Any, Any]:
        """Threads for which the guard may hold, and for which it may not."""
        every = np.ones(len(self.tid), bool)
        if not op.guard:
            return every, ~every
        sides = may_be(self.read(op.guard.lstrip("!"), state))
        yes, no = (np.broadcast_to(s, every.shape) for s in sides)
        return (no, yes) if op.guard.startswith("!") else (yes, no)

    def read(self, text: str, state: State) -> Value:
        """An operand: a register, a number, the name of a parameter or of shared memory."""
        if text in state.regs:
            return state.regs[text]
        if text == "%tid.x":
            return const(self.tid)
        if text in ("%laneid", "%warpid"):
            return const(self.tid % 32 if text == "%laneid" else self.tid // 32)
        if text in self.special:
            return const(self.special[text])
        if text in self.kernel.symbols:
            return const(self.kernel.symbols[text])
        return number(text)

    def address(self, text: str, state: State) -> Value:
        base, _, offset = text.strip("[] ").partition("+")
        value = self.read(base.strip(), state)
        return compute("add.s64", [value, number(offset.strip())]) if offset else value

    def step(self, op: Op, state: State) -> None:
        if op.role == "block":
            if not state.active.all():
                self.found[op.line, op.line] = f"some threads never reach {op}"
            state.meet(IN_BLOCK, self.kernel.cluster)
        elif op.role == "cluster":
            state.meet(IN_BLOCK, False)
        elif op.role == "warp":
            state.meet(IN_WARP, True)
        elif op.role == "commit":
            state.groups.append(set())
        elif op.role == "wait":
            state.wait(int(op.args[0]) if op.args else 0)
        elif op.accesses:
            self.touch(op, state)
        for i, to in enumerate(op.to):
            self.write(op, to, self.result(op, i, state), state)

    def result(self, op: Op, i: int, state: State) -> Value:
        if op.role == "param":
            at = int(self.address(op.args[0], state).lo.flat[0]) + i * (op.width // len(op.to))
            value = self.params.get((at // self.kernel.PARAM - 1, at % self.kernel.PARAM))
            return ANY if value is None else const(value)
        values = [self.read(a, state) for a in op.args]
        if len(op.to) > 1:  # words of one register
            why = values[0].why if op.name == "mov.b64" else None
            return why[2 + i] if why and why[0] == "pack" else ANY
        if op.name == "mov.b64" and op.args[0].startswith("{"):
            halves = [self.read(a, state) for a in re.split(r"[{},\s]+", op.args[0])[1:-1]]
            return replace(ANY, why=("pack", "", *halves)) if len(halves) == 2 else ANY
        value = compute(op.name, values)
        if value is not ANY and op.name.startswith("setp"):
            value = replace(value, why=(op.name, op.args[0], *values))
        return value

    def write(self, op: Op, to: str, value: Value, state: State) -> None:
        if op.guard and to in state.regs:
            yes, no = self.guard(op, state)
            value = union(value, state.regs[to], yes, no)
        state.regs[to] = value
        state.written.add(to)

    def touch(self, op: Op, state: State) -> None:
        yes, no = self.guard(op, state)
        mask, sure = state.active & yes, state.sure & ~no
        if not mask.any():
            return
        self.seen.add(op.line)
        for kind, space, text, width in op.accesses:
            spots = self.address(text, state), width, mask, sure
            for access in self.accesses(op, kind, space, *spots):
                self.check(access, state)
                copy = op.name.startswith("cp.async") and kind == "store"
                state.open[access] = PENDING if copy else OPEN
                if copy:
                    state.groups[-1].add(access)

    def accesses(
        self, op: Op, kind: str, space: str, to: Value, width: int, mask: Any, sure: Any
    ) -> Iterator[Access]:
        """One for every buffer that the address may lie in; a null pointer is not followed."""
        shape = (len(to.lo), len(mask))
        arrays = (to.lo, to.hi, self.tid, sure & (len(to.lo) == 1))
        lo, hi, by, sure = (np.broadcast_to(x, shape)[:, mask] for x in arrays)
        places = np.full(lo.shape, SHARED) if "shared" in space else (lo + hi) // 2 >> REGION
        for buffer in np.unique(places):
            if buffer == 0:
                continue
            same_buffer = places == buffer
            spots = (
                lo[same_buffer],
                hi[same_buffer] + width,
                by[same_buffer],
                (sure & (lo == hi))[same_buffer],
            )
            key = (op.line, kind, int(buffer), *(x.tobytes() for x in spots))
            if key not in self.known:
                far = "cluster" in space
                self.known[key] = Access(op, kind, int(buffer), *spots, far)
            yield self.known[key]

    def check(self, new: Access, state: State) -> None:
        for old, level in state.open.items():
            if not may_conflict(old, new) or (old, new, level) in self.tested:
                continue
            if (old.op.line, new.op.line) in self.found:
                continue
            self.tested.add((old, new, level))
            if conflict(old, new, level):
                self.found[old.op.line, new.op.line] = f"no barrier from {old.op} to {new.op}"


def races(
    kernel: Kernel, layouts: Iterable[tuple[Params, dict[str, int]]]
) -> tuple[list[str], list[str]]:
    """Faults of a kernel under the layouts, and memory accesses that none of them reaches.

    A layout is its parameters, and its special registers.
    """
    faults: list[str] = []
    seen: set[int] = set()
    for params, special in layouts:
        machine = Machine(kernel, params, special)
        machine.start()
        seen |= machine.seen
        faults += machine.found.values()
    unseen = [str(op) for op in kernel.accesses() if op.line not in seen]
    return list(dict.fromkeys(faults)), unseen
