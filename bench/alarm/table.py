"""The table of docs/diagnostics.md, from the committed rows of ``python -m bench alarm``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from bench.alarm.command import load

PAGE = "docs/diagnostics.md"
LOSS = 0.015  # of true accuracy, from the best to the last three evaluations
_NONE = "No rows have been recorded yet: `python -m bench alarm --record`.\n"
_HEADS = (
    "student", "labels", "epochs", "loss", "runs", "alarms", "alarms, accuracy falls",
    "no alarm, accuracy falls", "accuracy at the alarm → end",
    "wrong labels predicted at the alarm → end",
)  # fmt: skip
Row = Mapping[str, Any]


def blocks() -> dict[str, Callable[[Any], str]]:
    """Return marker -> what makes its text in docs/diagnostics.md."""
    return {"alarm": lambda _: table(load())}


def falls(row: Row) -> bool:
    """Return whether the true accuracy ends lower than it was, as means of three evaluations."""
    smooth = np.convolve(row["accuracy"], np.full(3, 1 / 3), "valid")
    return bool(smooth.max() - smooth[-1] >= LOSS)


def fall_step(row: Row) -> int:
    """Return the step of the first evaluation after the best whose accuracy is lower by ``LOSS``.

    ``row`` is one that ``falls``.
    """
    smooth = np.convolve(row["accuracy"], np.full(3, 1 / 3), "valid")
    best = int(smooth.argmax())
    fallen = best + int((smooth[best:] <= smooth[best] - LOSS).argmax())
    return row["steps"][fallen + 1]  # the middle of three evaluations


def table(rows: Sequence[Row]) -> str:
    """Return the table: a line per condition, and a sentence with the totals."""
    if not rows:
        return _NONE
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        key = tuple(row[name] for name in ("student", "labels", "epochs", "loss"))
        groups.setdefault(key, []).append(row)
    lines = [_line(_HEADS), _line(["---", "---", "---:", "---", *["---:"] * 6])]
    for (student, labels, epochs, loss), own in groups.items():
        alarms = [row for row in own if row["alarm"] is not None]
        cells = [len(own), len(alarms), sum(map(falls, alarms)), sum(map(falls, own))]
        cells[3] -= cells[2]
        changes = [_change(alarms, name) for name in ("accuracy", "wrong_agreement")]
        lines.append(_line([student, labels, str(epochs), f"`{loss}`", *map(str, cells), *changes]))
    return "\n".join(lines) + f"\n\n{_totals(rows)}\n\n{_made_by(rows)}\n"


def _change(alarms: Sequence[Row], name: str) -> str:
    pairs = [(row[name][row["alarm"]], row[name][-1]) for row in alarms if row[name]]
    if not pairs:
        return "–"
    at, end = np.mean(pairs, axis=0)
    return f"{at:.3f} → {end:.3f}"


def _totals(rows: Sequence[Row]) -> str:
    alarms = [row for row in rows if row["alarm"] is not None]
    fell = [row for row in rows if falls(row)]
    both = sum(map(falls, alarms))
    wrong = [row for row in alarms if row["wrong_agreement"]]
    fitted = sum(r["wrong_agreement"][-1] > r["wrong_agreement"][r["alarm"] - 1] for r in wrong)
    return (
        f"Of {len(alarms)} alarms, {both} were in runs whose true accuracy fell, and in {fitted} "
        "the student ended with more wrong labels than it had before the alarm. Of "
        f"{len(fell)} runs whose accuracy fell, {both} had an alarm. {_when(rows)}"
    ).rstrip()


def _when(rows: Sequence[Row]) -> str:
    """Return a sentence on the steps of alarm and fall; empty for fewer than three such runs."""
    from scipy.stats import spearmanr

    both = [row for row in rows if row["alarm"] is not None and falls(row)]
    if len(both) < 3:
        return ""
    alarm, fall = ([step(row) for row in both] for step in (_alarm_step, fall_step))
    late = np.subtract(alarm, fall)
    return (
        f"There the alarm came {-late.min()} steps before to {late.max()} steps after the accuracy "
        f"fell (median {np.median(late):+.0f}; rank correlation of the two steps "
        f"{spearmanr(alarm, fall).statistic:.2f})."
    )


def _alarm_step(row: Row) -> int:
    return row["steps"][row["alarm"]]


def _made_by(rows: Sequence[Row]) -> str:
    first = rows[0]
    return f"{first['cpu']}, torch {first['torch']}, commit {first['git_sha']}."


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
