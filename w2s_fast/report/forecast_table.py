"""Print what a run would compute."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from w2s_fast.report.model_rows import count
from w2s_fast.report.names import printable
from w2s_fast.report.time_left import duration


class _Job(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def needs(self) -> tuple[str, ...]: ...


class _Stage(Protocol):
    @property
    def job(self) -> _Job: ...
    @property
    def stored(self) -> bool: ...
    @property
    def started(self) -> bool: ...
    @property
    def seconds(self) -> float | None: ...


def print_forecast(
    stages: Sequence[_Stage], seconds: float, workers: int, console: Console
) -> None:
    """Print each stage with those it needs, whether it is stored, and its expected time.

    Args:
        stages: All stages of the run.
        seconds: Expected seconds of the run, without stages of unknown time.
        workers: Number of stages computed at a time.
        console: Where to print.
    """
    table = Table("stage", "needs", "state", "time", box=SIMPLE_HEAD)
    table.columns[3].justify = "right"
    for stage in stages:
        needs = ", ".join(dict.fromkeys(stage.job.needs))
        if stage.job.name == "report":  # it reads every model
            needs = f"{len(stage.job.needs)} stages"
        time = "" if stage.stored else duration(stage.seconds)
        table.add_row(Text(printable(stage.job.name)), Text(printable(needs)), _state(stage), time)
    console.print(table)
    console.print(_sum(stages, seconds, workers), highlight=False)


def _state(stage: _Stage) -> str:
    if stage.stored:
        return "stored"
    return "from a checkpoint" if stage.started else "to compute"


def _sum(stages: Sequence[_Stage], seconds: float, workers: int) -> str:
    remaining = [stage for stage in stages if not stage.stored]
    text = f"{count(len(stages), 'stage')}, {len(stages) - len(remaining)} of them stored"
    if not remaining:
        return text
    unknown = sum(stage.seconds is None for stage in remaining)
    if unknown == len(remaining):
        return f"{text}; the time of the rest is unknown: no similar stage is stored"
    text = f"{text}; the rest takes about {duration(seconds)} with {count(workers, 'worker')}"
    if not unknown:
        return text
    return f"{text}, and {count(unknown, 'stage')} of unknown time"
