"""Show the progress of a sweep: one bar over all stages, one line per finished cell."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from w2s_fast.report.run_progress import QuietRun


class SweepProgress(QuietRun):
    """Shows a bar over all stages, and lines above it."""

    def __init__(self, bars: Progress, stages: int) -> None:
        super().__init__(None if bars.console.quiet else bars.console)
        self._bars = bars
        self._task = bars.add_task("stages", total=stages)

    def stage_finished(self) -> None:
        """Advance the bar."""
        self._bars.advance(self._task)

    def cell_ended(self, name: str, text: str, *, succeeded: bool) -> None:
        """Print a line."""
        symbol = "[green]✓[/]" if succeeded else "[red]✗[/]"
        line = f"{symbol} {escape(name)}  [dim]{escape(text)}[/]"
        self._bars.console.print(line, highlight=False, soft_wrap=True)


@contextmanager
def show_sweep(quiet: bool, stages: int) -> Iterator[SweepProgress]:
    """Yield the observer that shows progress; ``quiet`` shows warnings only."""
    console = Console(stderr=True, quiet=quiet)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=32),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, disable=quiet or not console.is_terminal) as bars:
        yield SweepProgress(bars, stages)
