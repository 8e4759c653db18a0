"""``w2s-fast sweep``: run many experiments as one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from w2s_fast.cli.parse import (
    PRINT,
    asks_for_help,
    load,
    make_parser,
    print_config,
    take_run_options,
)
from w2s_fast.sweeps.sweep_config import SweepConfig

SOME_FAILED = 1


def main(args: Sequence[str]) -> int:
    """Run the command; the exit code is 1 if a cell failed."""
    if asks_for_help(args):
        print(make_parser("w2s-fast sweep", SweepConfig, "[--dry-run] ").format_help())
        return 0
    own, rest = take_run_options(args, flags=("dry-run",))
    cfg = load(SweepConfig, rest)
    if PRINT in own:
        print_config(cfg, own[PRINT])
        return 0
    if "dry-run" in own:
        _print_plan(cfg)
        return 0
    return _sweep(cfg, quiet="quiet" in own)


def _print_plan(cfg: SweepConfig) -> None:
    """Print the cells, and how many stages they share."""
    from w2s_fast.sweeps.run_sweep import prepare

    cells, graph = prepare(cfg)
    width = max(len(cell.name) for cell in cells)
    for cell in cells:
        keys = graph.keys[cell.name].values()
        own = sum(graph.nodes[key].cell is cell for key in keys)
        shared = f", {len(keys) - own} shared with cells above" if own < len(keys) else ""
        print(f"{cell.name:<{width}}  {len(keys)} stages{shared}")
    sizes = f"{len(cells)} cells of {len(cfg.run.seeds)} seeds"
    print(f"\n{sizes}: {len(graph.nodes)} different stages, {graph.total} without sharing")


def _sweep(cfg: SweepConfig, quiet: bool) -> int:
    from rich.console import Console

    from w2s_fast.sweeps.run_sweep import sweep
    from w2s_fast.sweeps.sweep_files import SWEEP
    from w2s_fast.sweeps.sweep_tables import print_sweep

    results = sweep(cfg, quiet=quiet)
    print_sweep(results, Console())
    out = Path(cfg.output_dir)
    kinds = ("json", "csv", "png") if results["cells"] else ("json",)
    print("\n" + "\n".join(f"{kind:<8} {out / SWEEP}.{kind}" for kind in kinds))
    if not results["failed"]:
        return 0
    failed = len(results["failed"])
    total = failed + len(results["cells"])
    print(f"{failed} of {total} cells failed; the same command tries them again")
    return SOME_FAILED
