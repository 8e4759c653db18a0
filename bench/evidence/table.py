"""The tables of docs/evidence.md, from the committed rows."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bench.cases import w2s
from bench.evidence.comparisons import Group, Student, groups
from bench.evidence.design import BAG_OF_WORDS, PAIR_SIZES, PROTOCOLS, SETS, SIZES, SUPERVISORS
from bench.evidence.models import ENCODER, SHALLOW
from bench.evidence.rows import ROWS, read_rows
from w2s_fast import metrics
from w2s_fast.report.model_rows import (
    NOT_REPORTED,
    difference_cells,
    format_interval,
    format_number,
    level_text,
)

PAGE = "docs/evidence.md"
_NONE = "No rows have been recorded yet.\n"
Row = Mapping[str, Any]


def blocks() -> dict[str, Callable[[Any], str]]:
    """Return marker -> what makes its text in docs/evidence.md."""
    details = {
        f"{protocol}-{data}": (
            lambda _, protocol=protocol, data=data: detail(committed(), protocol, data)
        )
        for protocol in PROTOCOLS
        for data in PROTOCOLS[protocol].sets
    }
    return {
        "coverage": lambda _: coverage(load()),
        "gaps": lambda _: gaps(committed()),
        "differences": lambda _: differences(committed()),
        "machine": lambda _: machine(load()),
        **details,
    }


def load() -> list[dict[str, Any]]:
    """Return the committed rows."""
    return read_rows(ROWS)


@functools.cache
def committed() -> tuple[Group, ...]:
    """Return the groups of the committed rows, once: their intervals take seconds."""
    return tuple(groups(load()))


def coverage(rows: Sequence[Row]) -> str:
    """Return how many seeds of each group are finished, and of how many."""
    heads = ["protocol", "data set", *(supervisor_title(s) for s in SUPERVISORS)]
    lines = [_line(heads), _line(["---", "---", *["---:"] * len(SUPERVISORS)])]
    for name, protocol in PROTOCOLS.items():
        for data in protocol.sets:
            cells = [_finished(rows, name, data, supervisor) for supervisor in SUPERVISORS]
            lines.append(_line([protocol.title, set_title(data), *cells]))
    return "\n".join(lines) + "\n"


def _finished(rows: Sequence[Row], protocol: str, data: str, supervisor: str) -> str:
    place = (protocol, data, supervisor)
    own = {(r["seed"], r["spec"]) for r in rows
           if (r["protocol"], r["data"], r["supervisor"]) == place}  # fmt: skip
    design = PROTOCOLS[protocol]
    if supervisor not in design.supervisors:
        return "–"
    done = sum(all((seed, m) in own for m in design.methods) for seed in design.seeds)
    return f"{done} of {len(design.seeds)}"


def gaps(found: Sequence[Group]) -> str:
    """Return a table of weak model, plain cross-entropy, ceiling and PGR of every group."""
    if not found:
        return _NONE
    heads = ("training", "data set", "weak model", "seeds", "weak", "student", "ceiling", "PGR",
             f"{level_text()} interval")  # fmt: skip
    lines = [_line(heads), _line(["---"] * 3 + ["---:"] * 6)]
    for group in found:
        accuracies = [group.weak, group.baseline.accuracy, group.ceiling]
        training, supervisor = PROTOCOLS[group.protocol].title, supervisor_title(group.supervisor)
        numbers = [str(len(group.seeds)), *(f"{a:.3f}" for a in accuracies)]
        cells = [training, set_title(group.data), supervisor, *numbers]
        lines.append(_line([*cells, *_pgr_cells(group.baseline)]))
    return "\n".join(lines) + "\n"


def differences(found: Sequence[Group]) -> str:
    """Return a line for each difference to the baseline that remains after Holm's correction."""
    lines = []
    for group in found:
        for student in group.students[1:]:
            d = student.difference
            if d is not None and d["p_holm"] is not None and d["p_holm"] < 1 - metrics.LEVEL:
                change, interval, _, p = difference_cells(d)
                place = f"{PROTOCOLS[group.protocol].title}, {set_title(group.data)}"
                lines.append(
                    f"- {place}, {supervisor_title(group.supervisor)}: `{student.name}` {change} "
                    f"({interval}), p {p}"
                )
    return "\n".join(lines or ["- none" if found else _NONE.strip()]) + "\n"


