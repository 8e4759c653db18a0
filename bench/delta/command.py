"""``python -m bench delta``: pairs of two weak generators, and the controls, on sorted digits.

    python -m bench delta             # about six minutes on one core
    python -m bench delta --quick     # one base and one seed
    python -m bench delta --record    # replace the committed rows, from a clean tree

docs/delta_learning.md shows the committed rows. ``Setting`` was chosen on bases 1000 to 1002.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from bench.harness.environment import environment
from bench.harness.row_files import RESULTS

ROWS = RESULTS / "delta.jsonl"
BASES = (0, 1, 2)
SEEDS = (0, 1, 2)


def load() -> list[dict[str, Any]]:
    """Return the committed rows."""
    return [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []


def main(args: list[str]) -> int:
    """Train all students and print a line for each seed; exit code 2 if it cannot be recorded."""
    p = argparse.ArgumentParser(prog="python -m bench delta", description=__doc__.splitlines()[0])
    p.add_argument("--quick", action="store_true", help="one base and one seed")
    p.add_argument("--record", action="store_true", help="replace the committed rows (clean tree)")
    options = p.parse_args(args)
    facts = environment()
    if options.record and (options.quick or facts["dirty"]):
        print("bench delta: --record needs a clean tree and no --quick", file=sys.stderr)
        return 2
    from bench.delta.learner import Models, Setting, measure

    marks = {name: facts[name] for name in ("cpu", "torch", "git_sha", "utc")}
    lines = []
    for base in BASES[:1] if options.quick else BASES:
        models = Models(base, Setting())
        for seed in SEEDS[:1] if options.quick else SEEDS:
            lines.append(json.dumps({**measure(models, base, seed), **marks}) + "\n")
            print(lines[-1], end="", flush=True)
    if options.record:
        ROWS.write_text("".join(lines))
    return 0
