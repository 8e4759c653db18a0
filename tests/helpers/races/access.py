"""Accesses to memory, and whether two of them are a race."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from helpers.races.ptx import Op

OPEN, IN_WARP, IN_BLOCK = 0, 1, 2  # the widest barrier since an access
PENDING = -1  # an asynchronous copy that nobody waited for


@dataclass(eq=False)
class Access:
    """What the threads touch in one buffer in one execution of one instruction."""

    op: Op
    kind: str  # load, store, atomic
    buffer: int
    lo: Any  # first byte,
    hi: Any  # and the one behind the last one
    by: Any  # of which thread
    sure: Any  # whether it certainly touches all of them
    remote: bool  # the word lies in another block's shared memory

    @cached_property
    def ends(self) -> tuple[int, int]:
        """The first byte that any thread touches, and the one behind the last."""
        return int(self.lo.min()), int(self.hi.max())


def ranges(a: Access, sure: bool, unit: int) -> tuple[Any, Any, Any, Any]:
    """Different ranges, and of each the first and the last thread (or warp) that touches it."""
    keep = a.sure if sure else np.ones(len(a.lo), bool)
    lo, hi, by = a.lo[keep], a.hi[keep], a.by[keep] // unit
    order = np.lexsort((by, hi, lo))
    lo, hi, by = lo[order], hi[order], by[order]
    new = np.ones(len(lo), bool)
    new[1:] = (lo[1:] != lo[:-1]) | (hi[1:] != hi[:-1])
    return lo[new], hi[new], by[new], by[np.roll(new, -1)]


def may_conflict(a: Access, b: Access) -> bool:
    """Whether both are of one buffer, and at least one is a store or the other no atomic."""
    return a.buffer == b.buffer and (a.kind != b.kind or a.kind == "store")


def conflict(a: Access, b: Access, level: int) -> bool:
    """Whether two threads may touch one byte, at least one of them to store it."""
    kinds = {a.kind, b.kind}
    if not may_conflict(a, b):
        return False
    far = a.remote != b.remote
    if not far and (level >= IN_BLOCK or a.remote):
        return False
    if a.ends[0] >= b.ends[1] or b.ends[0] >= a.ends[1]:
        return False
    unit = 32 if level >= IN_WARP else 1
    a_lo, a_hi, a_first, a_last = (x[:, None] for x in ranges(a, "load" not in kinds, unit))
    b_lo, b_hi, b_first, b_last = ranges(b, "load" not in kinds, unit)
    both = (a_lo < b_hi) & (b_lo < a_hi)
    if not far and level != PENDING:
        both &= (a_first != b_last) | (a_last != b_first)
    return bool(both.any())
