"""``python -m bench compare A B``: fail where B is slower than A beyond the noise of both."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bench.harness import results

_SAME = ("cpu", "isa", "os")


def parser() -> argparse.ArgumentParser:
    """The options of ``python -m bench compare``."""
    p = argparse.ArgumentParser(prog="python -m bench compare", description=__doc__)
    p.add_argument("a", type=Path, help="file or folder of rows: before")
    p.add_argument("b", type=Path, help="file or folder of rows: after")
    p.add_argument("--limit", type=float, default=0.05, help="fraction slower: %(default)s")
    return p


def regressions(a: list[results.Row], b: list[results.Row], limit: float = 0.05) -> list[str]:
    """One line per row of ours that got slower.

    Slower means: the least CPU time grew by more than ``limit``, and the 20-80 % bands of the two
    measurements do not touch.

    Raises:
        ValueError: if no row is in both, or two machines are compared.
    """
    before = {results.key(row): row for row in a if "skipped" not in row}
    after = [row for row in b if "skipped" not in row]
    both = [(before[results.key(row)], row) for row in after if results.key(row) in before]
    if not both:
        raise ValueError("no row is in both measurements; expected the same op, case and shape")
    found = []
    for old, new in both:
        for name in _SAME:
            if old[name] != new[name]:
                raise ValueError(
                    f"{name} is {old[name]!r} before and {new[name]!r} after; measure both on one "
                    "machine"
                )
        if not str(new["provider"]).startswith("ours"):
            continue
        slower = results.number(new, "cpu_ms") / results.number(old, "cpu_ms") - 1
        apart = results.number(new, "cpu_ms_p20") > results.number(old, "cpu_ms_p80")
        if slower > limit and apart:
            what = " ".join(str(x) for x in results.key(new))
            found.append(f"{what}: {old['cpu_ms']} -> {new['cpu_ms']} CPU ms ({slower:+.1%})")
    return found


def main(args: list[str]) -> int:
    """Print the regressions; exit code 1 if there are any, 2 for input that cannot be compared."""
    options = parser().parse_args(args)
    try:
        found = regressions(results.load(options.a), results.load(options.b), options.limit)
    except (OSError, ValueError) as e:
        print(f"bench compare: {e}", file=sys.stderr)
        return 2
    for line in found:
        print(line)
    print(f"{len(found)} regression(s)")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
