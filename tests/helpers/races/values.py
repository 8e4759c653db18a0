"""What a register may hold: for every thread some alternatives, each a number or a range."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from itertools import product
from typing import Any

import numpy as np

MOST = 64  # alternatives of a thread; beyond that they become one range
REGION = 40  # log2 of the bytes that one buffer may span
FAR = 1 << REGION - 2  # what nobody knows lies within -FAR and FAR


@dataclass(frozen=True, eq=False)
class Value:
    """From ``lo`` to ``hi``: arrays of alternatives by threads; one column is for all threads.

    Both are one array where every alternative is a number, which spares half of the arithmetic.
    """

    lo: Any
    hi: Any
    # Of a predicate: comparison, register, both operands. Of two words in one register: both.
    why: tuple[str, str, Value, Value] | None = None
    as_type: dict[str, Value] = field(default_factory=dict)  # what ``typed`` has found

    @property
    def exact(self) -> bool:
        """Whether it has no ranges; False also where nobody knows."""
        return self.lo is self.hi

    def at(self, which: Any) -> Value:
        """These of its alternatives, or the only one."""
        if len(self.lo) == 1:
            return self
        lo = self.lo[which]
        return Value(lo, lo if self.exact else self.hi[which])


def value_of(lo: Any, hi: Any) -> Value:
    """A range; what is added to a pointer does not leave its buffer, whatever it is."""
    wide = hi - lo > FAR
    if wide.any():
        start = (lo // 2 + hi // 2) >> REGION << REGION
        pointer = start >= 1 << REGION
        lo = np.where(wide, np.where(pointer, start, -FAR), lo)
        hi = np.where(wide, np.where(pointer, start + (1 << REGION) - 1, FAR), hi)
    return Value(lo, hi)


def const(x: Any) -> Value:
    """One number for all threads, one for each (an array), or alternatives (a tuple)."""
    v = np.asarray(x, np.int64)
    v = v.reshape(-1, 1) if isinstance(x, tuple) else v.reshape(1, -1)
    return Value(v, v)


ANY = Value(np.full((1, 1), -FAR), np.full((1, 1), FAR))


def may_be(p: Value) -> tuple[Any, Any]:
    """Threads for which a predicate may be true, and for which it may be false."""
    return ((p.lo != 0) | (p.hi != 0)).any(0), ((p.lo <= 0) & (p.hi >= 0)).any(0)


def slim(x: Value) -> Value:
    """Without alternatives that are there twice; one range, where there are too many."""
    if len(x.lo) == 1:
        return x
    ends = (x.lo,) if x.exact else (x.lo, x.hi)
    keep = list({tuple(e[i].tobytes() for e in ends): i for i in range(len(x.lo))}.values())
    if len(keep) > MOST:
        return value_of(x.lo.min(0, keepdims=True), x.hi.max(0, keepdims=True))
    if len(keep) == len(x.lo):
        return x
    lo = x.lo[keep]
    return Value(lo, lo if x.exact else x.hi[keep])


def union(a: Value, b: Value, in_a: Any, in_b: Any) -> Value:
    """Threads of ``in_a`` have ``a``, those of ``in_b`` have ``b``, those of both have either."""
    if np.array_equal(a.lo, b.lo) and np.array_equal(a.hi, b.hi):
        return a if a.why is b.why else Value(a.lo, a.hi)
    n = np.arange(max(len(a.lo), len(b.lo)))
    i_a, i_b = n % len(a.lo), n % len(b.lo)
    # A thread that is in one of them only has the same alternatives twice.
    sides = (in_a, ~in_b) if (in_a & in_b).any() else (in_a,)

    def either(x: Any, y: Any) -> Any:
        return np.concatenate([np.where(first, x[i_a], y[i_b]) for first in sides])

    lo = either(a.lo, b.lo)
    return slim(Value(lo, lo if a.exact and b.exact else either(a.hi, b.hi)))


def typed(x: Value, kind: str) -> Value:
    """A register read as that type."""
    if kind[1:] == "64":
        return x
    if kind not in x.as_type:
        least, most = limits_of(kind)
        inside = x.lo.min() >= least and x.hi.max() <= most
        x.as_type[kind] = x if inside else converted(x, kind, least, most)
    return x.as_type[kind]


@cache
def limits_of(kind: str) -> tuple[int, int]:
    if kind == "pred":
        return 0, 1
    bits = int(kind[1:])
    least = -(1 << bits - 1) if kind[0] == "s" else 0
    return least, least + (1 << bits) - 1


def converted(x: Value, kind: str, least: int, most: int) -> Value:
    """Numbers beyond a type lose their high bits; a range that crosses its end may be anything."""
    if kind == "pred":
        return Value(*(np.minimum(np.maximum(end, 0), 1) for end in (x.lo, x.hi)))
    bits, top = int(kind[1:]), most - least
    lo = x.lo - least
    if x.exact:
        lo = (lo & top) + least
        return Value(lo, lo)
    hi = x.hi - least
    same = lo >> bits == hi >> bits
    return Value(np.where(same, lo & top, 0) + least, np.where(same, hi & top, top) + least)


def divide(a: Any, b: Any) -> Any:
    safe = np.where(b == 0, 1, b)
    return np.sign(a) * np.sign(safe) * (np.abs(a) // np.abs(safe))


# Exact results of numbers.
NUMBERS: dict[str, Callable[..., Any]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "min": np.minimum, "max": np.maximum,
    "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor, "div": divide,
    "rem": lambda a, b: a - b * divide(a, b), "neg": np.negative, "abs": np.abs, "not": np.invert,
    "shl": lambda a, b: np.where(b < 64, a << (b & 63), 0), "shr": lambda a, b: a >> (b & 63),
    "mad": lambda a, b, c: a * b + c, "bfe": lambda a, b, n: a >> b & (1 << n) - 1,
    "mov": lambda a: a, "cvta": lambda a: a, "cvt": lambda a: a, "mapa": lambda a, b: a + 0 * b,
    "selp": lambda a, b, p: np.where(p != 0, a, b),
}  # fmt: skip
# Results of ranges are between those of their ends, where those do not overflow.
BETWEEN = ("add", "sub", "mul", "min", "max", "neg", "shl", "shr", "mad", "mov", "cvta", "cvt")
BETWEEN += ("mapa", "selp")
COMPARE: dict[str, Callable[..., Any]] = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater,
    "ge": np.greater_equal, "lo": np.less, "ls": np.less_equal, "hi": np.greater,
    "hs": np.greater_equal,
}  # fmt: skip
INTEGERS = {f"{s}{n}" for s in "sub" for n in (8, 16, 32, 64)} | {"pred"}
HEADS = {*NUMBERS, "setp"}


def ranged(head: str, xs: list[Value]) -> Value:
    """The result where operands are ranges."""
    if head in ("and", "rem", "bfe"):  # at most the smaller, if none is negative
        least = np.minimum(xs[0].hi, xs[1].hi - (head == "rem"))
        if head == "bfe":
            least = (1 << np.minimum(xs[2].hi, 32)) - 1
        sure = (xs[0].lo >= 0) & (xs[1].lo >= 0)
        return Value(np.where(sure, 0, -FAR), np.where(sure, least, FAR))
    if head not in BETWEEN:
        return ANY
    ends = [NUMBERS[head](*each) for each in product(*((x.lo, x.hi) for x in xs))]
    lo, hi = np.minimum.reduce(ends), np.maximum.reduce(ends)
    if head in ("mul", "mad", "shl"):
        size = np.maximum(np.abs(xs[0].lo), np.abs(xs[0].hi)).astype(float)
        by = np.maximum(np.abs(xs[1].lo), np.abs(xs[1].hi)).astype(float)
        wild = size * (2.0 ** np.minimum(by, 64) if head == "shl" else by) > 2.0 * FAR
        lo, hi = np.where(wild, -FAR, lo), np.where(wild, FAR, hi)
    return value_of(lo, hi)


def compared(how: str, a: Value, b: Value) -> Value:
    """Whether; from 0 to 1 where ranges leave it open."""
    if a.exact and b.exact:
        lo = COMPARE[how](a.lo, b.lo).astype(np.int64)
        return Value(lo, lo)
    if how in ("eq", "ne"):
        apart, same = (a.hi < b.lo) | (b.hi < a.lo), (a.lo == a.hi) & (b.lo == b.hi)
        lo, hi = same & (a.lo == b.lo), ~apart
        lo, hi = (~hi, ~lo) if how == "ne" else (lo, hi)
    else:
        ends = [COMPARE[how](a.lo, b.hi), COMPARE[how](a.hi, b.lo)]
        lo, hi = ends[0] & ends[1], ends[0] | ends[1]
    return Value(lo.astype(np.int64), hi.astype(np.int64))


def narrowed(why: tuple[str, str, Value, Value], holds: bool) -> Value:
    """The compared register without the alternatives for which a branch goes the other way."""
    name, _, x, other = why
    p = compared(name.split(".")[1], *(typed(v, name.split(".")[-1]) for v in (x, other)))
    keep, lo, hi = np.broadcast_arrays(p.hi == 1 if holds else p.lo == 0, x.lo, x.hi)
    first = keep.argmax(0), np.arange(keep.shape[1])
    return slim(Value(np.where(keep, lo, lo[first]), np.where(keep, hi, hi[first])))


@cache
def types_of(name: str, head: str, count: int) -> list[str]:
    """Types of the operands of an instruction of integers; none for all others."""
    kinds = [k for k in name.split(".")[1:] if k in INTEGERS or k[0] in "fb" and k[-1].isdigit()]
    if not kinds or not {*kinds} <= INTEGERS or head not in HEADS or ".hi." in name:
        return []
    types = [kinds[-1]] * count
    if head in ("shl", "shr", "bfe"):
        types[1:] = ["u32"] * (count - 1)
    if head == "mad" and ".wide" in name:
        types[2] = "s64"
    if head == "selp":
        types[2] = "pred"
    return types


def once(head: str, name: str, xs: list[Value], types: list[str]) -> Value:
    """The result for operands of as many alternatives each, or of one for all."""
    if head == "setp":
        return compared(name.split(".")[1], *xs)
    if types[0] == "pred" and head in ("and", "or"):
        return Value(NUMBERS[head](xs[0].lo, xs[1].lo), NUMBERS[head](xs[0].hi, xs[1].hi))
    if types[0] == "pred" and head == "not":
        return Value(1 - xs[0].hi, 1 - xs[0].lo)
    v = NUMBERS[head](*(x.lo for x in xs))
    if all(x.exact for x in xs):
        return Value(v, v)
    known = np.logical_and.reduce(np.broadcast_arrays(*(x.lo == x.hi for x in xs)))
    if known.all():
        return Value(v, v)
    r = ranged(head, xs)
    return Value(np.where(known, v, r.lo), np.where(known, v, r.hi))


def compute(name: str, args: list[Value]) -> Value:
    """The result of an instruction; anything, if it is not one of integers."""
    head = name.split(".")[0]
    types = types_of(name, head, len(args))
    if not types or (head == "setp" and (len(args) != 2 or name.split(".")[1] not in COMPARE)):
        return ANY
    args = [typed(a, t) for a, t in zip(args, types, strict=True)]
    if head == "selp":  # either, where the predicate may be either
        yes, no = may_be(args[2])
        return union(args[0], args[1], yes, no)
    if all(len(a.lo) == 1 for a in args):
        return once(head, name, args, types)
    if np.prod([len(a.lo) for a in args]) > 8 * MOST:
        args = [Value(a.lo.min(0, keepdims=True), a.hi.max(0, keepdims=True)) for a in args]
    each = np.indices([len(a.lo) for a in args]).reshape(len(args), -1)
    return slim(once(head, name, [a.at(i) for a, i in zip(args, each, strict=True)], types))
