"""The result as a terminal table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

MODELS = ("weak", "student", "ceiling")


def print_results(results: Mapping[str, Any], console: Console) -> None:
    """Print the runs, the summary with intervals, the agreement split and every refusal."""
    console.print(_runs(results))
    console.print(_summary(results))
    for row in results["controls"]:
        console.print(
            f"control, seed {row['seed']}: the student without pretraining reaches "
            f"{row['accuracy']:.3f}",
            highlight=False,
        )
    for note in notes(results):
        console.print(Text(note, style="yellow"), soft_wrap=True)


def _runs(results: Mapping[str, Any]) -> Table:
    table = _table("Accuracy by seed and method", ["method"], ["seed", *MODELS, "PGR"])
    for r in results["runs"]:
        cells = [number(r[k]) for k in MODELS]
        ratio = number(r["pgr"], 2) if r["pgr"] is not None else "refused"
        table.add_row(r["name"], str(r["seed"]), *cells, ratio)
    return table


def _summary(results: Mapping[str, Any]) -> Table:
    head = ["accuracy", "AUROC", "PGR", "interval", "agrees*", "right*", "wrong*"]
    table = _table("Means over seeds, PGR with 95 % interval", ["model"], head)
    first = results["summary"][0]
    table.add_row("weak", number(first["weak"]), number(first["weak_auroc"]))
    for s in results["summary"]:
        split = [number(s["agreement"][k]) for k in ("all", "weak_right", "weak_wrong")]
        table.add_row(
            s["name"],
            number(s["student"]),
            number(s["student_auroc"]),
            number(s["pgr_mean"], 2) if s["pgr_mean"] is not None else "refused",
            interval(s),
            *split,
        )
    for name, c in ceilings(results).items():
        title = f"ceiling · {name}" if name else "ceiling"
        table.add_row(title, number(c["ceiling"]), number(c["ceiling_auroc"]))
    table.caption = "* with weak: on all test items, where weak is right, where weak is wrong"
    table.caption_justify = "left"
    return table


def _table(title: str, left: list[str], right: list[str]) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for name in left:
        table.add_column(name, overflow="fold")
    for name in right:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def number(value: float | None, digits: int = 3) -> str:
    """Return a fixed-point number, or a dash for None."""
    return "–" if value is None else f"{value:.{digits}f}"


def interval(row: Mapping[str, Any]) -> str:
    """Return the PGR interval of a summary row in words."""
    if row["pgr_low"] is None:
        return "–"
    return f"{row['pgr_low']:.2f} – {row['pgr_high']:.2f}"


def notes(results: Mapping[str, Any]) -> list[str]:
    """Return one line per use of true labels, and per seed whose PGR is refused, and for all."""
    reasons = {r["seed"]: r["refused"] for r in results["runs"] if r["refused"]}
    refused = [f"seed {seed}: {why}" for seed, why in sorted(reasons.items())]
    overall = dict.fromkeys(s["refused"] for s in results["summary"] if s["refused"])
    if len(results["provenance"]["config"]["seeds"]) > 1:
        refused += [f"all seeds: {why}" for why in overall]
    return [*(f"{g['name']} used true labels: {g['use']}" for g in results["gold"]), *refused]


def ceilings(results: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return a summary row for each ceiling, by the student it belongs to; the plain one last."""
    found = {s["ceiling_name"]: s for s in results["summary"]}
    return {name: found[name] for name in sorted(found, reverse=True)}
