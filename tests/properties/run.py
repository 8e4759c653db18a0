"""A chunk of cases of one property: all are run, then what failed is found again and shrunk."""

from __future__ import annotations

import contextlib
import multiprocessing
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from hypothesis import HealthCheck, Phase, given, seed, settings

QUIET = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}


class Unit(NamedTuple):
    """Cases of a property on a backend; the same seed gives the same cases."""

    name: str
    backend: str
    cases: int
    seed: int


@dataclass
class Found:
    """What a chunk showed, or many of them."""

    cases: int = 0
    failed: int = 0
    seconds: float = 0.0
    # kind -> (how often, where first, the shortest case and its message)
    failures: dict[str, tuple[int, Unit, tuple[str, str]]] = field(default_factory=dict)

    def add(self, other: Found) -> None:
        """Take in another chunk."""
        self.cases += other.cases
        self.failed += other.failed
        self.seconds += other.seconds
        for kind, (times, unit, example) in other.failures.items():
            before, first, shortest = self.failures.get(kind, (0, unit, example))
            self.failures[kind] = (before + times, first, min(shortest, example, key=_length))

    def fail(self, kind: str, unit: Unit, example: tuple[str, str]) -> None:
        """Count one failure."""
        self.add(Found(failed=1, failures={kind: (1, unit, example)}))


def _length(example: tuple[str, str]) -> int:
    return len(example[0])


def kind_of(e: BaseException) -> str:
    """What failures have in common: the first line before its first number."""
    first = re.split(r"[0-9(\[\n]", str(e))[0].strip()
    return f"{type(e).__name__}: {first[:70]}"


def examine(unit: Unit) -> Found:
    """Run all cases of a chunk."""
    found, start = Found(), time.process_time()
    check, cases = _property(unit)

    @seed(unit.seed)
    @settings(max_examples=unit.cases, phases=[Phase.generate], **QUIET)
    @given(cases)
    def every(case: Any) -> None:
        found.cases += 1
        try:
            check(unit.backend, case)
        except Exception as e:
            found.fail(kind_of(e), unit, (repr(case), str(e)))

    every()
    found.seconds = time.process_time() - start
    return found


def shrink(unit: Unit, kind: str) -> tuple[str, str]:
    """The smallest case that fails in this way, and its message."""
    check, cases = _property(unit)
    last = ("", "not found again: depends on more than the case")

    @seed(unit.seed)
    @settings(max_examples=unit.cases, report_multiple_bugs=False, **QUIET)
    @given(cases)
    def one(case: Any) -> None:
        nonlocal last
        try:
            check(unit.backend, case)
        except Exception as e:
            if kind_of(e) == kind:
                last = (repr(case), str(e))
                raise

    with contextlib.suppress(Exception):
        one()
    return last  # the last case that failed is the smallest


def _property(unit: Unit) -> tuple[Callable[[str, Any], None], Any]:
    from helpers import triton_interpreter  # noqa: F401

    from properties import PROPERTIES

    p = PROPERTIES[unit.name]
    return p.check, p.cases(unit.backend in ("cuda", "triton"))


class Worker:
    """A process for each thread: one that dies takes one chunk with it, and it is known which."""

    _own = threading.local()

    @classmethod
    def start(cls) -> None:
        """Make this thread's process."""
        context = multiprocessing.get_context("spawn")
        cls._own.pool = ProcessPoolExecutor(1, context)

    @classmethod
    def _call(cls, f: Callable[..., Any], *args: Any) -> Any:
        try:
            return cls._own.pool.submit(f, *args).result()
        except BrokenProcessPool:
            cls.start()
            return None

    @classmethod
    def examine(cls, unit: Unit) -> Found:
        """``examine`` there."""
        found: Found | None = cls._call(examine, unit)
        if found is None:
            found = Found(cases=unit.cases)
            found.fail("the process died", unit, (repr(unit), "see its output"))
        return found

    @classmethod
    def shrink(cls, unit: Unit, kind: str) -> tuple[str, str]:
        """``shrink`` there."""
        return cls._call(shrink, unit, kind) or (repr(unit), "the process died")
