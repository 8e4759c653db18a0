"""``python -m bench reasoning``: released files of weak-to-strong reasoning, sampling, and a run.

    python -m bench reasoning --data DIR             # counts and accuracies, beside expected ones
    python -m bench reasoning --model FOLDER         # tokens per CPU second of a causal model
    python -m bench reasoning --run out/reasoning    # students on word problems, two hours
    python -m bench reasoning --data DIR --record    # replace the committed rows (clean tree)

docs/reasoning.md shows the committed rows. Neither data nor model is part of the repository.
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
from bench.reasoning import released, speed, word_problems
from w2s_fast.errors import W2SError

ROWS = RESULTS / "reasoning.jsonl"


def load() -> list[dict[str, Any]]:
    """Return the committed rows."""
    return [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []


def main(args: list[str]) -> int:
    """Measure and print a line for each row.

    Returns:
        0; 1 if a count differs from the expected one; 2 for bad input.
    """
    p = argparse.ArgumentParser(
        prog="python -m bench reasoning", description=__doc__.splitlines()[0]
    )
    p.add_argument("--data", type=Path, help="folder of gair_gsm8k/ and gsm8k/")
    p.add_argument("--model", type=Path, help="folder of a causal language model")
    p.add_argument("--run", type=Path, help="folder of a run on word problems; it resumes there")
    p.add_argument(
        "--experiments",
        nargs="+",
        choices=word_problems.METHODS,
        default=list(word_problems.METHODS),
        help="of --run: %(default)s",
    )
    p.add_argument("--threads", type=int, default=1, help="of torch: %(default)s")
    p.add_argument("--rounds", type=int, default=3, help="of the speed: %(default)s")
    p.add_argument("--quick", action="store_true", help="toy sizes: check that it runs")
    p.add_argument("--out", type=Path, help="write the rows to this file")
    p.add_argument("--record", action="store_true", help="replace the committed rows (clean tree)")
    options = p.parse_args(args)
    torch.set_num_threads(options.threads)
    facts = environment()
    if not (options.data or options.model or options.run):
        print("bench reasoning: nothing to do; give --data, --model or --run", file=sys.stderr)
        return 2
    if options.record and (options.quick or facts["dirty"]):
        print("bench reasoning: --record needs a clean tree, no --quick", file=sys.stderr)
        return 2
    measured = []
    try:
        for row in _rows(options):
            measured.append({**row, **facts})
            print(json.dumps(row), flush=True)
    except W2SError as e:
        print(f"bench reasoning: {e}", file=sys.stderr)
        return 2
    for name in options.experiments if options.run else ():
        word_problems.run(name, options.run, options.record)
    if options.out:
        options.out.write_text("".join(json.dumps(row) + "\n" for row in measured))
    if options.record and measured:
        kinds = {row["kind"] for row in measured}
        kept = [row for row in load() if row["kind"] not in kinds]
        ROWS.write_text("".join(json.dumps(row) + "\n" for row in kept + measured))
    differing = [r for r in measured if r.get("expected") not in (None, r.get("n"))]
    for row in differing:
        print(f"{row['name']}: {row['n']}, expected {row['expected']}", file=sys.stderr)
    return int(bool(differing))


def _rows(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    if options.data:
        yield from released.measure(options.data)
    if options.model:
        yield from speed.measure(options.model, options.quick, options.rounds)
