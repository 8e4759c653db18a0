"""``python -m bench coverage``: simulate how often intervals contain what they estimate.

    python -m bench coverage             # at least 4000 simulations a cell, ten minutes
    python -m bench coverage --quick     # a few cells with 500
    python -m bench coverage --record    # replace the committed rows, from a clean tree

docs/intervals.md shows the committed rows.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.harness.environment import environment
from bench.harness.row_files import RESULTS
from bench.intervals.coverage import measure
from bench.intervals.simulated_runs import FLOOR, Cell

ROWS = RESULTS / "coverage.jsonl"
REPLICATES = 4000
REPORT_REPLICATES = 40_000  # shares near 5 % need more of them to be told apart
SEEDS = (3, 5, 10)
SEED_SDS = (0.0, 0.1, 0.25)
_POWER_Z = 3.0


def interval_cells() -> Iterator[Cell]:
    """Yield the cells of the table of intervals."""
    for bases, gap, n, seeds, sd in itertools.product(
        (1, 2, 3, 8), (0.03, 0.1, 0.2), (200, 2000), SEEDS, SEED_SDS
    ):
        yield Cell(gap, n, seeds, bases, sd)
    for bases, n, seeds, sd in itertools.product((3, 8), (200, 2000), SEEDS, SEED_SDS):
        yield Cell(0.1, n, seeds, bases, sd, crossed=True)
    for pool, bases, seeds, sd in itertools.product((500, 1000), (1, 3), (3, 10), (0.0, 0.25)):
        yield Cell(0.1, 500, seeds, bases, sd, pool=pool)


def report_cells() -> Iterator[Cell]:
    """Yield the cells of the table of reported gaps: a gap of 0, and one of 3 standard errors."""
    for seeds, n, sd in itertools.product((2, *SEEDS), (200, 1000), SEED_SDS):
        cell = Cell(0.0, n, seeds, 1, sd, scale=0.1, base_effect=False)
        yield cell
        for _ in range(3):  # the standard error depends on the gap a little
            cell = replace(cell, gap=round(_POWER_Z * gap_sd(cell), 5))
        yield cell


def gap_sd(cell: Cell) -> float:
    """Return the standard deviation of the mean gap over seeds of one base."""
    weak, ceiling = FLOOR, FLOOR + cell.gap
    kinds = [(weak + s * weak * (1 - weak), ceiling + s * ceiling * (1 - ceiling)) for s in (1, -1)]
    within = sum(w * (1 - w) + c * (1 - c) for w, c in kinds) / 2
    between = sum((c - w - cell.gap) ** 2 for w, c in kinds) / 2
    training = cell.effect_sd**2 / 2  # a quarter each from weak model and ceiling
    return math.sqrt(((within + between) / cell.n + training) / cell.seeds)


def rows(cells: Iterable[tuple[Cell, int]]) -> Iterator[dict[str, Any]]:
    """Yield the row of each cell with its replicates; the position of a cell is its seed."""
    for i, (cell, replicates) in enumerate(cells):
        yield measure(cell, replicates, seed=i)


def load() -> list[dict[str, Any]]:
    """Return the committed rows."""
    return [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []


def main(args: list[str]) -> int:
    """Simulate all cells and print a line for each; exit code 2 if they cannot be recorded."""
    p = argparse.ArgumentParser(
        prog="python -m bench coverage", description=__doc__.splitlines()[0]
    )
    p.add_argument("--quick", action="store_true", help="a few cells with 500 simulations")
    p.add_argument("--record", action="store_true", help="replace the committed rows (clean tree)")
    p.add_argument("--out", type=Path, help="also write the rows to this file")
    options = p.parse_args(args)
    facts = environment()
    if options.record and (options.quick or facts["dirty"]):
        print("bench coverage: --record needs a clean tree and no --quick", file=sys.stderr)
        return 2
    cells = [(cell, REPLICATES) for cell in interval_cells()]
    cells += [(cell, REPORT_REPLICATES) for cell in report_cells()]
    if options.quick:
        cells = [(cell, 500) for cell, _ in cells[:: len(cells) // 6]]
    lines = []
    for i, row in enumerate(rows(cells), 1):
        lines.append(json.dumps({**row, "git_sha": facts["git_sha"], "utc": facts["utc"]}) + "\n")
        print(f"{i}/{len(cells)} {lines[-1]}", end="", flush=True)
    for path in filter(None, (options.out, ROWS if options.record else None)):
        path.write_text("".join(lines))
    return 0
