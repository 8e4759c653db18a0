"""Show the progress of a run: live bars in a terminal, one line per finished stage elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from w2s_fast.report.names import printable
from w2s_fast.report.time_left import TimeLeft, duration


class _Job(Protocol):
    @property
    def seed(self) -> int | None: ...
    @property
    def name(self) -> str: ...


class QuietRun:
    """Shows warnings only, on ``console``."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)

    def planned(self, seconds: Mapping[str, float | None], workers: int) -> None:
        """All jobs by name, with their expected seconds if known; ``workers`` run at a time."""

    def started(self, job: _Job) -> None:
        """A job starts."""

    def stepped(self, job: _Job, step: int, steps: int) -> None:
        """A job has done ``step`` of ``steps``."""

    def finished(self, job: _Job, seconds: float | None) -> None:
        """A job is finished; ``seconds`` is None if its result was stored already."""

    def noted(self, lines: Sequence[str]) -> None:
        """A finished job has found something."""

    def warned(self, message: str) -> None:
        """Print the warning, above the bars if there are any."""
        self.console.print(f"[yellow]note:[/] {escape(message)}", highlight=False, soft_wrap=True)


class ShownRun(QuietRun):
    """Shows a bar of all stages, one per running stage, and a line for each finished one."""

    def __init__(self, bars: Progress) -> None:
        super().__init__(bars.console)
        self._bars = bars
        self._tasks: dict[str, Any] = {}
        self._left = TimeLeft({}, 1)
        self._all: Any = None

    def planned(self, seconds: Mapping[str, float | None], workers: int) -> None:
        """Add the bar of all stages."""
        self._left = TimeLeft(seconds, workers)
        self._all = self._bars.add_task("stages", total=len(seconds), left="")

    def started(self, job: _Job) -> None:
        """Add a bar."""
        self._tasks[job.name] = self._bars.add_task(escape(_title(job)), total=None, left="")

    def stepped(self, job: _Job, step: int, steps: int) -> None:
        """Advance the bar."""
        self._bars.update(self._tasks[job.name], completed=step, total=steps)
        self._left.stepped(job.name, step / steps)
        self._show_left()

    def _show_left(self, stages: int = 0) -> None:
        """Advance the bar of all stages, and write the time that is left beside it."""
        if self._all is not None:
            text = f"{duration(self._left.seconds)} left"
            self._bars.update(self._all, advance=stages, left=text)

    def finished(self, job: _Job, seconds: float | None) -> None:
        """Replace the bar with a line."""
        if job.name in self._tasks:
            self._bars.remove_task(self._tasks.pop(job.name))
        self._left.finished(job.name, seconds)
        self._show_left(1)
        took = "stored" if seconds is None else f"{seconds:.1f} s"
        line = f"[green]✓[/] {escape(_title(job)):<34} [dim]{took:>8}[/]"
        self.console.print(line, highlight=False, soft_wrap=True)

    def noted(self, lines: Sequence[str]) -> None:
        """Print the lines, indented under the job's."""
        for line in lines:
            text = Text(f"  {printable(line)}", style="dim")
            self.console.print(text, soft_wrap=True)


@contextmanager
def show_run(quiet: bool) -> Iterator[QuietRun]:
    """Yield the observer that shows progress; ``quiet`` shows warnings only."""
    if quiet:
        yield QuietRun()
        return
    console, start = Console(stderr=True), time.monotonic()
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description:<34}"),
        BarColumn(bar_width=32),
        TextColumn("{task.completed:.0f}/{task.total}"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        yield ShownRun(bars)
    console.print(f"[dim]finished in {time.monotonic() - start:.0f} s[/]", highlight=False)


def _title(job: _Job) -> str:
    stage, _, rest = job.name.partition("/")
    student = rest.partition("/")[2]
    parts = [stage] + ([student] if student else [])
    return " · ".join(parts) + ("" if job.seed is None else f" · seed {job.seed}")
