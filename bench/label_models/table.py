"""The tables of docs/label_models.md, from the committed rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bench.label_models.command import load

PAGE = "docs/label_models.md"
_NONE = "No rows have been recorded yet: `python -m bench label_models --record`.\n"
Row = Mapping[str, Any]


def blocks() -> dict[str, Callable[[Any], str]]:
    """Return marker -> what makes its text in docs/label_models.md."""
    return {"wrench": lambda _: wrench(load()), "fits": lambda _: fits(load())}


def wrench(rows: Sequence[Row]) -> str:
    """Return the table of scores on real votes."""
    rows = [row for row in rows if row["part"] == "accuracy"]
    if not rows:
        return _NONE
    names = ("accuracy", "covered_accuracy", "covered_balanced_accuracy", "covered_f1")
    heads = ("data", "model", "all rows: accuracy", "covered rows: accuracy", "balanced accuracy",
             "F1 of spam")  # fmt: skip
    lines = [_line(heads), _line(["---", "---", *["---:"] * 4])]
    for row in rows:
        model = row["model"] if row["model"] == "constant" else f"`{row['model']}`"
        share = f"{row['data']}, {row['n_covered']} of {row['n']} covered"
        lines.append(_line([share, model, *(f"{row[name]:.3f}" for name in names)]))
    return "\n".join(lines) + "\n"


def fits(rows: Sequence[Row]) -> str:
    """Return the table of times and the sentences about memory and agreement."""
    timed = [row for row in rows if row["part"] == "speed"]
    if not timed:
        return _NONE
    base = {row["provider"]: row for row in timed}.get("Snorkel LabelModel")
    lines = [_line(["fit", "CPU ms", "Snorkel / this", "accuracy"]), _line(["---", *["---:"] * 3])]
    for row in timed:
        ratio = f"{base['cpu_ms'] / row['cpu_ms']:.1f}" if base else "–"
        cells = [row["provider"], f"{row['cpu_ms']:.0f}", ratio, f"{row['accuracy']:.4f}"]
        lines.append(_line(cells))
    first = timed[0]
    size = (
        f"{first['n']} rows, {first['m']} sources, {first['k']} classes, {first['threads']} thread"
    )
    text = "\n".join(lines) + f"\n\n{size}, {first['cpu']}, commit {first['git_sha']}.\n"
    return text + "".join(f"{_note(row)}\n" for row in rows if row["part"] in ("memory", "oracle"))


def _note(row: Row) -> str:
    """Return a sentence about a row of memory or of agreement with another implementation."""
    shape = f"{row['m']} sources, {row['k']} classes, {row['n']} rows"
    if row["part"] == "memory":
        return f"`{row['provider']}` with {shape}: {row['peak_mib']:.0f} MiB beyond the votes."
    model, other = 'DawidSkene(abstain="missing")', row["provider"]
    difference = f"{row['largest_difference']:.0e}"
    return f"Posteriors of `{model}` and of {other} differ by at most {difference} ({shape})."


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
