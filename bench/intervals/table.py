"""The tables of docs/intervals.md, from the committed rows of the simulation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from bench.intervals.command import load

PAGE = "docs/intervals.md"
MIN_Z = 3.0  # smallest true gap, in standard errors, of the PGR columns
_NONE = "No rows have been recorded yet: `python -m bench coverage --record`.\n"
Row = Mapping[str, Any]


def blocks() -> dict[str, Callable[[Any], str]]:
    """Return marker -> what makes its text in docs/intervals.md."""
    return {"coverage": lambda _: coverage(load()), "reported": lambda _: reported(load())}


def interval_rows(rows: Iterable[Row]) -> list[Row]:
    """Return the rows about intervals; the others are about reporting."""
    return [row for row in rows if row["base_effect"]]


def report_rows(rows: Iterable[Row]) -> list[Row]:
    """Return the rows about reporting a gap of 0 and one of three standard errors."""
    return [row for row in rows if not row["base_effect"]]


def coverage(rows: Sequence[Row]) -> str:
    """Return the table of intervals: the lowest and the highest coverage over cells, in percent."""
    if not rows:
        return _NONE
    heads = ("runs", "seeds", "cells", "student − weak", "paired difference", "PGR")
    old = ("PGR, bootstrap of 0.2.0", "paired difference, t over seeds")
    lines = [_line([*heads, *old]), _line(["---", *["---:"] * 7])]
    groups: dict[tuple[str, int], list[Row]] = {}
    for row in interval_rows(rows):
        groups.setdefault((_design(row), row["seeds"]), []).append(row)
    for (design, seeds), cells in groups.items():
        clear = [row for row in cells if row["z"] >= MIN_Z]
        columns = [
            _range(cells, "gain"),
            _range(cells, "paired"),
            _range(clear, "pgr"),
            _range(clear, "pgr_before"),
            _range(cells, "paired_over_seeds") if cells[0]["bases"] > 1 else "",
        ]
        lines.append(_line([design, str(seeds), str(len(cells)), *columns]))
    return "\n".join(lines) + f"\n\n{_made_by(rows)}\n"


def reported(rows: Sequence[Row]) -> str:
    """Return the table of reported gaps: shares of experiments over cells, in percent."""
    if not rows:
        return _NONE
    heads = [f"{gap}{rule}" for gap in ("gap of 0", f"gap of {MIN_Z:g} standard errors")
             for rule in ("", ", rule of 0.2.0")]  # fmt: skip
    lines = [_line(["seeds", *heads]), _line(["---:"] * 5)]
    chosen = report_rows(rows)
    for seeds in sorted({row["seeds"] for row in chosen}):
        cells = [row for row in chosen if row["seeds"] == seeds]
        columns = [
            _range([row for row in cells if (row["gap"] == 0) == null], name)
            for null in (True, False)
            for name in ("printed", "printed_before")
        ]
        lines.append(_line([str(seeds), *columns]))
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _design(row: Row) -> str:
    bases = f"{row['bases']} base{'s' * (row['bases'] > 1)}"
    if row["crossed"]:
        return f"{bases}, crossed with seeds"
    if row["pool"] is None:
        return bases
    same = row["pool"] == row["n"]
    return f"{bases}, one test set" if same else f"{bases}, {row['n']} of {row['pool']} items each"


def _range(rows: Sequence[Row], name: str) -> str:
    values = [100 * row[name] for row in rows if name in row]
    if not values:
        return "–"
    low, high = (f"{v:.1f}" for v in (min(values), max(values)))
    return low if low == high else f"{low} – {high}"


def _made_by(rows: Sequence[Row]) -> str:
    first = rows[0]
    return f"{first['replicates']} simulated experiments a cell, commit {first['git_sha']}."
