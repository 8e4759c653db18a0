"""Checks of the options of label models."""

from __future__ import annotations

from w2s_fast.errors import W2SError, nearest


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise if an option has none of its values.

    Raises:
        W2SError: It has not.
    """
    if value not in choices:
        expected = " or ".join(repr(c) for c in choices)
        raise W2SError(f"{name} is {value!r}; expected {expected}{nearest(str(value), choices)}")


def check_number(name: str, value: float, low: float, high: float = float("inf")) -> None:
    """Raise if an option is not a number of the closed interval from ``low`` to ``high``.

    Raises:
        W2SError: It is not.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        expected = f"at least {low:g}" if high == float("inf") else f"from {low:g} to {high:g}"
        raise W2SError(f"{name} is {value!r}; expected a number {expected}")
