"""Random calls of the cross-entropy: what hypothesis draws, and the tensors made of it.

A case is a small record that prints as the Python that makes it. Structure is drawn field by
field, so that a failure shrinks to few rows, few classes and default options; bulk numbers come
from a seed, and the entries that matter (``marks``) are drawn one by one. The first of a list of
choices is the one a failure shrinks to.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from hypothesis import strategies as st

DTYPES = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp64": torch.float64,
}
# Vectors of 4, 8, 16 and 32 entries and what lies beside them, more than one pack a thread.
WIDTHS = (3, 1, 2, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 129, 255, 257, 300)
BLOCK = (4095, 4096, 4097, 4100)  # of the CPU kernels
MOST = 8200  # logits
LAYOUTS = ("plain", "padded", "columns", "transposed", "offset", "expanded")
REGIMES = ("plain", "flat", "ties", "wide", "confident", "huge")
OFFSETS = (0.0, 1.0, -30.0, 1e4, -1e4, 1e10, -1e10, 1e20, 1e30, -1e30)
MARKS = ("-inf", "lowest", "row of lowest")
WEIGHTS = ("none", "random", "zeros", "ones", "tiny", "large", "mixed")
KINDS = ("hard", "dense", "sparse", "rest")
MASSES = ("unit", "any", "half zero")


class Record:
    """Prints the fields that differ from their defaults."""

    def __repr__(self) -> str:
        changed = (
            f"{f.name}={getattr(self, f.name)!r}"
            for f in fields(self)  # type: ignore[arg-type]
            if getattr(self, f.name) != f.default
        )
        return f"{type(self).__name__}({', '.join(changed)})"


@dataclass(frozen=True, repr=False)
class Rows(Record):
    """Logits, weak labels, weights and the options of one call of ``weak_loss``."""

    n: int = 1
    v: int = 3
    dtype: str = "fp32"
    seed: int = 0
    regime: str = "plain"
    offset: float = 0.0
    marks: tuple[tuple[str, int, int], ...] = ()  # (what, row, class)
    layout: str = "plain"
    kind: str = "hard"
    labels: str = "fp32"
    mass: str = "unit"
    weight: str = "none"
    ignored: int = 0  # of hard labels every so many rows, from the second on
    ignore_index: int = -100
    rule: str = "none"
    aux: float = 0.5
    at: float = 0.5  # quantile of the scores at which rule "fixed" cuts
    smoothing: float = 0.0
    softcap: float = 0.0
    z_loss: float = 0.0
    gamma: float = 0.0
    window: float = 1.0  # share of rows that the window keeps, by their top probability
    reduction: str = "sum"
    upstream: float = 1.0


def pick(*values: Any) -> st.SearchStrategy[Any]:
    """One of the values; failures shrink to the first."""
    return st.sampled_from(values)


def mostly(value: Any, *others: Any) -> st.SearchStrategy[Any]:
    """The value in half of the cases: options must meet each other, and be alone."""
    return st.sampled_from((value,) * len(others) + others)


# ref, cpp: any size. Emulated and interpreted kernels pay for every thread.
def sizes(small: bool) -> tuple[st.SearchStrategy[int], st.SearchStrategy[int]]:
    """Numbers of rows and of classes."""
    if small:
        return st.integers(0, 6), st.sampled_from(WIDTHS[:17])
    many = st.integers(0, 60).map(lambda n: n if n <= 40 else 16 * (n - 40))
    return many, st.integers(0, 99).map(_width)


def _width(i: int) -> int:
    return BLOCK[i - 96] if i >= 96 else WIDTHS[i % len(WIDTHS)]


_SEEDS = st.integers(0, 2**20)
_MARKS = st.lists(
    st.tuples(st.sampled_from(MARKS), st.integers(0, 7), st.integers(0, 7)), max_size=3
).map(tuple)


def rows(small: bool = False, **fixed: Any) -> st.SearchStrategy[Rows]:
    """A call of ``weak_loss``; ``fixed`` gives strategies or values of fields instead."""
    n, v = sizes(small)
    own: dict[str, Any] = {
        "n": n,
        "v": v,
        "dtype": st.sampled_from(tuple(DTYPES)),
        "seed": _SEEDS,
        "regime": mostly(*REGIMES),
        "offset": mostly(*OFFSETS),
        "marks": _MARKS,
        "layout": st.sampled_from(LAYOUTS),
        "kind": st.sampled_from(KINDS),
        "labels": st.sampled_from(tuple(DTYPES)),
        "mass": st.sampled_from(MASSES),
        "weight": st.sampled_from(WEIGHTS),
        "ignored": pick(0, 2, 3),
        "ignore_index": mostly(-100, 0, -1),
        "rule": pick("none", "argmax", "median", "fixed", "prior"),
        "aux": pick(0.5, 0.0, 1.0, 0.3),
        "at": pick(0.5, 0.0, 1.0, 0.2),
        "smoothing": mostly(0.0, 0.1, 0.9),
        "softcap": mostly(0.0, 5.0, 30.0),
        "z_loss": mostly(0.0, 1e-4, 0.1),
        "gamma": mostly(0.0, 1.0, 2.0, 0.5),
        "window": mostly(1.0, 0.5, 0.0),
        "reduction": pick("sum", "mean", "none"),
        "upstream": mostly(1.0, 0.0, -1.5, 3.0),
    } | fixed
    drawn = {k: s if isinstance(s, st.SearchStrategy) else st.just(s) for k, s in own.items()}
    return st.builds(Rows, **drawn).map(settle)


def settle(c: Rows) -> Rows:
    """The nearest call that is defined: an impossible class has an infinite loss, and so on.

    Many rows of many classes are only slow.
    """
    # Of one class all is 0, and of the rounding of a 0 there is no yardstick.
    c = replace(c, n=min(c.n, max(2, MOST // c.v)), v=max(c.v, 2))
    changes: dict[str, Any] = {}
    if (c.rule == "argmax" and c.v == 2) or (c.rule == "prior" and c.v > 2 and not _balanced(c)):
        changes["rule"] = "median"
    if c.marks:
        # Smoothing asks for mass of a class that cannot be; margins may have no middle.
        changes["smoothing"] = 0.0
        if c.v == 2 and c.rule != "none":
            changes["rule"] = "none"
    if c.layout == "expanded":  # one class would be impossible for all labels
        changes["marks"] = tuple(m for m in c.marks if m[0] == "row of lowest")
    if c.regime in ("confident", "huge") or (c.regime == "wide" and c.dtype == "fp64"):
        # (1 - p)^gamma where p is nearly 1 magnifies every rounding: there is no yardstick.
        changes["gamma"] = 0.0
    if c.kind == "rest" and c.regime in ("wide", "huge"):
        # fp32 holds the depth of what is outside the list: docs/numerics.md says so.
        changes["regime"] = "plain"
    if c.softcap and c.regime in ("confident", "huge") and c.v == 2:
        changes["rule"] = "none"  # margins at the cap tie, but for their last bits
    if c.v == 2:
        # p - q is rounded beside 1: smoothed labels leave little of it, a z-loss comes on top.
        changes["z_loss"] = min(c.z_loss, 1e-4)
        changes["smoothing"] = min(changes.get("smoothing", c.smoothing), 0.1)
    lowest = any(m[0] == "row of lowest" for m in c.marks)
    # The definition in fp64 is no truth for fp64 where it takes differences of large numbers.
    same = c.dtype == "fp64" and (c.regime == "huge" or abs(c.offset) > 1e3)
    if same or (c.dtype == "fp64" and c.offset):
        changes["softcap"] = 0.0
    # lse^2 leaves fp32, and its gradient fp16.
    far = abs(c.offset) > 1e4 or lowest or same
    if far or (c.dtype == "fp16" and (c.regime == "huge" or abs(c.offset) > 1e3)):
        changes["z_loss"] = 0.0
    return replace(c, **changes)


def _balanced(c: Rows) -> bool:
    """Whether the best balanced labels are the same in any precision; few, or it is slow."""
    plain = c.regime in ("plain", "wide") and not (c.offset or c.marks or c.softcap)
    exact = c.dtype in ("fp32", "fp64") and c.layout != "expanded"
    return 3 <= c.v <= 17 and c.n <= 40 and plain and exact
