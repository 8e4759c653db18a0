"""Markdown table of whole training steps in trainers, made of measured rows."""

from __future__ import annotations

from collections.abc import Iterator

from bench.cases.trainer_steps import PROVIDERS
from bench.harness.row_files import Row, number
from bench.report.measured_rows import MeasuredRows, Shape, cell, markdown, shape_of

OP = "trainers"
TITLES = {
    "sft": "SFT, every token",
    "dpo": "DPO, half of each row an answer",
    "dpo_smollm2": "DPO, the shape of SmolLM2-135M",
    "labels": "two label tokens a row",
}


def steps(rows: MeasuredRows) -> str:
    """Tabulate time and peak memory of a step for every case and provider, against ours."""
    lines = []
    for s, provider, measured in _measured_steps(rows):
        ours = rows.find(OP, s, "stock", "ours")
        stock = rows.find(OP, s, "stock", provider)
        lines.append([
            TITLES[s.case], f"{measured[0]['batch']} x {measured[0]['length']}", s.dtype, provider,
            _seconds(rows, s, provider, "wall_ms"), _seconds(rows, s, provider, "cpu_ms"),
            rows.ratio(OP, s, provider, "ours", "wall_ms", ".2f"),
            rows.ratio(OP, s, provider, "ours", "cpu_ms", ".2f"),
            cell(stock, "peak_mib", ".0f"), _peak_ratio(stock, ours),
            cell(measured[0], "loss_err", ".1e"), cell(measured[0], "grad_err", ".1e"),
            " / ".join(cell(r, "load", ".1f") for r in measured),
        ])  # fmt: skip
    if not lines:
        return "No rows have been recorded yet: `python -m bench trainers --record`.\n"
    head = [
        "step", "B x T", "dtype", "provider", "wall s", "CPU s", "wall / ours", "CPU / ours",
        "peak MiB", "peak / ours", "loss error", "gradient error", "load",
    ]  # fmt: skip
    return markdown(head, lines, 4) + rows.not_measured(OP)


def _measured_steps(rows: MeasuredRows) -> Iterator[tuple[Shape, str, list[Row]]]:
    """Yield shape, provider and its rows by allocator, in the order of titles and providers."""
    order = list(TITLES)
    shapes = dict.fromkeys(shape_of(r) for r in rows.of(OP))
    for s in sorted(shapes, key=lambda s: (order.index(s.case), s.dtype != "fp32")):
        for provider in PROVIDERS[s.case]:
            if measured := [r for r in rows.find_both(OP, s, provider) if r]:
                yield s, provider, measured


def _seconds(rows: MeasuredRows, s: Shape, provider: str, column: str) -> str:
    both = rows.find_both(OP, s, provider)
    return " / ".join("-" if r is None else f"{number(r, column) / 1e3:.2f}" for r in both)


def _peak_ratio(r: Row | None, ours: Row | None) -> str:
    if r is None or ours is None or "peak_mib" not in r or "peak_mib" not in ours:
        return "-"
    return f"{number(r, 'peak_mib') / number(ours, 'peak_mib'):.2f}"
