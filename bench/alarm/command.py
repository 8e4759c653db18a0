"""``python -m bench alarm``: measure how often the alarm of a fitted error is right.

    python -m bench alarm             # about twenty minutes on one core
    python -m bench alarm --quick     # one student of every condition
    python -m bench alarm --record    # replace the committed rows, from a clean tree

docs/diagnostics.md shows the committed rows. The rule was chosen on seeds 0 to 7; these are others.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.alarm.students import Condition, measure, pretrain
from bench.harness.environment import environment
from bench.harness.row_files import RESULTS

ROWS = RESULTS / "alarm.jsonl"
SEEDS = tuple(range(100, 104))
CONDITIONS = (
    Condition("pretrained", "weak model", 3),
    Condition("pretrained", "weak model", 8),
    Condition("pretrained", "weak model", 3, "logconf"),
    Condition("scratch", "weak model", 8),
    Condition("pretrained", "random errors", 3),
    Condition("pretrained", "true", 3),
    Condition("scratch", "true", 8),
)


def load() -> list[dict[str, Any]]:
    """Return the committed rows."""
    return [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []


def main(args: list[str]) -> int:
    """Train all students and print a line for each; exit code 2 if they cannot be recorded."""
    p = argparse.ArgumentParser(prog="python -m bench alarm", description=__doc__.splitlines()[0])
    p.add_argument("--quick", action="store_true", help="one student of every condition")
    p.add_argument("--record", action="store_true", help="replace the committed rows (clean tree)")
    options = p.parse_args(args)
    facts = environment()
    if options.record and (options.quick or facts["dirty"]):
        print("bench alarm: --record needs a clean tree and no --quick", file=sys.stderr)
        return 2
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        pretrained = Path(folder) / "model"
        pretrain(pretrained)
        for seed in SEEDS[:1] if options.quick else SEEDS:
            for condition in CONDITIONS:
                row = measure(condition, seed, pretrained)
                marks = {name: facts[name] for name in ("cpu", "torch", "git_sha", "utc")}
                lines.append(json.dumps({**row, **marks}) + "\n")
                print(lines[-1], end="", flush=True)
    if options.record:
        ROWS.write_text("".join(lines))
    return 0
