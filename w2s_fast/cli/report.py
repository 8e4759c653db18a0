"""``w2s-fast report``: print the results of an earlier run, and write its plot and page again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from w2s_fast.cli.parse import asks_for_help, take_options
from w2s_fast.errors import W2SError
from w2s_fast.paths import user_path


def main(args: Sequence[str]) -> int:
    """Run the command; return the exit code."""
    if asks_for_help(args):
        print("usage: w2s-fast report [--out DIR]   (default: out)")
        return 0
    own, rest = take_options(args, values=("out",))
    if rest:
        raise W2SError(f"unexpected argument {rest[0]!r}; report takes only --out DIR")
    from rich.console import Console

    from w2s_fast.files import explain_write_errors
    from w2s_fast.report import load_results
    from w2s_fast.report.items import load_items
    from w2s_fast.report.page import write_report
    from w2s_fast.report.terminal import print_files, print_results

    out = user_path(own.get("out", "out"), "--out")
    _check_not_a_sweep(out)
    results, items = load_results(out), load_items(out)
    with explain_write_errors("the report", out.absolute()):
        write_report(out, results, items)
    print_results(results, Console())
    print_files(out)
    return 0


def _check_not_a_sweep(out: Path) -> None:
    from w2s_fast.sweeps.grid import CELLS
    from w2s_fast.sweeps.sweep_files import SWEEP

    if (out / f"{SWEEP}.json").exists():
        raise W2SError(
            f"{out} has the results of a sweep; name one of its runs: {out / CELLS}/NAME"
        )
