"""PTX as kernels of basic blocks, reduced to what decides where and when memory is accessed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache

from helpers.races.values import HEADS

WIDTHS = re.compile(r"\.[a-z]+(\d+)$")


ROLES = {
    "block": r"(bar|barrier)\.(cta\.)?(sync|red)\b",
    "cluster": r"barrier\.cluster\.wait\b",
    "warp": r"bar\.warp\.sync\b",
    "commit": r"cp\.async\.commit_group\b",
    "wait": r"cp\.async\.wait_(group|all)\b",
    "param": r"ld\.param\b(?!.*\.f\d+$)",
}


@dataclass
class Op:
    """One instruction: registers that it sets, and operands."""

    line: int
    guard: str
    name: str
    to: list[str]
    args: list[str]
    place: str  # in the source

    def __post_init__(self) -> None:
        self.width = width_of(self.name)
        self.accesses = self.find_accesses()
        self.role = role_of(self.name)
        if self.role == "block" and self.args[:1] != ["0"]:
            self.role = ""  # of some of the warps

    def find_accesses(self) -> list[tuple[str, str, str, int]]:
        """(load, store or atomic; space; address; bytes) of what it does to memory."""
        head, *rest = self.name.split(".")
        if head not in ("ld", "st", "atom", "red", "cp", "ldmatrix", "stmatrix") or "param" in rest:
            return []
        spots = [a for a in self.args if a.startswith("[")]
        if head == "cp":
            if "group" in self.name or "wait" in self.name:
                return []
            size = int(self.args[2])
            return [("store", "shared", spots[0], size), ("load", "global", spots[1], size)]
        space = next((r for r in rest if r.startswith(("shared", "global", "local"))), "global")
        if space == "local":
            return []
        kind = {"ld": "load", "ldmatrix": "load", "st": "store", "stmatrix": "store"}.get(head)
        if {"relaxed", "volatile", "acquire", "release"} & set(rest):
            kind = None
        width = 16 if head.endswith("matrix") else self.width
        return [(kind or "atomic", space, spots[0], width)]

    def __str__(self) -> str:
        return f"{self.name} at {self.place or f'line {self.line} of the PTX'}"


@cache
def role_of(name: str) -> str:
    """What it is beside arithmetic and accesses, if anything."""
    return next((role for role, form in ROLES.items() if re.match(form, name)), "")


@cache
def width_of(name: str) -> int:
    """Bytes that one thread moves."""
    found = WIDTHS.search(name)
    many = re.search(r"\.v(\d)\b", name)
    return (int(found[1]) // 8 if found else 16) * (int(many[1]) if many else 1)


@dataclass
class Block:
    """Instructions that run together, and where they go; the branch is the last one, if any."""

    ops: list[Op] = field(default_factory=list)
    next: list[int] = field(default_factory=list)
    join: int = 0  # where its branches meet again
    live: set[str] = field(default_factory=set)  # registers that are read from here on


class Kernel:
    """The control flow of one entry."""

    PARAM = 1 << 16  # parameter i stands at address (i + 1) PARAM

    def __init__(self, name: str, head: str, lines: list[tuple[int, str, str]]) -> None:
        self.name = name
        self.threads = int(re.search(r"\.(?:req|max)ntid\s+(\d+)", head)[1])  # type: ignore[index]
        names = re.findall(r"\.param\s.*?(\w+)(?:\[\d+\])?\s*[,)\n]", head)
        self.symbols = {n: (i + 1) * self.PARAM for i, n in enumerate(names)}
        items = list(statements(lines))
        self.cluster = any(isinstance(x, Op) and "cluster" in x.name for x in items)
        self.build(items)
        self.keep_what_matters()
        self.find_live_registers()

    def build(self, items: list[Op | str]) -> None:
        self.blocks = [Block()]
        labels: dict[str, int] = {}
        for item in items:
            if isinstance(item, str):
                if self.blocks[-1].ops:
                    self.blocks.append(Block())
                labels[item] = len(self.blocks) - 1
                continue
            self.blocks[-1].ops.append(item)
            if item.name.split(".")[0] in ("bra", "ret", "exit", "trap"):
                self.blocks.append(Block())
        self.end = len(self.blocks)
        for i, block in enumerate(self.blocks):
            last = block.ops[-1] if block.ops else None
            head = last.name.split(".")[0] if last else ""
            if last and head in ("bra", "ret", "exit", "trap"):
                block.next = [labels[last.args[0]] if head == "bra" else self.end]
            if not block.next or (last and last.guard and i + 1 not in block.next):
                block.next.append(i + 1)
        after = self.post_dominators()
        for i, block in enumerate(self.blocks):
            mine = after[i] & ~(1 << i)
            block.join = next(
                (j for j in range(self.end + 1) if mine >> j & 1 and after[j] & mine == mine),
                self.end,
            )

    def post_dominators(self) -> list[int]:
        """For every block the set (as bits) of those through which all paths to the end go."""
        every = (1 << self.end + 1) - 1
        after = [every] * self.end + [1 << self.end]
        changed = True
        while changed:
            changed = False
            for i in reversed(range(self.end)):
                met = every
                for j in self.blocks[i].next:
                    met &= after[j]
                met |= 1 << i
                changed |= met != after[i]
                after[i] = met
        return after

    def returns(self, start: int, block: int, join: int) -> bool:
        """Whether a path leads from ``start`` to ``block`` and not through ``join``."""
        seen, todo = {join, self.end}, [start]
        while todo:
            i = todo.pop()
            if i == block:
                return True
            if i not in seen:
                seen.add(i)
                todo += self.blocks[i].next
        return False

    def live_at(self, block: int) -> set[str]:
        """Registers that are read from the start of a block on."""
        return self.blocks[block].live if block < self.end else set()

    def accesses(self) -> list[Op]:
        return [op for block in self.blocks for op in block.ops if op.accesses]

    def keep_what_matters(self) -> None:
        """Drop instructions on which no address, guard or branch depends."""
        ops = [op for block in self.blocks for op in block.ops]
        fixed = [op for op in ops if op.accesses or not op.to or op.name.startswith("cp.async")]
        wanted = {r for op in fixed for r in registers(op.guard, *(a[2] for a in op.accesses))}
        makers: dict[str, list[Op]] = {}
        for op in ops:
            for to in op.to:
                makers.setdefault(to, []).append(op)
        todo = list(wanted)
        while todo:
            for op in makers.get(todo.pop(), []):
                inputs = op.args if op.name.split(".")[0] in (*HEADS, "ld") else []
                inputs = inputs if op.name[:2] != "ld" or "param" in op.name else []
                fresh = set(registers(op.guard, *inputs)) - wanted
                wanted |= fresh
                todo += fresh
        needed = {id(op) for op in fixed}
        for block in self.blocks:
            block.ops = [op for op in block.ops if id(op) in needed or wanted & set(op.to)]

    def find_live_registers(self) -> None:
        """A guarded instruction leaves the register as it was in some threads, so it reads it."""
        reads: list[set[str]] = []
        writes: list[set[str]] = []
        for block in self.blocks:
            first: set[str] = set()
            own: set[str] = set()
            for op in block.ops:
                first |= set(registers(op.guard, *op.args, *(op.to if op.guard else ()))) - own
                own |= set(op.to)
            reads.append(first)
            writes.append(own)
        changed = True
        while changed:
            changed = False
            for block, first, own in zip(*map(reversed, (self.blocks, reads, writes)), strict=True):
                after = (self.blocks[i].live for i in block.next if i < self.end)
                live = first | set().union(*after) - own
                changed |= live != block.live
                block.live = live


def registers(*texts: str) -> list[str]:
    return [r for text in texts for r in re.findall(r"%[a-z]+\d+", text)]


def statements(lines: list[tuple[int, str, str]]) -> Iterator[Op | str]:
    """Labels, and instructions of one or more lines."""
    text = ""
    for number, line, place in lines:
        if label := re.match(r"\s*([\w$]+):\s*$", line):
            yield label[1]
            continue
        text += " " + line
        while ";" in text:
            one, _, text = text.partition(";")
            one = re.sub(r"^[\s{}]+", "", one)
            if one and not one.startswith("."):
                yield instruction(number, one, place)
        text = re.sub(r"^[\s{}]+$", "", text)


def instruction(line: int, text: str, place: str) -> Op:
    guard = ""
    if text.startswith("@"):
        guard, text = text[1:].split(None, 1)
    name, rest = [*text.split(None, 1), ""][:2]
    args = [a.strip() for a in re.findall(r"(?:\{[^}]*\}|\[[^\]]*\]|\([^)]*\)|[^,{\[(])+", rest)]
    head = name.split(".")[0]
    to: list[str] = []
    silent = ("st", "bra", "ret", "exit", "bar", "barrier", "red", "cp", "call", "stmatrix", "trap")
    if head not in silent and args and args[0].startswith(("%", "{")):
        to = re.findall(r"%[a-z]+\d+|\b_\b", args.pop(0).split("|")[0])
    return Op(line, guard, name, to, args, place)


def kernels_of(ptx: str, wanted: Callable[[str], object] = bool) -> Iterator[Kernel]:
    """The entries of modules whose names are wanted."""
    lines = ptx.splitlines()
    shared = re.findall(r"^\s*(?:\.extern\s+)?\.shared\b.*?([\w$]+)\s*\[", ptx, re.M)
    places = {name: (1 << 24) + (i << 20) for i, name in enumerate(shared)}
    for start, line in enumerate(lines):
        entry = re.search(r"\.entry\s+([\w$]+)", line)
        if not entry or not wanted(entry[1]):
            continue
        opening = lines.index("{", start)
        body, place = [], ""
        for i in range(opening + 1, lines.index("}", start)):
            if loc := re.match(r"\s*\.loc\b(.*?)(?://\s*(.*))?$", lines[i]):
                if not re.match(r"\S+:0\b", loc[2] or ""):  # line 0 is no place
                    place = loc[2] or ""
            else:
                body.append((i + 1, lines[i].split("//")[0], place))
        kernel = Kernel(entry[1], "\n".join(lines[start:opening]), body)
        kernel.symbols |= places
        yield kernel
