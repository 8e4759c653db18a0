"""``w2s-fast label``: compute only the weak labels."""

from __future__ import annotations

from collections.abc import Sequence

from w2s_fast.cli.parse import (
    PRINT,
    asks_for_help,
    load_config,
    make_parser,
    print_config,
    take_run_options,
)


def main(args: Sequence[str]) -> int:
    """Run the command; return the exit code."""
    if asks_for_help(args):
        print(make_parser("w2s-fast label").format_help())
        return 0
    own, rest = take_run_options(args)
    cfg = load_config(rest)
    if PRINT in own:
        print_config(cfg, own[PRINT])
        return 0
    from w2s_fast.distributed.world import get_world
    from w2s_fast.pipeline import label

    for seed, folder in label(cfg, quiet="quiet" in own).items():
        if get_world().is_main_process:
            print(f"seed {seed}: {folder}")
    return 0
