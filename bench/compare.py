"""``python -m bench compare NEW``: name the cases that are slower than in the committed rows.

Absolute times differ between machines, so ratios are compared: the CPU time of ours over that of
each baseline measured in the same run (eager, compile, the memory floor, ...). A case is slower if

- the median over its baselines of new ratio / old ratio exceeds 1 by more than ``--limit``, and
- the 20-80 % bands of our two measurements, scaled in the same way, do not overlap.

The median keeps a single baseline that changed, such as a new torch.compile, from deciding. The
environments of both measurements are printed. Exit status: 0, or 1 if a case is slower, or 2 if
the two measurements have no case in common.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench.harness.row_files import KEY, RESULTS, Row, key, load, number

_ENVIRONMENT = ("cpu", "isa", "os", "huge_pages", "torch", "python", "git_sha", "dirty", "quick")


@dataclass(frozen=True)
class Comparison:
    """One case of ours in both measurements.

    Attributes:
        case: Op, case, dtype, sizes, allocator, threads and provider.
        ratios: By baseline, CPU time of ours over the baseline's: (old, new).
        change: Median over the baselines of new ratio / old ratio; above 1 is slower.
        least_change: The same from the ends of the bands that are nearest to each other.
    """

    case: str
    ratios: dict[str, tuple[float, float]]
    change: float
    least_change: float

    def is_slower(self, limit: float) -> bool:
        """Return whether the case is slower by more than ``limit`` and more than the noise."""
        return self.change > 1 + limit and self.least_change > 1

    def __str__(self) -> str:
        ratios = ", ".join(f"/ {name} {a:.3g} -> {b:.3g}" for name, (a, b) in self.ratios.items())
        return f"{self.change:.2f}x  {self.case}  ({ratios})"


def compare(old: Sequence[Row], new: Sequence[Row]) -> list[Comparison]:
    """Compare every case of ours that both measurements have with a baseline in common.

    Raises:
        ValueError: There is no such case.
    """
    before, after = _by_group(old), _by_group(new)
    comparisons = [
        comparison
        for group in after
        if group in before
        for comparison in _compare_group(group, before[group], after[group])
    ]
    if not comparisons:
        raise ValueError("no case of ours is in both measurements together with a baseline")
    return comparisons


def _by_group(rows: Sequence[Row]) -> dict[tuple[object, ...], dict[str, Row]]:
    """Return the timed rows by provider, for each group of providers that are comparable."""
    groups: dict[tuple[object, ...], dict[str, Row]] = {}
    for row in rows:
        if "cpu_ms" in row:
            groups.setdefault(key(row)[:-1], {})[str(row["provider"])] = row
    return groups


def _compare_group(
    group: tuple[object, ...], old: dict[str, Row], new: dict[str, Row]
) -> Iterator[Comparison]:
    names = dict(zip(KEY, group, strict=False))
    size = "x".join(str(names[name]) for name in ("n", "d", "v") if names[name])
    common = [provider for provider in new if provider in old]
    baselines = [provider for provider in common if not provider.startswith("ours")]
    if not baselines:
        return
    for ours in (provider for provider in common if provider.startswith("ours")):
        ratios, least = {}, []
        for name in baselines:
            old_base, new_base = number(old[name], "cpu_ms"), number(new[name], "cpu_ms")
            ratios[name] = (
                number(old[ours], "cpu_ms") / old_base,
                number(new[ours], "cpu_ms") / new_base,
            )
            low, high = _band_end(new[ours], "cpu_ms_p20"), _band_end(old[ours], "cpu_ms_p80")
            least.append(low / new_base / (high / old_base))
        case = (
            f"{names['op']} {names['case']} {names['dtype']} {size} {names['allocator']} "
            f"{names['threads']} threads, {ours}"
        )
        change = median(b / a for a, b in ratios.values())
        yield Comparison(case, ratios, change, median(least))


def _band_end(row: Row, column: str) -> float:
    """Return an end of the 20-80 % band; rows of a single call have none."""
    return number(row, column if column in row else "cpu_ms")


def environment_table(old: Sequence[Row], new: Sequence[Row]) -> str:
    """Return the environments of both measurements side by side; ``*`` marks what differs."""
    lines = []
    for name in _ENVIRONMENT:
        a, b = (", ".join(sorted({str(r.get(name, "-")) for r in rows})) for rows in (old, new))
        lines.append(f"{'*' if a != b else ' '} {name:<10}  old  {a}\n{'':<14}new  {b}\n")
    return "".join(lines)


def parser() -> argparse.ArgumentParser:
    """Return the parser of ``python -m bench compare``."""
    p = argparse.ArgumentParser(
        prog="python -m bench compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("new", type=Path, help="file or folder of rows, as `bench run --out` writes")
    p.add_argument(
        "--old",
        type=Path,
        default=RESULTS / "cpu",
        help="file or folder of rows to compare with; default: the committed rows",
    )
    p.add_argument(
        "--limit", type=float, default=0.1, help="fraction that counts as slower: %(default)s"
    )
    return p


def main(args: list[str]) -> int:
    """Print environments and slower cases; see the module for the exit status."""
    options = parser().parse_args(args)
    try:
        old, new = load(options.old), load(options.new)
        comparisons = compare(old, new)
    except (OSError, ValueError) as e:
        print(f"bench compare: {e}", file=sys.stderr)
        return 2
    shared = {key(row) for row in new}
    print(environment_table([row for row in old if key(row) in shared], new))
    slower = [c for c in comparisons if c.is_slower(options.limit)]
    for c in sorted(slower, key=lambda c: -c.change):
        print(f"slower  {c}")
    print(f"{len(slower)} of {len(comparisons)} cases slower by more than {options.limit:.0%}")
    return 1 if slower else 0
