"""Short tables of docs/speed.md: a few rows of each op, the same as in docs/speed_tables.md."""

from __future__ import annotations

from collections.abc import Sequence

from bench.harness.row_files import Row, number
from bench.report.measured_rows import TITLES, MeasuredRows, Shape, cell, markdown, short

_LOSSES = ("logconf_hard", "logconf_topk", "hard")
_LOSS_SIZE = (4096, 32000)
_HEADS = ("logconf_hard", "hard")


def losses(rows: MeasuredRows) -> str:
    """Return the times of the losses of logits, in place, against eager, compile and the floor."""
    op, lines = "cross_entropy", []
    for s in rows.shapes(op):
        if s.case in _LOSSES and (s.n, s.v) == _LOSS_SIZE:
            lines.append([
                TITLES[s.case], s.dtype,
                rows.pair(op, s, "ours_inplace", "cpu_ms"),
                rows.ratio(op, s, "eager", "ours_inplace"),
                rows.ratio(op, s, "compile", "ours_inplace"),
                rows.pair(op, s, "ours_inplace", "floor_ratio"),
            ])  # fmt: skip
    head = ["loss", "dtype", "ours, CPU ms", "eager / ours", "compile / ours", "ours / floor"]
    return markdown(head, lines, 2)


def heads(rows: MeasuredRows) -> str:
    """Return time and memory of a head with its loss, against eager and compile."""
    op, lines = "linear_cross_entropy", []
    for s in rows.shapes(op):
        if s.case not in _HEADS:
            continue
        peaks = [rows.find(op, s, "stock", p) for p in ("eager", "compile", "ours")]
        lines.append([
            TITLES[s.case], s.dtype, f"{s.n} x {s.d} x {s.v}",
            rows.ratio(op, s, "eager", "ours"), rows.ratio(op, s, "compile", "ours"),
            " / ".join(cell(r, "peak_mib", ".0f") for r in peaks),
        ])  # fmt: skip
    head = [
        "loss of a head", "dtype", "N x D x V", "eager / ours", "compile / ours",
        "peak MiB, eager / compile / ours",
    ]  # fmt: skip
    return markdown(head, lines, 3)


def others(rows: MeasuredRows) -> str:
    """Return one comparison of each other op: the largest shape that was measured."""
    lines = [
        _against(rows, "logprob_entropy", "TRL", "trl", "log-probabilities with entropy"),
        _against(rows, "info_nce", "eager PyTorch", "eager", "InfoNCE"),
        _against(
            rows, "info_nce", "sentence-transformers", "sentence_transformers", "InfoNCE"
        ),
        _stock(rows, "two_class", "eager PyTorch", "eager", "confidence loss, two classes"),
        _stock(rows, "quantile", "`torch.sort`", "sort", "exact quantile"),
        _heads_line(rows),
    ]  # fmt: skip
    head = ["what", "against", "dtype", "size", "their CPU time / ours", "peak MiB, theirs / ours"]
    return markdown(head, [line for line in lines if line], 4)


def _size(r: Row) -> str:
    return " x ".join(str(r[name]) for name in ("n", "d", "v") if r.get(name))


def _against(
    rows: MeasuredRows, op: str, name: str, provider: str, title: str
) -> Sequence[str] | None:
    """Return the line of an op whose rows have ``ratio_to_ours``, in bf16."""
    own = {_size(r): r for r in rows.of(op) if (r["dtype"], r["provider"]) == ("bf16", "ours")}
    theirs = [r for r in rows.of(op) if (r["dtype"], r["provider"]) == ("bf16", provider)]
    if not theirs:
        return None
    r = max(theirs, key=lambda r: number(r, "n"))
    peaks = f"{cell(r, 'peak_mib', '.0f')} / {cell(own[_size(r)], 'peak_mib', '.0f')}"
    return [title, name, "bf16", _size(r), short(number(r, "ratio_to_ours")), peaks]


def _stock(rows: MeasuredRows, op: str, name: str, provider: str, title: str) -> list[str] | None:
    """Return the line of an op that was measured under two allocators."""
    shapes: list[Shape] = [s for s in rows.shapes(op) if rows.find(op, s, "stock", provider)]
    if not shapes:
        return None
    s = max(shapes, key=lambda s: s.n)
    size = f"{s.n:,} x {s.v}" if s.v > 1 else f"{s.n:,}"
    return [title, name, s.dtype, size, rows.ratio(op, s, provider, "ours"), "-"]


def _heads_line(rows: MeasuredRows) -> list[str] | None:
    found = [r for r in rows.of("heads") if (r["case"], r["provider"]) == ("epoch", "loop")]
    if not found:
        return None
    r = max(found, key=lambda r: number(r, "d"))
    title = f"{number(r, 'losses'):.0f} losses on cached features, one epoch"
    return [title, "a training each", str(r["dtype"]), f"{r['n']} x {r['d']}",
            short(number(r, "ratio_to_ours")), "-"]  # fmt: skip
