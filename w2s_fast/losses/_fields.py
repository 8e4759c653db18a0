"""Range checks of hyper-parameters, shared by all kinds of losses."""

from __future__ import annotations

import math

from w2s_fast.errors import W2SError
from w2s_fast.ops.arguments import check_number


class RangeChecked:
    """Base of dataclasses that check their fields in ``__post_init__``."""

    def _check_range(
        self, name: str, low: float, high: float = math.inf, *, open_low: bool = False
    ) -> None:
        """Raise ``W2SError`` unless field ``name`` is in [low, high], or (low, high]."""
        value, kind = getattr(self, name), type(self).__name__
        check_number(f"{kind}: {name}", value)
        if low <= value <= high and not (open_low and value == low):
            return
        if high == math.inf:
            interval = f"above {low:g}" if open_low else f"at least {low:g}"
        else:
            interval = f"in {'(' if open_low else '['}{low:g}, {high:g}]"
        raise W2SError(f"{kind}: {name} is {value}; expected a number {interval}")
