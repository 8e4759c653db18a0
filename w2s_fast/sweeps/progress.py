"""Progress of a sweep: one bar over all stages, one line a finished cell."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from w2s_fast.report.progress import Silent


class Quiet(Silent):
    """Shows nothing but warnings."""

    def advanced(self) -> None:
        """One more stage is done."""

    def ended(self, name: str, text: str, *, good: bool) -> None:
        """A cell is done, or has failed."""


class Shown(Quiet):
    """A bar, and lines above it."""

    def __init__(self, bars: Progress, stages: int) -> None:
        self._bars = bars
        self._task = bars.add_task("stages", total=stages)

    def advanced(self) -> None:
        """Move the bar."""
        self._bars.advance(self._task)

    def ended(self, name: str, text: str, *, good: bool) -> None:
        """Print a line."""
        mark = "[green]✓[/]" if good else "[red]✗[/]"
        line = f"{mark} {escape(name)}  [dim]{escape(text)}[/]"
        self._bars.console.print(line, highlight=False, soft_wrap=True)

    def warned(self, message: str) -> None:
        """Print the warning above the bar."""
        text = f"[yellow]note:[/] {escape(message)}"
        self._bars.console.print(text, highlight=False, soft_wrap=True)


@contextmanager
def show(quiet: bool, stages: int) -> Iterator[Quiet]:
    """Give something to tell about progress; ``quiet`` shows warnings only."""
    if quiet:
        yield Quiet()
        return
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=32),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        yield Shown(bars, stages)
