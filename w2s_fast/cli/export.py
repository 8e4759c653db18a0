"""``w2s-fast export``: write a trained model as a folder that transformers loads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from w2s_fast.cli.parse import asks_for_help, load_config, take_options

USAGE = "usage: w2s-fast export --stage student/0/xent --to FOLDER [the options of the run]"


def main(args: Sequence[str]) -> int:
    """Run the command; return the exit code."""
    own, rest = take_options(args, values=("stage", "to"))
    if asks_for_help(args) or own.keys() != {"stage", "to"}:
        print(USAGE)
        return 0 if asks_for_help(args) else 2
    from w2s_fast.pipeline.export import export

    export(load_config(rest), own["stage"], Path(own["to"]))
    print(f"model    {own['to']}")
    return 0
