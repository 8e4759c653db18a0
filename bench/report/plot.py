"""``python -m bench plot``: the pictures of docs/speed.md, drawn from the committed rows.

The same rows and the same matplotlib give the same files.
"""

from __future__ import annotations

import argparse
import io
import math
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from bench.harness import results
from bench.harness.environment import ROOT
from bench.report import tables
from bench.report.write import quotable
from w2s_fast.ops.cross_entropy import api as cross_entropy
from w2s_fast.ops.fused_linear import cross_entropy as linear_cross_entropy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_STYLE = {
    "font.size": 10,
    "font.family": "DejaVu Sans",
    "axes.edgecolor": "#c8cdd5",
    "axes.labelcolor": "#3f4754",
    "xtick.color": "#5c6573",
    "ytick.color": "#2b303a",
    "svg.hashsalt": "w2s_fast",
    "svg.fonttype": "path",
}
_OURS, _OTHER, _LINE = "#2f6fdb", "#9aa3b2", "#3f4754"
_COLORS = {"ours": _OURS, "ours_inplace": "#0b3f9c", "eager": "#d0743c", "compile": "#4b9b6e"}
_NAMES = {"ours": "ours", "ours_inplace": "ours in place", "eager": "eager", "compile": "compile"}
_ASIDE = {"ours": 1.0, "ours_inplace": 0.93, "eager": 1.08, "compile": 1.16}  # not over each other
_MARKS = {"cross_entropy": "o", "linear_cross_entropy": "s"}
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_SHORT = {
    "hard": "hard labels", "topk": "top-8 labels", "dense": "dense labels",
    "logconf_hard": "confidence loss, hard", "logconf_topk": "confidence loss, top-8",
}  # fmt: skip


_MEMORY_CASES = ("hard", "dense", "logconf_topk")  # one of each form of target


def head_memory(ax: Axes, table: tables.Table) -> None:
    """Bars: peak memory over inputs of every provider, per loss; every row is in the table."""
    op, y, ticks = "linear_cross_entropy", 0.0, []
    for case, dtype, n, v, d in table.of(op):
        if case not in _MEMORY_CASES or dtype != "bf16":
            continue
        found = [r for r in table.rows if r["op"] == op and "peak_mib" in r]
        found = [r for r in found if tables.group_of(r) == (case, dtype, n, v, d)]
        if not found:
            continue
        title = f"{_SHORT[case]}, {dtype}, {n} x {d} x {v}"
        ax.annotate(
            title, (0, y), xytext=(2, -3), textcoords="offset points", size=9, weight="bold"
        )
        for r in sorted(found, key=lambda r: results.number(r, "peak_mib")):
            y -= 1
            who, peak = str(r["provider"]), results.number(r, "peak_mib")
            ax.barh(y, peak, 0.75, color=_OURS if who == "ours" else _OTHER)
            ax.annotate(
                f"{peak:.0f}", (peak, y), xytext=(3, -3.5), textcoords="offset points", size=8.5
            )
            ticks.append((y, who))
        y -= 1.5
    ax.set_yticks([t[0] for t in ticks], [t[1] for t in ticks], size=8.5)
    ax.set_ylim(y + 0.7, 1.0)
    ax.get_figure().set_figheight(1.0 + 0.24 * -y)
    ax.margins(x=0.1)
    ax.set_xlabel("peak memory of forward and backward over inputs, MiB")
    ax.grid(axis="x", color="#e6e9ee", lw=0.8)
    ax.tick_params(axis="y", length=0)


def roofline(ax: Axes, table: tables.Table) -> None:
    """Achieved GFLOP/s a core over arithmetic intensity, under the measured ceilings."""
    bandwidth, compute = _ceilings(table)
    for dtype, most in compute.items():
        x = (0.8, most / bandwidth, 4000.0)
        ax.plot(x, [min(bandwidth * i, most) for i in x], color=_LINE, lw=1.2, zorder=1)
        ax.annotate(
            f"products in {dtype}: {most:.0f} GFLOP/s", (x[-1], most), ha="right", va="bottom",
            size=8.5, color=_LINE, xytext=(0, 2), textcoords="offset points",
        )  # fmt: skip
    ax.text(
        0.88, 1.1 * bandwidth, f"in-place scale: {bandwidth:.0f} GB/s", size=8.5, color=_LINE,
        rotation=math.degrees(math.atan(bandwidth)), rotation_mode="anchor",
        transform_rotates_text=True,
    )  # fmt: skip
    for (op, who, dtype, at), speeds in _speeds(table).items():
        label = f"{'head' if op == 'linear_cross_entropy' else 'loss'}, {_NAMES[who]}"
        known = ax.get_legend_handles_labels()[1]
        x, color = at * _ASIDE[who], _COLORS[who]
        ax.plot([x, x], [min(speeds), max(speeds)], color=color, lw=1.6, alpha=0.5, zorder=2)
        ax.scatter(
            [x], [statistics.median(speeds)], s=34, marker=_MARKS[op], zorder=3, edgecolor=color,
            facecolor=color if dtype == "bf16" else "white",
            label=None if label in known or dtype == "fp32" else label,
        )  # fmt: skip
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel("operations a byte of least traffic (filled: bf16, hollow: fp32)")
    ax.set_ylabel("GFLOP/s a core, by CPU time")
    ax.legend(fontsize=8, frameon=False, loc="lower right", ncols=2)
    ax.grid(color="#eef0f4", lw=0.8, which="major")


