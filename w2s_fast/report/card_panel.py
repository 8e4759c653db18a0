"""The supervisor card of the page: scores over all seeds, and the details of the first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from w2s_fast.report.card_rows import balance_rows, cost_text, probe_line, stage_seconds
from w2s_fast.report.model_rows import format_number
from w2s_fast.report.page_charts import Plot, reliability_plot


@dataclass(frozen=True)
class Matrix:
    """A square of shares, each with its text; None is an empty cell."""

    names: Sequence[str]
    cells: Sequence[Sequence[tuple[float | None, str]]]


@dataclass(frozen=True)
class Card:
    """What the page shows of the supervisor.

    Attributes:
        tiles: Title, number and range over seeds.
        seed: Seed of the details.
        plots: Reliability diagrams of transfer and test set.
        balance: Name, true share and weak share of every class, shares in percent.
        confusion: Row shares of the confusion matrix; None with many classes.
        confused: True class, weak class and number of the most confused pairs.
        probe: A line on the probe of errors.
        agreement: Agreement of the supervisors with one another; None for one.
        omitted: Supervisors that the agreement leaves out.
        cost: A line on size and time.
    """

    tiles: Sequence[tuple[str, str, str]]
    seed: int
    plots: Sequence[Plot]
    balance: Sequence[tuple[str, float, float]]
    confusion: Matrix | None
    confused: Sequence[tuple[str, str, int]]
    probe: str
    agreement: Matrix | None
    omitted: int
    cost: str


def supervisor_card(results: Mapping[str, Any]) -> Card | None:
    """Return the card; None for results without."""
    cards = results.get("supervisor_cards")
    if not cards:
        return None
    first = cards[0]
    names, agreement = first["classes"], first["agreement"]
    pairs = first["confused"] or ()
    return Card(
        _tiles(cards),
        first["seed"],
        [
            reliability_plot(f"calibration, {split} set", first[split]["calibration"])
            for split in ("transfer", "test")
            if first[split]["calibration"]
        ],
        [(n, 100 * t, 100 * w) for n, t, w in balance_rows(first)] if first["balance"] else (),
        _confusion(names, first["confusion"]) if first["confusion"] else None,
        [(names[true], names[weak], n) for true, weak, n in pairs],
        probe_line(first["probe"]),
        _agreement(agreement) if agreement else None,
        agreement["omitted"] if agreement else 0,
        cost_text(first["cost"], stage_seconds(results, first["cost"]["stages"])),
    )


def _tiles(cards: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    columns: list[tuple[str, list[float | None]]] = [
        ("accuracy, transfer", [c["transfer"]["accuracy"] for c in cards]),
        ("accuracy, test", [c["test"]["accuracy"] for c in cards]),
        ("ECE, transfer", [(c["transfer"]["calibration"] or {}).get("ece") for c in cards]),
        ("AUROC of the error probe", [c["probe"].get("auroc") for c in cards]),
    ]
    tiles = []
    for title, values in columns:
        if known := [v for v in values if v is not None]:
            ends = " – ".join(format_number(end(known)) for end in (min, max))
            spread = f"{ends} by seed" if len(known) > 1 else ""
            tiles.append((title, format_number(sum(known) / len(known)), spread))
    return tiles


def _confusion(names: Sequence[str], counts: Sequence[Sequence[int]]) -> Matrix:
    return Matrix(names, [[(n / max(1, sum(row)), f"{n:,}") for n in row] for row in counts])


def _agreement(record: Mapping[str, Any]) -> Matrix:
    cells = [[(s, "" if s is None else f"{s:.2f}") for s in row] for row in record["share"]]
    return Matrix(record["names"], cells)
