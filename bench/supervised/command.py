"""``python -m bench supervised``: label models to students on real data, five seeds.

    python -m bench supervised youtube sst2 --data DIR --student DIR            # print tables
    python -m bench supervised youtube sst2 --data DIR --student DIR --record   # and commit them

DIR of the data has wrench/youtube/*.json and sst2/train.tsv; that of the student is a transformers
checkpoint of a sentence encoder. Neither is part of the repository.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.harness.environment import environment
from bench.harness.row_files import write_results
from bench.supervised.experiments import (
    DATA_SETS,
    configuration,
    data_file,
    selected,
    supervisors,
)
from bench.supervised.table import FOLDER, table


def measure(name: str, data: Path, student: Path, out: Path) -> dict[str, Any]:
    """Run all experiments of a data set; they share stages in ``out``."""
    from w2s_fast.pipeline import run

    file = data_file(name, data, out)
    experiments = {}
    for title, block in supervisors(name).items():
        cfg = configuration(name, block, file, student)
        folder = out / f"{name}-{len(experiments)}"
        cfg = replace(cfg, output_dir=str(folder), cache_dir=str(out / "cache"))
        experiments[title] = selected(run(cfg, quiet=False))
    task = {key: getattr(cfg.task, key) for key in ("n_weak", "n_transfer", "n_test")}
    return {
        "name": name, "environment": environment(), "task": task, "experiments": experiments
    }  # fmt: skip


def main(args: list[str]) -> int:
    """Run experiments; exit code 2 for bad input."""
    p = argparse.ArgumentParser(
        prog="python -m bench supervised", description=__doc__.splitlines()[0]
    )
    p.add_argument("names", nargs="+", choices=DATA_SETS)
    p.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    p.add_argument("--student", type=Path, required=True, help="folder of a sentence encoder")
    p.add_argument("--out", type=Path, default=Path("out/supervised"), help="%(default)s")
    p.add_argument(
        "--record", action="store_true", help="replace the committed results (clean tree)"
    )
    options = p.parse_args(args)
    if options.record and environment()["dirty"]:
        print("bench supervised: --record needs a clean tree; commit first", file=sys.stderr)
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.names:
        results = measure(name, options.data, options.student, options.out)
        print(table(results))
        if options.record:
            write_results(FOLDER / f"{name}.json", results)
    return 0
