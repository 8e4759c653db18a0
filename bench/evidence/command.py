"""``python -m bench evidence``: weak-to-strong on real data, with a language model as the student.

    python -m bench.evidence.models out/models                          # once: make the models
    python -m bench evidence --data DIR --models out/models             # a day of two cores
    make evidence DATA=DIR                                              # both, and the documents

The data folder holds the files of ``design.SETS`` as they are published; sets that are missing are
named and left out. Every finished cell is added to bench/results/evidence, and the same
command continues from these rows, and a cell from its finished stages in ``--out``.
docs/evidence.md shows the rows.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.evidence.design import (
    PROTOCOLS,
    SETS,
    SUPERVISORS,
    Cell,
    cells,
    configuration,
    remaining,
    report_name,
)
from bench.evidence.models import ENCODER, SHALLOW, STUDENT, is_made
from bench.evidence.rows import ROWS, append_rows, finished, read_rows, rows_of
from bench.harness.environment import environment
from w2s_fast.errors import W2SError


def missing_sets(data: Path) -> list[str]:
    """Return the names of the sets whose file the folder does not have."""
    return [name for name, file in SETS.items() if not (data / file).is_file()]


def open_cells(rows: Path, options: argparse.Namespace) -> list[Cell]:
    """Return the cells that have methods without a row, with these methods."""
    done = finished(read_rows(rows))
    absent = missing_sets(options.data)
    chosen = (
        replace(cell, methods=tuple(m for m in cell.methods if m in (options.methods or [m])))
        for cell in cells()
        if cell.data not in absent
        and (not options.sets or cell.data in options.sets)
        and (not options.supervisors or cell.supervisor in options.supervisors)
        and (not options.protocols or cell.protocol in options.protocols)
        and not (options.quick and cell.seed)
    )
    return [cell for cell in (remaining(c, done) for c in chosen) if cell.methods]


def measure(cell: Cell, options: argparse.Namespace) -> None:
    """Run a cell and add its rows.

    Raises:
        W2SError: The run fails in a stage that no single method asks for.
    """
    started, machine = time.perf_counter(), environment()
    results, failed = run_methods(cell, options)
    seconds = time.perf_counter() - started
    append_rows(options.rows, rows_of(cell, results, failed, seconds, machine))
    first = results["runs"][0]
    print(
        f"{cell.name}: {len(cell.methods)} methods, weak {first['weak']:.3f}, {first['name']} "
        f"{first['student']:.3f}, ceiling {first['ceiling']:.3f}; {seconds:.0f} s",
        flush=True,
    )
    for spec, reason in failed.items():
        print(f"  {spec} failed: {reason}", flush=True)


def run_methods(cell: Cell, options: argparse.Namespace) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the results of a cell, and by spec why a method could not run on its data.

    A filter that keeps no row, for instance, is a result about the method; the others go on.
    """
    from w2s_fast.pipeline import run

    folder = options.out / "-".join([cell.protocol, cell.data, cell.supervisor, str(cell.seed)])
    failed: dict[str, str] = {}
    while True:
        methods = tuple(m for m in cell.methods if m not in failed)
        rest = replace(cell, methods=methods)
        cfg = configuration(rest, options.data, options.models, quick=options.quick)
        cfg = replace(cfg, output_dir=str(folder), cache_dir=str(options.out / "cache"))
        try:
            return run(cfg), failed
        except W2SError as error:
            stage, _, reason = str(error).partition(": ")
            spec = next((m for m in methods[1:] if report_name(m) in stage.split("/")), None)
            if spec is None:
                raise
            failed[spec] = reason


def main(args: list[str]) -> int:
    """Run the open cells of the sets that are there; exit code 2 for bad input."""
    p = argparse.ArgumentParser(
        prog="python -m bench evidence", description=__doc__.splitlines()[0]
    )
    p.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    p.add_argument("--models", type=Path, required=True, help="folder of bench.evidence.models")
    p.add_argument("--out", type=Path, default=Path("out/evidence"), help="%(default)s")
    p.add_argument("--rows", type=Path, default=ROWS, help="folder of the rows; the committed ones")
    p.add_argument("--sets", nargs="+", choices=SETS, help="only these")
    p.add_argument("--supervisors", nargs="+", choices=SUPERVISORS, help="only these")
    p.add_argument("--protocols", nargs="+", choices=PROTOCOLS, help="only these")
    p.add_argument("--methods", nargs="+", metavar="SPEC", help="only these")
    p.add_argument("--quick", action="store_true", help="toy sizes and seed 0; needs --rows")
    p.add_argument("--dry-run", action="store_true", help="print the open cells and stop")
    options = p.parse_args(args)
    if options.quick and options.rows == ROWS:
        return _refuse("rows of --quick are not committed; write them to another folder by --rows")
    absent = missing_sets(options.data)
    for name in absent:
        print(f"missing: {name}, expected as {options.data / SETS[name]}", file=sys.stderr)
    todo = open_cells(options.rows, options)
    print(f"{len(todo)} open cells", flush=True)
    if options.dry_run:
        print("\n".join(f"{cell.name}: {', '.join(cell.methods)}" for cell in todo))
        return 0
    if todo and (reason := _obstacle(options)):
        return _refuse(reason)
    for cell in todo:
        measure(cell, options)
    return 0


def _refuse(reason: str) -> int:
    print(f"bench evidence: {reason}", file=sys.stderr)
    return 2


def _obstacle(options: argparse.Namespace) -> str:
    """Return why nothing can be measured; empty if something can."""
    absent = [name for name in (STUDENT, SHALLOW, ENCODER) if not is_made(options.models / name)]
    if absent:
        return (
            f"{options.models} lacks {', '.join(absent)}; make them with "
            f"`python -m bench.evidence.models {options.models}`"
        )
    if options.rows == ROWS and environment()["dirty"]:
        return "committed rows need a clean tree; commit, or write to another folder by --rows"
    return ""
