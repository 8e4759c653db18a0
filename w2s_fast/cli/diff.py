"""``w2s-fast diff``: print what differs between two runs."""

from __future__ import annotations

from collections.abc import Sequence

from w2s_fast.cli.parse import asks_for_help, take_options
from w2s_fast.errors import W2SError
from w2s_fast.paths import user_path

USAGE = """usage: w2s-fast diff A B [--json]

Compares two runs, each the folder of a run or its results.json: settings, versions and machine,
accuracies and PGRs, paired differences over the seeds whose test items are the same, and the stages
that are not the same. Folders of results and cache are no difference.

  --json   print everything as JSON

The exit code is 0 if settings, results and stages are equal, 1 if not, and 2 after an error.
"""
DIFFER = 1


def main(args: Sequence[str]) -> int:
    """Run the command; return the exit code."""
    if asks_for_help(args):
        print(USAGE, end="")
        return 0
    own, paths = take_options(args, flags=("json",))
    if len(paths) != 2 or any(path.startswith("--") for path in paths):
        raise W2SError(f"diff takes two runs and --json; found {' '.join(paths) or 'none'}")
    import json

    from rich.console import Console

    from w2s_fast.comparison.diff_tables import print_diff
    from w2s_fast.comparison.run_diff import diff_runs
    from w2s_fast.comparison.run_scores import load_outcomes, load_run

    first, second = (user_path(path, name) for path, name in zip(paths, "AB", strict=True))
    a, b = load_run(first, "A"), load_run(second, "B")
    diff = diff_runs(a, b, (load_outcomes(first, a), load_outcomes(second, b)))
    if "json" in own:
        print(json.dumps(diff, indent=2))
    else:
        print_diff(diff, Console())
    return 0 if diff["equal"] else DIFFER
