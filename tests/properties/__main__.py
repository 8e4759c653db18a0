"""Many cases of every property: counts, and failures as minimal inputs.

    cd tests && python -m properties --cases 100000 --seed 0 --jobs 2

A failure stops nothing. Cases run in chunks; a chunk has a seed of its own, so a failure in it is
found again, and then hypothesis shrinks it. A chunk whose process dies is a failure, too.
"""

from __future__ import annotations

import os

# Before torch and triton: see conftest.py.
os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ.setdefault("W2S_CUDA_EMULATE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

import argparse  # noqa: E402
import datetime  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
from collections.abc import Iterator  # noqa: E402
from concurrent.futures import ThreadPoolExecutor  # noqa: E402

from properties import PROPERTIES  # noqa: E402
from properties.run import Found, Unit, Worker  # noqa: E402

CHUNK = 500
# Of the cases of a property; emulated and interpreted kernels take ten times as long.
SHARES = {"cpp": 0.74, "ref": 0.2, "cuda": 0.04, "triton": 0.02}
MOST = 6  # failures to shrink of a property on a backend


def units(cases: int, seed: int, names: list[str], backends: list[str]) -> Iterator[Unit]:
    """Chunks of all properties, so that each gets its share of the cases."""
    weights = {
        (name, b): PROPERTIES[name].share * SHARES[b]
        for name in names
        for b in backends
        if b in PROPERTIES[name].backends
    }
    total = sum(weights.values())
    number = 0
    for (name, backend), weight in weights.items():
        left = max(1, round(cases * weight / total))
        while left > 0:
            yield Unit(name, backend, min(left, CHUNK), 1_000_003 * seed + number)
            left -= CHUNK
            number += 1


def main(arguments: list[str] | None = None) -> int:
    """Run, print, and return 1 if anything failed."""
    parser = argparse.ArgumentParser(prog="properties", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--backends", default=",".join(SHARES))
    parser.add_argument("--properties", default=",".join(PROPERTIES))
    o = parser.parse_args(arguments)
    todo = list(units(o.cases, o.seed, o.properties.split(","), o.backends.split(",")))
    print(
        f"commit {_commit()}, {datetime.date.today()}, seed {o.seed}, {o.cases} cases", flush=True
    )
    results: dict[tuple[str, str], Found] = {}
    with ThreadPoolExecutor(o.jobs, initializer=Worker.start) as pool:
        ahead = [unit[:2] for unit in todo[1:]] + [("", "")]
        for unit, result, after in zip(todo, pool.map(Worker.examine, todo), ahead, strict=True):
            results.setdefault(unit[:2], Found()).add(result)
            if after != unit[:2]:
                print(_line(unit.name, unit.backend, results[unit[:2]]), flush=True)
        failed = [
            (kind, times, unit)
            for each in results.values()
            for kind, (times, unit, _) in list(each.failures.items())[:MOST]
        ]
        shrunk = pool.map(lambda f: Worker.shrink(f[2], f[0]), failed)
        for (kind, times, unit), (case, message) in zip(failed, shrunk, strict=True):
            print(f"\n{unit.name} on {unit.backend}: {times} x {kind}\n  {case}\n  {message}")
    cases = sum(f.cases for f in results.values())
    broken = sum(f.failed for f in results.values())
    print(f"\n{cases} cases, {broken} failed, {sum(f.seconds for f in results.values()):.0f} s")
    return 1 if broken else 0


def _line(name: str, backend: str, f: Found) -> str:
    each = 1e3 * f.seconds / max(f.cases, 1)
    return f"{name:26} {backend:7} {f.cases:7} cases {each:6.1f} ms each {f.failed:6} failed"


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    sys.exit(main())
