"""The tables of docs/side_by_side.md: measured rows, the users' scripts, and the shims."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.side_by_side.command import load
from bench.side_by_side.shims import SHIMS
from bench.side_by_side.systems import OURS, PEERS, SYSTEMS

PAGE = "docs/side_by_side.md"
SCRIPTS = Path(__file__).parent / "scripts"
_NONE = "No rows have been recorded yet: `python -m bench side_by_side --peers FOLDER --record`.\n"
_BUSY = 2.0  # load average from which wall times say little; a training adds one itself
Row = Mapping[str, Any]


def blocks() -> dict[str, Callable[[Any], str]]:
    """Return marker -> what makes its text in docs/side_by_side.md."""
    return {
        "equality": lambda _: equality(load()),
        "cost": lambda _: cost(load()),
        "lines": lambda _: lines(),
        "shims": lambda _: shims(),
    }


def equality(rows: Sequence[Row]) -> str:
    """Return accuracies, and the differences to the same training by this package."""
    heads = [
        "setting", "code base", "loss", "accuracy", "loss of w2s_fast", "same class",
        "largest difference of a loss", "of a probability",
    ]  # fmt: skip
    body = []
    for own in _groups(rows):
        first, ours = own[0], own[0]["system"] == OURS
        differences = ["", "", "", ""]
        if not ours:
            differences = [
                f"`{SYSTEMS[first['system']].losses[first['loss']]}`",
                f"{100 * np.mean([row['agreement'] for row in own]):.1f} %",
                f"{max(row['loss_gap'] for row in own):.1e}",
                f"{max(row['probability_gap'] for row in own):.1e}",
            ]
        body.append([*_names(first), _spread(own, "accuracy", ".3f"), *differences])
    return _table(heads, body, 3, rows)


def cost(rows: Sequence[Row]) -> str:
    """Return times and memory: the median over the seeds, and their range."""
    heads = [
        "setting", "code base", "loss", "ms a step", "CPU ms a step", "process, s",
        "peak memory, MiB", "of it since the first forward, MiB",
    ]  # fmt: skip
    measures = ("step_ms", "step_cpu_ms", "process_s", "peak_mib", "added_mib")
    formats = (".1f", ".1f", ".1f", ".0f", ".0f")
    body = [
        [*_names(own[0]), *(_spread(own, m, f) for m, f in zip(measures, formats, strict=True))]
        for own in _groups(rows)
    ]
    return _table(heads, body, 3, rows)


def lines() -> str:
    """Return the number of lines that a user of each code base writes."""
    text = "| code base | lines | script |\n| --- | ---: | --- |\n"
    for name, system in SYSTEMS.items():
        path = SCRIPTS / f"{name}.py"
        link = f"[{name}.py](../bench/side_by_side/scripts/{name}.py)"
        text += f"| {system.title} | {written_lines(path.read_text())} | {link} |\n"
    return text


def written_lines(code: str) -> int:
    """Count the lines of a script that are neither blank nor comments nor its docstring."""
    body = ast.parse(code).body
    docstring = set()
    if isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
        docstring = set(range(body[0].lineno, (body[0].end_lineno or body[0].lineno) + 1))
    return sum(
        number not in docstring and line.strip() != "" and not line.lstrip().startswith("#")
        for number, line in enumerate(code.splitlines(), 1)
    )


def shims() -> str:
    """Return what is changed in each code base from outside."""
    text = "| code base | change | reason |\n| --- | --- | --- |\n"
    for system in PEERS:
        for shim in SHIMS[system.name]:
            text += f"| {system.title} | {shim.what} | {shim.why} |\n"
    return text


def _groups(rows: Sequence[Row]) -> list[list[Row]]:
    """Return the rows of each setting, loss and code base, in the order of the page."""
    order = list(SYSTEMS)
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        family = row["loss"].partition("_")[0] == "logconf"
        key = (row["name"], family, order.index(row["system"]), row["loss"])
        found.setdefault(key, []).append(row)
    return [found[key] for key in sorted(found)]


def _names(row: Row) -> list[str]:
    return [row["name"].replace("_", "-"), SYSTEMS[row["system"]].title, f"`{row['loss']}`"]


def _spread(rows: Sequence[Row], name: str, spec: str) -> str:
    """Return the median and the range over seeds."""
    values = [row[name] for row in rows]
    low, middle, high = (format(f(values), spec) for f in (min, np.median, max))
    return middle if low == high else f"{middle} ({low} – {high})"


def _table(
    heads: Sequence[str], body: Sequence[Sequence[str]], n_text: int, rows: Sequence[Row]
) -> str:
    if not rows:
        return _NONE
    rule = ["---"] * n_text + ["---:"] * (len(heads) - n_text)
    text = "".join(f"| {' | '.join(cells)} |\n" for cells in [heads, rule, *body])
    return f"{text}\n{_settings(rows)}"


def _settings(rows: Sequence[Row]) -> str:
    """Return a line for each setting: what was trained, where, and how busy the machine was."""
    text = ""
    for name in sorted({row["name"] for row in rows}):
        own = [row for row in rows if row["name"] == name]
        first, seeds = own[0], len({row["seed"] for row in own})
        loads = [row["load"] for row in own]
        plural = "s" if first["threads"] > 1 else ""
        text += (
            f"- {name.replace('_', '-')}: {seeds} seeds, {first['steps']} steps of "
            f"{first['batch_size']} rows in micro-batches of {first['micro_batch_size']}, "
            f"{first['n_test']} test rows, lr {first['lr']:g}, fp32, {first['threads']} "
            f"thread{plural}; {first['cpu']}, load average {min(loads):.1f} to {max(loads):.1f}, "
            f"torch {first['torch']}, transformers {first['our_transformers']} (w2s_fast) and "
            f"{first['peer_transformers']} (the two others), commit {first['git_sha']}."
        )
        if max(loads) > _BUSY:
            text += " The machine was busy: compare CPU times, not wall times."
        text += "\n"
    return text
