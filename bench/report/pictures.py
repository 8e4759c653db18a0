"""``python -m bench plot``: draw the pictures of the documents from the committed rows.

The same rows and the same matplotlib give the same files.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from bench.cases import w2s
from bench.evidence.figure import evidence_figure
from bench.harness.environment import ROOT
from bench.harness.row_files import RESULTS, Row, load, number
from bench.report.documents import quotable
from bench.report.measured_rows import MeasuredRows, shape_of
from w2s_fast.ops.cross_entropy import api as cross_entropy
from w2s_fast.ops.fused_linear import cross_entropy as linear_cross_entropy
from w2s_fast.report.figure import render
from w2s_fast.sweeps.sweep_figure import sweep_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SWEEP = RESULTS / "sweep.json"
_OURS, _OTHER, _LINE = "#2f6fdb", "#9aa3b2", "#3f4754"
_COLORS = {"ours": _OURS, "ours_inplace": "#0b3f9c", "eager": "#d0743c", "compile": "#4b9b6e"}
_NAMES = {"ours": "ours", "ours_inplace": "ours in place", "eager": "eager", "compile": "compile"}
_SHIFT = {"ours": 1.0, "ours_inplace": 0.93, "eager": 1.08, "compile": 1.16}  # side by side
_MARKERS = {"cross_entropy": "o", "linear_cross_entropy": "s"}
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_MEMORY_CASES = {  # one of each form of target; docs/speed_tables.md has a table of all rows
    "hard": "hard labels", "dense": "dense labels", "logconf_topk": "confidence loss, top-8",
}  # fmt: skip
_QUANTILES = {  # provider -> colour, label
    "sort": ("#4b9b6e", "sort"),
    "torch_quantile": ("#d0743c", "torch.quantile"),
    "kthvalue": ("#8a63c4", "kthvalue"),
    "ours": (_OURS, "ours"),
    "floor_read": (_LINE, "one read of the scores"),
}


def draw_head_memory(ax: Axes, rows: MeasuredRows) -> None:
    """Draw bars of the peak memory of every provider, by loss."""
    op, y, ticks = "linear_cross_entropy", 0.0, []
    for shape in rows.shapes(op):
        case, dtype, n, v, d = shape
        measured = [r for r in rows.rows if r["op"] == op and "peak_mib" in r]
        measured = [r for r in measured if shape_of(r) == shape]
        if case not in _MEMORY_CASES or dtype != "bf16" or not measured:
            continue
        title = f"{_MEMORY_CASES[case]}, {dtype}, {n} x {d} x {v}"
        ax.annotate(
            title, (0, y), xytext=(2, -3), textcoords="offset points", size=9, weight="bold"
        )
        for r in sorted(measured, key=lambda r: number(r, "peak_mib")):
            y -= 1
            provider, peak = str(r["provider"]), number(r, "peak_mib")
            ax.barh(y, peak, 0.75, color=_OURS if provider == "ours" else _OTHER)
            ax.annotate(
                f"{peak:.0f}", (peak, y), xytext=(3, -3.5), textcoords="offset points", size=8.5
            )
            ticks.append((y, provider))
        y -= 1.5
    ax.set_yticks([t[0] for t in ticks], [t[1] for t in ticks], size=8.5)
    ax.set_ylim(y + 0.7, 1.0)
    ax.get_figure().set_figheight(1.0 + 0.24 * -y)
    ax.margins(x=0.1)
    ax.set_xlabel("peak memory of forward and backward beyond the inputs, MiB")
    ax.grid(axis="x", color="#e6e9ee", lw=0.8)
    ax.tick_params(axis="y", length=0)


def draw_roofline(ax: Axes, rows: MeasuredRows) -> None:
    """Draw GFLOP/s per core against arithmetic intensity, under the measured ceilings."""
    bandwidth, compute = _ceilings(rows)
    for dtype, ceiling in compute.items():
        x = (0.8, ceiling / bandwidth, 4000.0)
        ax.plot(x, [min(bandwidth * i, ceiling) for i in x], color=_LINE, lw=1.2, zorder=1)
        ax.annotate(
            f"products in {dtype}: {ceiling:.0f} GFLOP/s", (x[-1], ceiling), ha="right",
            va="bottom", size=8.5, color=_LINE, xytext=(0, 2), textcoords="offset points",
        )  # fmt: skip
    x, y = 0.88, 1.1 * bandwidth  # a little above the line; on log axes, parallel to it
    ax.text(
        x, y, f"in-place scale: {bandwidth:.0f} GB/s", size=8.5, color=_LINE,
        rotation=math.degrees(math.atan(y / x)), rotation_mode="anchor",
        transform_rotates_text=True,
    )  # fmt: skip
    for (op, provider, dtype, intensity), speeds in _speeds(rows).items():
        label = f"{'head' if op == 'linear_cross_entropy' else 'loss'}, {_NAMES[provider]}"
        in_legend = label in ax.get_legend_handles_labels()[1]
        x, color = intensity * _SHIFT[provider], _COLORS[provider]
        ax.plot([x, x], [min(speeds), max(speeds)], color=color, lw=1.6, alpha=0.5, zorder=2)
        ax.scatter(
            [x], [statistics.median(speeds)], s=34, marker=_MARKERS[op], zorder=3, edgecolor=color,
            facecolor=color if dtype == "bf16" else "white",
            label=None if in_legend or dtype == "fp32" else label,
        )  # fmt: skip
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel("operations per byte of minimal traffic (filled: bf16, hollow: fp32)")
    ax.set_ylabel("GFLOP/s per core, by CPU time")
    ax.legend(fontsize=8, frameon=False, loc="lower right", ncols=2)
    ax.grid(color="#eef0f4", lw=0.8, which="major")


def _speeds(rows: MeasuredRows) -> dict[tuple[str, str, str, float], list[float]]:
    """Return (op, provider, dtype, operations per byte) -> GFLOP/s per core of every loss."""
    chosen: dict[tuple[object, ...], Row] = {}
    for r in rows.rows:
        if r["op"] in _MARKERS and r["provider"] in _COLORS:
            key = (*shape_of(r), r["op"], r["provider"])
            # Prefer recycled pages: they show the machine's limit, not the C library's.
            if r["allocator"] == "recycled" or key not in chosen:
                chosen[key] = r
    speeds: dict[tuple[str, str, str, float], list[float]] = {}
    for r in chosen.values():
        op, n, v = str(r["op"]), int(number(r, "n")), int(number(r, "v"))
        dtype = _DTYPES[str(r["dtype"])]
        if op == "cross_entropy":
            cost = cross_entropy.cost(n, v, dtype)
        else:
            cost = linear_cross_entropy.cost(n, v, dtype, int(number(r, "d")))
        intensity = round(cost.flops / cost.bytes, 6)
        key = (op, str(r["provider"]), str(r["dtype"]), intensity)
        speeds.setdefault(key, []).append(cost.flops / number(r, "cpu_ms") / 1e6)
    return speeds


def _ceilings(rows: MeasuredRows) -> tuple[float, dict[str, float]]:
    """Return the best GB/s of the scale, and by dtype the best GFLOP/s per core of products."""
    bandwidth, compute = 0.0, {}
    for r in rows.rows:
        if r["provider"] not in ("floor_write", "gemms"):
            continue
        dtype, n, v = str(r["dtype"]), number(r, "n"), number(r, "v")
        ns = number(r, "cpu_ms") * 1e6
        if r["provider"] == "floor_write":
            bandwidth = max(bandwidth, 2 * n * v * _DTYPES[dtype].itemsize / ns)
        else:
            compute[dtype] = max(compute.get(dtype, 0.0), 6 * n * v * number(r, "d") / ns)
    return bandwidth, compute


def draw_quantile(ax: Axes, rows: MeasuredRows) -> None:
    """Draw the CPU time of the median over N."""
    for provider, (color, label) in _QUANTILES.items():
        points = sorted(
            (number(r, "n"), number(r, "cpu_ms"))
            for r in rows.rows
            if r["op"] == "quantile" and r["provider"] == provider and r["allocator"] == "recycled"
        )
        if not points:
            continue
        x, y = zip(*points, strict=True)
        wide = provider == "sort"
        ax.plot(
            x, y, color=color, marker="o", ms=4, label=label, lw=5 if wide else 1.8,
            alpha=0.5 if wide else 1, ls="--" if provider == "floor_read" else "-",
        )  # fmt: skip
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel("scores")
    ax.set_ylabel("CPU ms, recycled pages")
    ax.legend(fontsize=8.5, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    ax.grid(color="#eef0f4", lw=0.8, which="major")


# picture of docs/speed_tables.md -> what draws it, its title, its size in inches
SPEED_PICTURES: dict[str, tuple[Callable[[Axes, MeasuredRows], None], str, tuple[float, float]]] = {
    "head_memory": (draw_head_memory, "The fused head: peak memory", (7.6, 8.6)),
    "roofline": (
        draw_roofline,
        "Large vocabularies and heads against the machine",
        (7.6, 4.6),
    ),
    "quantile": (draw_quantile, "The exact median", (7.6, 3.8)),
}


def speed_picture(name: str, rows: MeasuredRows, kind: str) -> bytes:
    """Return a picture of docs/speed_tables.md as "svg" or "png" bytes."""
    draw, title, size = SPEED_PICTURES[name]

    def paint(figure: Figure) -> None:
        ax = figure.subplots()
        draw(ax, rows)
        ax.set_title(title, loc="left", weight="bold", size=11.5, color="#1d2129")
        ax.spines[["top", "right"]].set_visible(False)
        ax.set_axisbelow(True)

    return render(paint, size, kind)


def all_pictures(rows: MeasuredRows, kind: str) -> dict[str, bytes]:
    """Return every committed picture by name."""
    pictures = {name: speed_picture(name, rows, kind) for name in SPEED_PICTURES}
    for path in sorted(w2s.FOLDER.glob("*.json")):
        pictures[f"w2s-{path.stem}"] = w2s.figure(json.loads(path.read_text()), kind)
    pictures["evidence"] = evidence_figure(kind=kind)
    return pictures | {"sweep": sweep_figure(json.loads(SWEEP.read_text()), kind)}


def main(args: list[str]) -> int:
    """Write every picture; exit code 2 if the rows may not be quoted."""
    p = argparse.ArgumentParser(prog="python -m bench plot", description=__doc__.splitlines()[0])
    p.add_argument("--results", type=Path, default=RESULTS / "cpu", help="%(default)s")
    p.add_argument("--out", type=Path, default=ROOT / "docs" / "img", help="%(default)s")
    p.add_argument("--kind", choices=("svg", "png"), default="svg", help="%(default)s")
    options = p.parse_args(args)
    try:
        rows = MeasuredRows(quotable(load(options.results)))
    except (OSError, ValueError) as e:
        print(f"bench plot: {e}", file=sys.stderr)
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    for name, picture in all_pictures(rows, options.kind).items():
        path = options.out / f"{name}.{options.kind}"
        path.write_bytes(picture)
        print(path)
    return 0
