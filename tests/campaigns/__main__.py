"""Run a campaign of faults: cases drawn from a seed, each failure as one line.

    PYTHONPATH=tests python -m campaigns NAME --cases 100 --seed 0
    PYTHONPATH=tests python -m campaigns report

A case depends on seed and index only: ``--first I --cases 1`` repeats case I, ``--first I`` goes on
after an interruption. Ctrl-C ends the campaign after its current case. ``report`` writes the tables
of docs/robustness.md.
"""

from __future__ import annotations

import os

# Before torch and triton: see conftest.py.
os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ.setdefault("W2S_CUDA_EMULATE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import argparse  # noqa: E402
import contextlib  # noqa: E402
import importlib  # noqa: E402
import itertools  # noqa: E402
import signal  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
import threading  # noqa: E402
import time  # noqa: E402
from collections.abc import Iterator  # noqa: E402
from pathlib import Path  # noqa: E402

from campaigns import figures  # noqa: E402
from campaigns.outcome import Outcome  # noqa: E402

# name -> module with run(cases: Iterable[int], seed: int, folder: Path) -> Outcome
CAMPAIGNS: dict[str, str] = {
    "attribution": "campaigns.attribution",
    "kills": "campaigns.kills",
    "flips": "campaigns.flips",
    "environment": "campaigns.environment",
    "malformed": "campaigns.malformed",
    "soak": "campaigns.soak",
}


@contextlib.contextmanager
def until_signal() -> Iterator[threading.Event]:
    """Yield an event that Ctrl-C and SIGTERM set."""
    stopped = threading.Event()
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda *_: stopped.set()) for number in numbers]
    try:
        yield stopped
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def indices(
    first: int, cases: int | None, seconds: float | None, stopped: threading.Event
) -> Iterator[int]:
    """Yield the indices of the cases; none starts after ``seconds`` or when ``stopped``."""
    end = None if seconds is None else time.monotonic() + seconds
    for i in itertools.count(first) if cases is None else range(first, first + cases):
        if stopped.is_set() or (end is not None and time.monotonic() >= end):
            return
        yield i


def main(arguments: list[str] | None = None) -> int:
    """Run a campaign; return 1 if a case failed."""
    parser = argparse.ArgumentParser(prog="campaigns", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("name", choices=[*CAMPAIGNS, "report"])
    parser.add_argument("--cases", type=int, help="20, or as many as --seconds allows")
    parser.add_argument("--seconds", type=float, help="no case starts after this time")
    parser.add_argument("--first", type=int, default=0, help="index of the first case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", action="store_true", help="write the row of the campaign")
    parser.add_argument("--rows", type=Path, default=figures.ROWS, help="file of the rows")
    parser.add_argument("--check", action="store_true", help="report: fail if the page differs")
    o = parser.parse_args(arguments)
    if o.name == "report":
        equal = figures.report(rows_file=o.rows, check=o.check)
        print(f"{figures.PAGE.name}: {'current' if equal else 'differed from the rows'}")
        return int(o.check and not equal)
    try:
        facts = figures.machine() if o.record else {}
    except ValueError as e:
        print(f"campaigns: {e}", file=sys.stderr)
        return 2
    count = 20 if o.cases is None and o.seconds is None else o.cases
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="campaign-") as folder, until_signal() as stopped:
        cases = indices(o.first, count, o.seconds, stopped)
        outcome: Outcome = importlib.import_module(CAMPAIGNS[o.name]).run(
            cases, o.seed, Path(folder)
        )
    outcome.failures = [line.replace(f"{folder}/", "") for line in outcome.failures]
    seconds = time.monotonic() - start
    for kind, times in sorted(outcome.kinds.items()):
        print(f"{times:7} {kind}")
    for line in outcome.failures:
        print(f"FAILED {line}")
    print(f"{o.name}: {outcome.cases} cases, {len(outcome.failures)} failed, {seconds:.0f} s")
    if o.record:
        figures.record(figures.row(o.name, outcome, o.seed, seconds, facts), o.rows)
    return int(bool(outcome.failures))


if __name__ == "__main__":
    sys.exit(main())
