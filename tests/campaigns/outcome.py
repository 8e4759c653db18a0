"""What a campaign counted, and each failure as one line."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field


@dataclass
class Outcome:
    """Cases of a campaign.

    Attributes:
        cases: Cases that ran.
        kinds: What they hit, by kind; the kinds need not add up to ``cases``.
        failures: One line each, with the index that repeats the case.
    """

    cases: int = 0
    kinds: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def count(self, kind: str, times: int = 1) -> None:
        """Count something that a case hit."""
        self.kinds[kind] = self.kinds.get(kind, 0) + times

    def fail(self, index: int, message: str) -> None:
        """Note and print a failure of the case ``index``."""
        self.failures.append(f"case {index}: {' '.join(message.split())}")
        print(self.failures[-1], file=sys.stderr, flush=True)
