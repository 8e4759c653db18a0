"""Estimate the time that a run still takes, while it runs."""

from __future__ import annotations

import statistics
from collections.abc import Mapping


class TimeLeft:
    """The time left of a set of stages.

    A stage is expected to take as long as those of its name that this run has computed, else as
    long as ``seconds`` says.

    Args:
        seconds: Expected seconds by name of the stage, ``KIND/...``; None: not known.
        workers: Number of stages computed at a time.
    """

    def __init__(self, seconds: Mapping[str, float | None], workers: int) -> None:
        self._expected = dict(seconds)
        self._fractions: dict[str, float] = {}  # of running stages, how much is done
        self._measured: dict[str, list[float]] = {}
        self._workers = workers

    def stepped(self, name: str, fraction: float) -> None:
        """Note that a running stage is done to this fraction."""
        self._fractions[name] = fraction

    def finished(self, name: str, seconds: float | None) -> None:
        """Note that a stage is finished; ``seconds`` is None if it was stored."""
        self._expected.pop(name, None)
        if seconds is not None:
            self._measured.setdefault(_kind(name), []).append(seconds)

    @property
    def seconds(self) -> float | None:
        """Seconds left; None if nothing is known of a stage."""
        left = 0.0
        for name, expected in self._expected.items():
            if own := self._measured.get(_kind(name)):
                expected = statistics.mean(own)
            if expected is None:
                return None
            left += expected * (1 - self._fractions.get(name, 0.0))
        return left / self._workers


def _kind(name: str) -> str:
    return name.partition("/")[0]


def duration(seconds: float | None) -> str:
    """Return a rough duration, such as "0.4 s", "50 s", "12 min" or "3.5 h"; "unknown" for None."""
    if seconds is None:
        return "unknown"
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
