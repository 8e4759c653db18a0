"""``python -m bench label_models``: measure label models on WRENCH data, in time and in memory.

    python -m bench label_models --data DIR              # DIR/sms/train.json and others
    python -m bench label_models --parts speed,oracle    # Snorkel and crowd-kit, where installed
    python -m bench label_models --data DIR --record     # replace the committed rows (clean tree)

docs/label_models.md shows the committed rows. The data is not part of the repository.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from bench.harness.environment import environment
from bench.harness.row_files import RESULTS
from bench.label_models import accuracy, oracle, resources

ROWS = RESULTS / "label_models.jsonl"
PARTS = ("accuracy", "speed", "memory", "oracle")


def load() -> list[dict[str, Any]]:
    """Return the committed rows."""
    return [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []


def main(args: list[str]) -> int:
    """Measure the selected parts and print a line for each row; exit code 2 for wrong options."""
    p = argparse.ArgumentParser(
        prog="python -m bench label_models", description=__doc__.splitlines()[0]
    )
    p.add_argument("--data", type=Path, help="folder of WRENCH data sets; without: no accuracy")
    p.add_argument("--parts", default=",".join(PARTS), help="comma-separated: %(default)s")
    p.add_argument("--threads", type=int, default=1, help="of torch: %(default)s")
    p.add_argument("--quick", action="store_true", help="toy sizes: check that it runs")
    p.add_argument("--out", type=Path, help="write the rows to this file")
    p.add_argument("--record", action="store_true", help="replace the committed rows (clean tree)")
    options = p.parse_args(args)
    torch.set_num_threads(options.threads)
    parts, facts = options.parts.split(","), environment()
    if unknown := set(parts) - set(PARTS):
        print(f"bench label_models: part {unknown.pop()!r}; expected {PARTS}", file=sys.stderr)
        return 2
    if options.record and (options.quick or facts["dirty"]):
        print("bench label_models: --record needs a clean tree, no --quick", file=sys.stderr)
        return 2
    measured = []
    for row in rows(parts, options):
        measured.append({**row, **facts})
        print(json.dumps(row), flush=True)
    if options.out:
        options.out.write_text("".join(json.dumps(row) + "\n" for row in measured))
    if options.record:
        kept = [row for row in load() if row["part"] not in {r["part"] for r in measured}]
        ROWS.write_text("".join(json.dumps(row) + "\n" for row in kept + measured))
    return 0


def rows(parts: list[str], options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the rows of the selected parts."""
    if "accuracy" in parts and options.data:
        for row in accuracy.measure(options.data):
            yield {"part": "accuracy", **row}
    if "speed" in parts:
        for row in resources.speed(options.quick):
            yield {"part": "speed", **row}
    if "memory" in parts:
        for row in resources.memory(options.quick, options.threads):
            yield {"part": "memory", **row}
    if "oracle" in parts:
        for row in oracle.agreement():
            yield {"part": "oracle", **row}
