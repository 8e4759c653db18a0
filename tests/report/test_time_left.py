"""The time left is that of the stages that are not finished, and unknown if one is unknown."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from w2s_fast.pipeline.jobs import Job
from w2s_fast.report.run_progress import ShownRun
from w2s_fast.report.time_left import TimeLeft, duration


def test_finished_stages_count_no_longer() -> None:
    left = TimeLeft({"weak/0": 10.0, "student/0/a": 40.0}, workers=2)
    assert left.seconds == 25
    left.stepped("weak/0", 0.5)
    assert left.seconds == 22.5
    left.finished("weak/0", None)
    assert left.seconds == 20
    left.finished("student/0/a", 30.0)
    assert left.seconds == 0


def test_measured_times_replace_expected_ones() -> None:
    left = TimeLeft({"weak/0": None, "weak/1": 100.0, "weak/2": 100.0}, workers=1)
    assert left.seconds is None
    left.finished("weak/0", 4.0)
    assert left.seconds == 8
    left.finished("weak/1", 8.0)
    assert left.seconds == 6


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "unknown"), (0.04, "0.0 s"), (9.94, "9.9 s"), (50, "50 s"), (600, "10 min"),
     (9000, "2.5 h")],
)  # fmt: skip
def test_durations(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_a_terminal_shows_stages_and_time_left() -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=100)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[left]}"))
    first, second = Job("weak", "weak/0", 0), Job("weak", "weak/1", 1)
    with Progress(*columns, console=console, auto_refresh=False) as bars:
        shown = ShownRun(bars)
        shown.planned({"weak/0": None, "weak/1": None}, 1)
        shown.started(first)
        shown.stepped(first, 1, 2)
        bars.refresh()
        assert "unknown left" in stream.getvalue()
        shown.finished(first, 240.0)
        bars.refresh()
        assert "4 min left" in stream.getvalue()
        shown.finished(second, None)
        bars.refresh()
        assert "0.0 s left" in stream.getvalue()