def detail(found: Sequence[Group], protocol: str, data: str) -> str:
    """Return the tables of a set, one for each supervisor with rows."""
    own = [g for g in found if (g.protocol, g.data) == (protocol, data)]
    return "\n".join(_table(group) for group in own) or _NONE


def _table(group: Group) -> str:
    sizes = SIZES if group.data != "hh_single_turn" else PAIR_SIZES
    counts = " / ".join(map(str, sizes.values()))
    state = "" if group.complete else " (not all cells are finished)"
    heads = (
        "method + loss", "accuracy", f"− `{group.baseline.name}`", f"{level_text()} interval",
        "p, Holm", "PGR", f"{level_text()} interval", "agreement where weak is right / wrong",
    )  # fmt: skip
    lines = [
        f"Weak model: {supervisor_title(group.supervisor)}, {group.weak:.3f}; ceiling "
        f"{group.ceiling:.3f}; {w2s.counted(len(group.seeds), 'seed')}{state}, {counts} items of "
        "weak / transfer / test.",
        "",
        _line(heads),
        _line(["---", *["---:"] * (len(heads) - 1)]),
        *(_student_line(student) for student in group.students),
    ]
    for student in group.students:
        uses = "; ".join(student.gold)
        lines += ["", f"`{student.name}` used true labels: {uses}."] if uses else []
    for failure in group.failures:
        seeds = w2s.counted(failure.n_seeds, "seed")
        lines += ["", f"`{failure.name}` could not run at {seeds}: {failure.reason}."]
    return "\n".join(lines) + "\n"


def _student_line(student: Student) -> str:
    compared = ["", "", ""]
    if student.difference is not None:
        change, interval, _, p = difference_cells(student.difference)
        compared = [change, interval, p]
    agreement = " / ".join(format_number(a) for a in student.agreement)
    name = student.name.replace("|", "\\|")  # a bar would end the cell
    cells = [f"`{name}`", f"{student.accuracy:.3f}", *compared, *_pgr_cells(student), agreement]
    return _line(cells)


def _pgr_cells(student: Student) -> list[str]:
    if student.pgr is None or student.pgr["pgr_mean"] is None:
        return [NOT_REPORTED, "–"]
    return [f"{student.pgr['pgr_mean']:.2f}", format_interval(student.pgr)]


def machine(rows: Sequence[Row]) -> str:
    """Return one line: where the rows were measured, and in how much time."""
    if not rows:
        return _NONE
    facts = [
        ", ".join(sorted({str(row[name]) for row in rows})) for name in ("cpu", "torch", "git_sha")
    ]
    times = {(r["protocol"], r["data"], r["supervisor"], r["seed"], r["utc"]): r["seconds"]
             for r in rows}  # fmt: skip
    hours = sum(times.values()) / 3600
    return (
        f"{len(rows)} rows, {hours:.1f} hours of a machine that others used, too; {facts[0]}, "
        f"torch {facts[1]}, commit {facts[2]}.\n"
    )


def set_title(name: str) -> str:
    """Return what tables and figures call a set."""
    titles = {"sst2": "SST-2", "cola": "CoLA", "safety": "safety", "hh_single_turn": "harmlessness"}
    assert titles.keys() == SETS.keys()
    return titles[name]


def supervisor_title(name: str) -> str:
    """Return what tables and figures call a supervisor."""
    return {BAG_OF_WORDS: "bag of words", SHALLOW: "three layers", ENCODER: "MiniLM"}[name]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
