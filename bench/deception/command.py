"""``python -m bench deception``: students under a conflict on harmless pairs, three seeds.

    python -m bench deception --data DIR --student DIR            # print the table
    python -m bench deception --data DIR --student DIR --record   # and commit it

DIR of the data has hh_single_turn/harmless_*.jsonl and gsm8k/train.jsonl; that of the student is a
transformers checkpoint of a sentence encoder. Neither is part of the repository, and no text of
either is written into the results.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.deception.data import write_harmless, write_helpful, write_short
from bench.deception.experiments import EXPERIMENTS, POLICIES, configuration, selected
from bench.deception.table import FILE, table
from bench.harness.environment import environment
from bench.harness.row_files import write_results


def measure(names: list[str], data: Path, student: Path, out: Path) -> dict[str, Any]:
    """Run experiments; they share stages in ``out``."""
    from w2s_fast.pipeline import run

    harmless, helpful = write_harmless(data, out), write_helpful(data, out)
    short = write_short(*harmless, out)
    found = {}
    for name in names:
        pairs = short if name in POLICIES else harmless
        cfg = configuration(name, (*pairs, helpful), student)
        folder = out / str(EXPERIMENTS.index(name))
        cfg = replace(cfg, output_dir=str(folder), cache_dir=str(out / "cache"))
        sizes = [cfg.task.n_weak, cfg.task.n_transfer, cfg.task.n_test]
        found[name] = {"pairs": sizes, **selected(run(cfg, quiet=False))}
    return {"environment": environment(), "experiments": found}


def main(args: list[str]) -> int:
    """Run experiments; exit code 2 for bad input."""
    p = argparse.ArgumentParser(
        prog="python -m bench deception", description=__doc__.splitlines()[0]
    )
    p.add_argument("names", nargs="*", help=f"of {', '.join(map(repr, EXPERIMENTS))}; default: all")
    p.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    p.add_argument("--student", type=Path, required=True, help="folder of a sentence encoder")
    p.add_argument("--out", type=Path, default=Path("out/deception"), help="%(default)s")
    p.add_argument(
        "--record", action="store_true", help="replace the committed results (clean tree)"
    )
    options = p.parse_args(args)
    names = options.names or list(EXPERIMENTS)
    if unknown := [name for name in names if name not in EXPERIMENTS]:
        p.error(f"{unknown[0]!r} is unknown; expected some of {', '.join(map(repr, EXPERIMENTS))}")
    if options.record and environment()["dirty"]:
        print("bench deception: --record needs a clean tree; commit first", file=sys.stderr)
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    results = measure(names, options.data, options.student, options.out)
    print(table(results))
    if options.record:
        write_results(FILE, results)
    return 0
