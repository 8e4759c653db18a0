"""``w2s-fast run``: run the whole experiment, print its tables, write plot and page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from w2s_fast.cli.parse import (
    PRINT,
    asks_for_help,
    load_config,
    make_parser,
    print_config,
    take_run_options,
)
from w2s_fast.config import RunConfig


def main(args: Sequence[str]) -> int:
    """Run the command; return the exit code."""
    if asks_for_help(args):
        print(make_parser(flags="[--dry-run] ").format_help())
        return 0
    own, rest = take_run_options(args, flags=("dry-run",))
    cfg = load_config(rest)
    if PRINT in own:
        print_config(cfg, own[PRINT])
        return 0
    if "dry-run" in own:
        _print_plan(cfg)
        return 0
    return _run(cfg, quiet="quiet" in own)


def _print_plan(cfg: RunConfig) -> None:
    """Print the stages, which of them are stored, and the expected time of the others."""
    from rich.console import Console

    from w2s_fast.pipeline.forecast import forecast
    from w2s_fast.report.forecast_table import print_forecast

    plan = forecast(cfg)
    print_forecast(plan.stages, plan.seconds, plan.workers, Console())


def _run(cfg: RunConfig, quiet: bool) -> int:
    from rich.console import Console

    from w2s_fast.distributed.world import get_world
    from w2s_fast.pipeline import run
    from w2s_fast.report.terminal import print_files, print_results

    results = run(cfg, quiet=quiet)
    if get_world().is_main_process:
        print_results(results, Console())
        print_files(Path(cfg.output_dir))
    return 1 if results["failed"] else 0
