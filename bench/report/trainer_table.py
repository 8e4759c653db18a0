"""Markdown tables of whole training steps in trainers, made of measured rows."""

from __future__ import annotations

from bench.cases.trainer_steps import PROVIDERS
from bench.harness import results
from bench.report import tables

OP = "trainers"
TITLES = {
    "sft": "SFT, every token",
    "dpo": "DPO, half of each row an answer",
    "labels": "two label tokens a row",
}
_NONE = "No rows have been recorded yet: `python -m bench trainers --record`.\n"
_ALLOCATORS = ("stock", "recycled")


def steps(table: tables.Table) -> str:
    """Every case and candidate: seconds of a step, peak memory, both against ours."""
    lines = []
    for group, who, found in _found(table):
        ours = table.get(OP, group, "stock", "ours")
        stock = table.get(OP, group, "stock", who)
        lines.append([
            TITLES[str(group[0])], f"{found[0]['batch']} x {found[0]['length']}", str(group[1]),
            who,
            _seconds(table, group, who, "wall_ms"), _seconds(table, group, who, "cpu_ms"),
            table.ratio(OP, group, who, "ours", "wall_ms", ".2f"),
            table.ratio(OP, group, who, "ours", "cpu_ms", ".2f"),
            tables.cell(stock, "peak_mib", ".0f"), _times(stock, ours, "peak_mib"),
            tables.cell(found[0], "loss_err", ".1e"), tables.cell(found[0], "grad_err", ".1e"),
            " / ".join(tables.cell(r, "load", ".1f") for r in found),
        ])  # fmt: skip
    if not lines:
        return _NONE
    head = [
        "step", "B x T", "dtype", "by", "wall s", "CPU s", "wall / ours", "CPU / ours",
        "peak MiB", "peak / ours", "loss differs", "gradient differs", "load",
    ]  # fmt: skip
    return tables.markdown(head, lines, 4) + tables.left_out(table, OP)


def _found(table: tables.Table) -> list[tuple[tuple[object, ...], str, list[results.Row]]]:
    """(what, who, its rows by allocator) in the order of the titles and candidates."""
    mine = [r for r in table.rows if r["op"] == OP]
    order = list(TITLES)
    groups = dict.fromkeys(tables.group_of(r) for r in mine)
    found = []
    for group in sorted(groups, key=lambda g: (order.index(str(g[0])), g[1] != "fp32")):
        for who in PROVIDERS[str(group[0])]:
            of = [r for a in _ALLOCATORS if (r := table.get(OP, group, a, who))]
            if of:
                found.append((group, who, of))
    return found


def _seconds(table: tables.Table, group: tuple[object, ...], who: str, column: str) -> str:
    found = [table.get(OP, group, a, who) for a in _ALLOCATORS]
    return " / ".join("-" if r is None else f"{results.number(r, column) / 1e3:.2f}" for r in found)


def _times(a: results.Row | None, b: results.Row | None, column: str) -> str:
    if a is None or b is None or column not in a or column not in b:
        return "-"
    return f"{results.number(a, column) / results.number(b, column):.2f}"