def _speeds(table: tables.Table) -> dict[tuple[str, str, str, float], list[float]]:
    """(op, provider, dtype, operations a byte) -> GFLOP/s a core of every loss measured."""
    best: dict[tuple[object, ...], results.Row] = {}
    for r in table.rows:
        if r["op"] in _MARKS and r["provider"] in _COLORS:
            what = (*tables.group_of(r), r["op"], r["provider"])
            # Recycled pages where measured: what the machine, not the C library, allows.
            if r["allocator"] == "recycled" or what not in best:
                best[what] = r
    found: dict[tuple[str, str, str, float], list[float]] = {}
    for r in best.values():
        op, n, v = str(r["op"]), int(results.number(r, "n")), int(results.number(r, "v"))
        dtype = _DTYPES[str(r["dtype"])]
        if op == "cross_entropy":
            cost = cross_entropy.cost(n, v, dtype)
        else:
            cost = linear_cross_entropy.cost(n, v, dtype, int(results.number(r, "d")))
        at = round(cost.flops / cost.bytes, 6)
        speed = cost.flops / results.number(r, "cpu_ms") / 1e6
        found.setdefault((op, str(r["provider"]), str(r["dtype"]), at), []).append(speed)
    return found


def _ceilings(table: tables.Table) -> tuple[float, dict[str, float]]:
    """GB/s of the scale, and per dtype GFLOP/s of the products, a core; the best of the rows."""
    bandwidth, compute = 0.0, {}
    for r in table.rows:
        if r["provider"] not in ("floor_write", "gemms"):
            continue
        dtype = str(r["dtype"])
        n, v, ns = results.number(r, "n"), results.number(r, "v"), results.number(r, "cpu_ms") * 1e6
        if r["provider"] == "floor_write":
            bandwidth = max(bandwidth, 2 * n * v * _DTYPES[dtype].itemsize / ns)
        elif r["provider"] == "gemms":
            compute[dtype] = max(compute.get(dtype, 0.0), 6 * n * v * results.number(r, "d") / ns)
    return bandwidth, compute


def quantile(ax: Axes, table: tables.Table) -> None:
    """CPU time of the median over N."""
    names = {
        "sort": "#4b9b6e", "torch_quantile": "#d0743c", "kthvalue": "#8a63c4", "ours": _OURS,
        "floor_read": _LINE,
    }  # fmt: skip
    for who, color in names.items():
        found = [
            (results.number(r, "n"), results.number(r, "cpu_ms"))
            for r in table.rows
            if r["op"] == "quantile" and r["provider"] == who and r["allocator"] == "recycled"
        ]
        found.sort()
        if not found:
            continue
        x, y = zip(*found, strict=True)
        label = {"floor_read": "one read of the scores", "torch_quantile": "torch.quantile"}
        ax.plot(
            x, y, color=color, marker="o", ms=4, label=label.get(who, who),
            lw=5 if who == "sort" else 1.8, alpha=0.5 if who == "sort" else 1,
            ls="--" if who == "floor_read" else "-",
        )  # fmt: skip
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel("scores")
    ax.set_ylabel("CPU ms, recycled pages")
    ax.legend(fontsize=8.5, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    ax.grid(color="#eef0f4", lw=0.8, which="major")


# name -> what draws it, its title, and its size in inches
PLOTS: dict[str, tuple[Callable[[Axes, tables.Table], None], str, tuple[float, float]]] = {
    "head_memory": (head_memory, "The fused head: peak memory", (7.6, 8.6)),
    "roofline": (roofline, "Large vocabularies and heads against the machine", (7.6, 4.6)),
    "quantile": (quantile, "The exact median", (7.6, 3.8)),
}


def render(name: str, table: tables.Table, kind: str = "svg") -> bytes:
    """One plot as "svg" or "png" bytes."""
    import matplotlib
    from matplotlib.figure import Figure

    draw, title, size = PLOTS[name]
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained", dpi=110)
        figure.patch.set_facecolor("white")
        ax = figure.subplots()
        draw(ax, table)
        ax.set_title(title, loc="left", weight="bold", size=11.5, color="#1d2129")
        ax.spines[["top", "right"]].set_visible(False)
        ax.set_axisbelow(True)
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, metadata={"Date": None} if kind == "svg" else None)
    if kind != "svg":
        return buffer.getvalue()
    # Trailing spaces of the writer would not pass the repository's own checks.
    return b"".join(line.rstrip() + b"\n" for line in buffer.getvalue().splitlines())


def main(args: list[str]) -> int:
    """Write every plot; exit code 2 if the rows may not be quoted."""
    p = argparse.ArgumentParser(prog="python -m bench plot", description=__doc__.splitlines()[0])
    p.add_argument("--results", type=Path, default=results.RESULTS / "cpu", help="%(default)s")
    p.add_argument("--out", type=Path, default=ROOT / "docs" / "img", help="%(default)s")
    p.add_argument("--kind", choices=("svg", "png"), default="svg", help="%(default)s")
    options = p.parse_args(args)
    try:
        table = tables.Table(quotable(results.load(options.results)))
    except (OSError, ValueError) as e:
        print(f"bench plot: {e}", file=sys.stderr)
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    for name in PLOTS:
        path = options.out / f"{name}.{options.kind}"
        path.write_bytes(render(name, table, options.kind))
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
