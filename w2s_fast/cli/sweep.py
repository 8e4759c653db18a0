"""``w2s-fast sweep``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from w2s_fast.sweeps.sweep_config import SweepConfig

SOME_FAILED = 1


def main(args: Sequence[str]) -> int:
    """Run the command; the exit code is 1 when a cell failed."""
    from w2s_fast.cli.parse import load, make_parser

    if {"-h", "--help"} & set(args):
        print(make_parser("w2s-fast sweep", SweepConfig, "[--dry-run] ").format_help())
        return 0
    flags = {"--quiet", "--print-config", "--dry-run"}
    given = {a.replace("_", "-") for a in args} & flags
    cfg = load(SweepConfig, [a for a in args if a.replace("_", "-") not in flags])
    if "--print-config" in given:
        from w2s_fast.config import to_yaml

        print(to_yaml(cfg), end="")
        return 0
    return _plan(cfg) if "--dry-run" in given else _sweep(cfg, "--quiet" in given)


def _plan(cfg: SweepConfig) -> int:
    """Say what would be computed."""
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
    return 0


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
    lost = len(results["failed"])
    print(
        f"{lost} of {lost + len(results['cells'])} cells failed; the same command tries them again"
    )
    return SOME_FAILED
