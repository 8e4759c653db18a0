"""A few random cases of every property of ``tests/properties``; ``make test-properties`` runs many.

The cases are the same in every run. A failure shows the smallest input that hypothesis found.
"""

from __future__ import annotations

from typing import Any

import properties
import pytest
from hypothesis import HealthCheck, given, settings
from properties import PROPERTIES, Property, cases
from properties.__main__ import main, units
from properties.run import Unit, examine, shrink

# Emulated and interpreted kernels take ten times as long.
CASES = {"cpp": 20, "ref": 10, "cuda": 3, "triton": 2}


@pytest.mark.parametrize("name", PROPERTIES)
def test_property(backend: str, name: str, one_rank: Any) -> None:
    p = PROPERTIES[name]
    if backend not in p.backends:
        return

    @settings(
        max_examples=CASES[backend],
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(p.cases(backend in ("cuda", "triton")))
    def holds(case: Any) -> None:
        p.check(backend, case)

    holds()


def wrong(backend: str, c: cases.Rows) -> None:
    if c.n >= 3 and c.v == 7:
        raise AssertionError(f"{c.n} rows of 7")
    if c.kind == "rest":
        raise AssertionError("a residual")


@pytest.fixture
def one_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = Property(wrong, cases.rows, 1.0, ("ref",))
    monkeypatch.setattr(properties, "PROPERTIES", {"wrong": broken})


@pytest.mark.slow
def test_failures_stop_nothing_and_shrink(one_wrong: None) -> None:
    unit = Unit("wrong", "ref", 400, 3)
    result = examine(unit)
    assert result.cases == 400 and set(result.failures) == {
        "AssertionError: ",
        "AssertionError: a residual",
    }
    assert result.failed == sum(times for times, _, _ in result.failures.values()) > 50
    assert shrink(unit, "AssertionError: ")[0] == "Rows(n=3, v=7)"
    assert shrink(unit, "AssertionError: a residual")[0] == "Rows(n=0, kind='rest')"
    assert examine(unit).failed == result.failed


def test_shares_of_a_long_run() -> None:
    todo = list(units(100_000, 1, list(PROPERTIES), ["cpp", "ref"]))
    assert sum(u.cases for u in todo) == pytest.approx(100_000, abs=50)
    assert len({u.seed for u in todo}) == len(todo)
    assert {u.name for u in todo} == set(PROPERTIES)


def test_command(capfd: pytest.CaptureFixture[str]) -> None:
    chosen = ["--properties", "order statistics,balanced labels", "--backends", "ref"]
    code = main(["--cases", "30", *chosen])
    out = capfd.readouterr().out
    assert code == 0 and "30 cases, 0 failed" in out and "order statistics" in out
