"""Loops of a function, and the path that an iteration of a loop takes.

A loop is a natural loop: a back edge goes to a block that dominates its origin. An iteration is
taken to go from the header to a back edge along the path that moves the most 16-byte vectors, and
of those along the shortest one. That is the interior of a row: the ends of a row move element by
element, and what a test guards beside the moves (a maximum that grows, a soft-cap, NaN, a diverged
warp) makes a path longer. So work of a usual row must not be behind a branch in the loop: it would
not be counted.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import networkx as nx

from tools.machine_model.sass import Function, Instruction

# Vectors moved -> instructions and blocks of the shortest way that moves so many.
Ways = dict[int, tuple[int, list[int]]]
_ENDS = ("EXIT", "RET", "BRX", "BRXU", "JMX", "BPT")


@dataclass(frozen=True)
class Loop:
    """A natural loop: block indices; ``header`` is where every iteration starts."""

    header: int
    blocks: frozenset[int]
    latches: frozenset[int]


class Flow:
    """The control flow graph of one function; a block is named by its first instruction."""

    def __init__(self, function: Function) -> None:
        self.function = function
        self.graph = _graph(function)

    def code(self, block: int) -> tuple[Instruction, ...]:
        """Return the instructions of a block."""
        return self.function.code[block : self.graph.nodes[block]["end"]]

    @cached_property
    def loops(self) -> list[Loop]:
        """All natural loops, by address."""
        first = {**nx.immediate_dominators(self.graph, 0), 0: 0}
        reached = self.graph.subgraph(first)
        latches: dict[int, set[int]] = {}
        for origin, header in reached.edges:
            if _dominates(first, header, origin):
                latches.setdefault(header, set()).add(origin)
        loops = []
        for header, origins in sorted(latches.items()):
            blocks = {header}.union(origins)
            without = reached.subgraph(n for n in reached if n != header)
            for origin in origins - {header}:
                blocks |= nx.ancestors(without, origin)
            loops.append(Loop(header, frozenset(blocks), frozenset(origins)))
        return loops

    @cached_property
    def whole(self) -> Loop:
        """The function as if it were the body of a loop."""
        reached = {0} | nx.descendants(self.graph, 0)
        ends = frozenset(b for b in reached if not self.graph.out_degree(b))
        return Loop(0, frozenset(reached), ends)

    def inside(self, loop: Loop) -> list[Loop]:
        """Return the loops within a loop."""
        return [o for o in self.loops if o.header in loop.blocks and o.header != loop.header]

    def path(self, loop: Loop, inner: int = 1) -> list[int]:
        """Return the blocks that an iteration passes, those of loops within as often as they run.

        Args:
            inner: vectors that loops within move for each one that the loop moves itself.
        """
        within = frozenset(b for o in self.inside(loop) for b in o.blocks)
        if not any(i.wide for b in within for i in self.code(b)):
            ways = self._ways(loop, within, 1)
            return ways[max(ways)][1]
        # A loop within may be unrolled, so that it runs less often than it moves vectors.
        ways = _shortest(self._ways(loop, within, times) for times in range(1, inner + 1))
        return ways[1 + inner if 1 + inner in ways else max(ways)][1]

    def _ways(self, loop: Loop, within: frozenset[int], times: int) -> Ways:
        """Return the shortest way through an iteration for each number of vectors."""
        body = nx.DiGraph(self.graph.subgraph(loop.blocks))
        for one in self.loops:
            body.remove_edges_from([(origin, one.header) for origin in one.latches])
        best: dict[int, Ways] = {}
        for block in nx.topological_sort(body):
            before = _shortest(best[p] for p in body.predecessors(block))
            ways = {0: (0, [])} if block == loop.header else before
            code, often = self.code(block), times if block in within else 1
            moved = often * sum(i.wide for i in code)
            best[block] = {
                vectors + moved: (length + often * len(code), blocks + [block] * often)
                for vectors, (length, blocks) in ways.items()
            }
        return _shortest(best[origin] for origin in loop.latches)


def _shortest(many: Iterable[Ways]) -> Ways:
    """Merge ways by their number of vectors."""
    out: Ways = {}
    for ways in many:
        for vectors, way in ways.items():
            if vectors not in out or way[0] < out[vectors][0]:
                out[vectors] = way
    return out


def _graph(function: Function) -> nx.DiGraph:
    code, labels = function.code, function.labels
    starts = {0, *(at for at in labels.values() if at < len(code))}
    starts |= {n + 1 for n, i in enumerate(code) if _jumps(i) and n + 1 < len(code)}
    order = sorted(starts)
    graph = nx.DiGraph()
    for block, end in zip(order, [*order[1:], len(code)], strict=True):
        graph.add_node(block, end=end)
        last = code[end - 1]
        if _jumps(last):
            graph.add_edges_from((block, labels[t]) for t in last.targets if t in labels)
        if not _leaves(last) and end < len(code):
            graph.add_edge(block, end)
    return graph


def _jumps(i: Instruction) -> bool:
    return i.base in ("BRA", *_ENDS) or _is_far_jump(i)


def _is_far_jump(i: Instruction) -> bool:
    """Whether a call is a jump: sm_80 calls labels of the same function from uniform branches."""
    return i.base == "CALL" and bool(i.targets)


def _leaves(i: Instruction) -> bool:
    """Whether control never goes on to the next instruction."""
    if i.guard not in ("", "PT"):
        return False
    # A branch may have a predicate of its own before the label: that of a warp, or divergence.
    return i.base in _ENDS or (_jumps(i) and i.operands.startswith("`("))


def _dominates(first: dict[int, int], a: int, b: int) -> bool:
    while b != a and first[b] != b:
        b = first[b]
    return a == b
