"""``w2s-fast export``: write a trained model as a folder that transformers loads."""

from __future__ import annotations

from collections.abc import Sequence

from w2s_fast.cli.parse import (
    PRINT,
    asks_for_help,
    load_config,
    print_config,
    take_options,
    take_run_options,
)
from w2s_fast.paths import user_path

USAGE = "usage: w2s-fast export --stage student/0/xent --to FOLDER [the options of the run]"


def main(args: Sequence[str]) -> int:
    """Run the command; return the exit code."""
    own, rest = take_options(args, values=("stage", "to"))
    if asks_for_help(args) or own.keys() != {"stage", "to"}:
        print(USAGE)
        return 0 if asks_for_help(args) else 2
    run_options, settings = take_run_options(rest)
    cfg = load_config(settings)
    if PRINT in run_options:
        print_config(cfg, run_options[PRINT])
        return 0
    from w2s_fast.pipeline.export import export

    folder = user_path(own["to"], "--to")
    export(cfg, own["stage"], folder, quiet="quiet" in run_options)
    print(f"model    {folder}")
    return 0
