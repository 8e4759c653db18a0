"""``python -m bench labeling``: functions from 100 labels against plain few-shot supervision.

    python -m bench labeling --data DIR --student DIR            # print a line per row
    python -m bench labeling --data DIR --student DIR --record   # replace the committed rows

DIR of the data has wrench/youtube/train.json, wrench/sms/train.json and sst2/train.tsv; that of the
student is a transformers checkpoint of a sentence encoder. docs/labeling.md shows the committed
rows. Neither data nor checkpoint are part of the repository.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

from bench.harness.environment import environment
from bench.harness.row_files import RESULTS
from bench.labeling.data import DATA_SETS, ROWS, read
from bench.labeling.measure import SEEDS, measure, prepare, rounded

FILE = RESULTS / "labeling.jsonl"


def load() -> list[dict[str, Any]]:
    """Return the committed rows."""
    return [json.loads(line) for line in FILE.read_text().splitlines()] if FILE.exists() else []


def main(args: list[str]) -> int:
    """Measure, and print a line for each row; exit code 2 for wrong options."""
    p = argparse.ArgumentParser(
        prog="python -m bench labeling", description=__doc__.splitlines()[0]
    )
    p.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    p.add_argument("--student", type=Path, help="sentence encoder; without: no encoder features")
    p.add_argument("--sets", default=",".join(DATA_SETS), help="comma-separated: %(default)s")
    p.add_argument("--rows", type=int, default=ROWS, help="of each data set: %(default)s")
    p.add_argument("--seeds", type=int, default=len(SEEDS), help="%(default)s")
    p.add_argument("--out", type=Path, help="write the rows to this file")
    p.add_argument("--record", action="store_true", help="replace the committed rows (clean tree)")
    options = p.parse_args(args)
    torch.set_num_threads(1)
    names, facts = options.sets.split(","), environment()
    if unknown := set(names) - set(DATA_SETS):
        print(f"bench labeling: set {unknown.pop()!r}; expected {DATA_SETS}", file=sys.stderr)
        return 2
    if options.record and (facts["dirty"] or options.student is None):
        print("bench labeling: --record needs a clean tree, and --student", file=sys.stderr)
        return 2
    measured = []
    for name in names:
        prepared = prepare(read(name, options.data, options.rows), options.student)
        for row in map(rounded, measure(prepared, tuple(range(options.seeds)))):
            measured.append({**row, **facts})
            print(json.dumps(row), flush=True)
    lines = "".join(json.dumps(row) + "\n" for row in measured)
    if options.out:
        options.out.write_text(lines)
    if options.record:
        FILE.write_text(lines)
    return 0
