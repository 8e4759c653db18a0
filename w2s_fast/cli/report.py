"""``w2s-fast report``: print the results of a run or of files, and write their plot and page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from w2s_fast.cli.parse import asks_for_help, take_options
from w2s_fast.cli.table_options import FORMAT_OPTIONS, FORMAT_USAGE, table_format
from w2s_fast.errors import W2SError
from w2s_fast.paths import user_path

if TYPE_CHECKING:
    from w2s_fast.comparison.table_format import TableFormat

USAGE = f"""usage: w2s-fast report [--out DIR]
       w2s-fast report --from FOLDER [--out DIR] [options]

Prints the results of the run in DIR (default: out), and writes its plot and page again.

  --from FOLDER   report on predictions that others made, a file per model: weak.csv,
                  student-NAME.csv, ceiling.csv, or with a seed as in student-NAME.seed0.csv, with
                  the columns id, gold and prob (or probs, or prob_0, prob_1, ...); or any files
                  that a roles.yaml lists (docs/comparing_results.md)
  --out DIR       with --from: folder of results.json, plot and page (default: FOLDER/report)

options of --from, for files that other programs wrote:
{FORMAT_USAGE}"""


def main(args: Sequence[str]) -> int:
    """Run the command; return the exit code."""
    if asks_for_help(args):
        print(USAGE, end="")
        return 0
    own, rest = take_options(args, values=("out", "from", *FORMAT_OPTIONS))
    if rest:
        names = ", ".join(f"--{name}" for name in FORMAT_OPTIONS)
        raise W2SError(
            f"unexpected argument {rest[0]!r}; report takes only --from FOLDER, --out DIR, {names}"
        )
    if "from" not in own and (useless := [name for name in FORMAT_OPTIONS if name in own]):
        raise W2SError(f"--{useless[0]} is for the files of --from; leave it out, or name a folder")
    from w2s_fast.report.items import load_items

    if "from" in own:
        folder = user_path(own["from"], "--from")
        out = user_path(own["out"], "--out") if "out" in own else folder / "report"
        results, items = _results_of_files(folder, out, table_format(own)), None
    else:
        out = user_path(own.get("out", "out"), "--out")
        results, items = _results_of_run(out), load_items(out)
    _present(out, results, items)
    return 0


def _results_of_run(out: Path) -> dict[str, Any]:
    from w2s_fast.report import load_results
    from w2s_fast.sweeps.grid import CELLS
    from w2s_fast.sweeps.sweep_files import SWEEP

    if (out / f"{SWEEP}.json").exists():
        raise W2SError(
            f"{out} has the results of a sweep; name one of its runs: {out / CELLS}/NAME"
        )
    return load_results(out)


def _results_of_files(folder: Path, out: Path, form: TableFormat) -> dict[str, Any]:
    from w2s_fast.comparison.file_results import check_output, read_scores
    from w2s_fast.files import explain_write_errors, write_json
    from w2s_fast.report import RESULTS
    from w2s_fast.report.outcomes import write_outcomes

    check_output(out, folder)
    scores = read_scores(folder, form)
    results = scores.results()
    with explain_write_errors("the report", out.absolute()):
        out.mkdir(parents=True, exist_ok=True)
        write_outcomes(out, scores.outcomes())
        write_json(out / RESULTS, results)
    return results


def _present(out: Path, results: dict[str, Any], items: dict[str, Any] | None) -> None:
    """Write plot and page, print tables and paths."""
    from rich.console import Console

    from w2s_fast.files import explain_write_errors
    from w2s_fast.report.page import write_report
    from w2s_fast.report.terminal import print_files, print_results

    with explain_write_errors("the report", out.absolute()):
        write_report(out, results, items)
    print_results(results, Console())
    print_files(out)
