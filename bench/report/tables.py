"""Markdown tables made of measured rows. CPU time unless a column says wall."""

from __future__ import annotations

from collections.abc import Sequence

from bench.cases.quantile import TORCH_LIMIT
from bench.harness import results

_TITLES = {
    "logconf_hard": "confidence loss, hard weak labels",
    "logconf_topk": "confidence loss, top-8 weak labels",
    "logconf_dense": "confidence loss, dense weak labels",
    "hard": "cross-entropy, hard labels",
    "topk": "cross-entropy, top-8 labels",
    "dense": "cross-entropy, dense labels",
}
_ALLOCATORS = ("stock", "recycled")
_README_SHAPE = (4096, 32000)


class Table:
    """Rows by what they measure."""

    def __init__(self, found: list[results.Row]) -> None:
        self.rows = [r for r in found if "skipped" not in r]
        self.skipped = [r for r in found if "skipped" in r]

    def __bool__(self) -> bool:
        return bool(self.rows)

    def of(self, op: str) -> list[tuple[str, str, int, int, int]]:
        """(case, dtype, n, v, d) of an op, in a fixed order; d is 0 without a head."""
        order = list(_TITLES)
        groups = {group_of(r) for r in self.rows if r["op"] == op}
        return sorted(
            groups,  # type: ignore[arg-type]
            key=lambda g: (order.index(g[0]) if g[0] in order else 0, g[2], g[3], g[1] != "fp32"),
        )

    def get(
        self, op: str, group: tuple[object, ...], allocator: str, who: str
    ) -> results.Row | None:
        """The row of one provider, or None if it was not measured."""
        for r in self.rows:
            if (r["op"], r["allocator"], r["provider"]) != (op, allocator, who):
                continue
            if group_of(r) == group:
                return r
        return None

    def pair(self, op: str, group: tuple[object, ...], who: str, column: str) -> str:
        """``stock / recycled`` of one column."""
        found = [self.get(op, group, a, who) for a in _ALLOCATORS]
        return " / ".join(_show(None if r is None else results.number(r, column)) for r in found)

    def ratio(
        self,
        op: str,
        group: tuple[object, ...],
        slow: str,
        fast: str,
        column: str = "cpu_ms",
        form: str = "",
    ) -> str:
        """``stock / recycled`` of slow over fast, in CPU time unless said."""
        values = []
        for a in _ALLOCATORS:
            s, f = self.get(op, group, a, slow), self.get(op, group, a, fast)
            both = s is not None and f is not None
            values.append(results.number(s, column) / results.number(f, column) if both else None)
        return " / ".join(format(x, form) if form and x else _show(x) for x in values)


def group_of(r: results.Row) -> tuple[object, ...]:
    """(case, dtype, n, v, d) of a row."""
    return r["case"], r["dtype"], r["n"], r["v"], r.get("d", 0)


def _show(x: float | None) -> str:
    if x is None:
        return "-"
    return f"{x:.0f}" if x >= 100 else f"{x:.1f}" if x >= 10 else f"{x:.2g}"


def markdown(head: Sequence[str], lines: Sequence[Sequence[str]], text: int) -> str:
    """A table whose first ``text`` columns are text and the others numbers."""
    rule = ["---"] * text + ["---:"] * (len(head) - text)
    return "".join(f"| {' | '.join(line)} |\n" for line in (head, rule, *lines))


def machine(table: Table) -> str:
    """Where and when the rows were measured."""
    out = []
    for name, label in (
        ("cpu", "CPU"), ("isa", "instruction set of the core"), ("threads", "threads"),
        ("os", "system"), ("huge_pages", "transparent huge pages"), ("torch", "torch"),
        ("python", "Python"), ("git_sha", "commit"),
    ):  # fmt: skip
        values = sorted({str(r[name]) for r in table.rows})
        out.append(f"- {label}: {', '.join(values)}\n")
    days = sorted(str(r["utc"])[:10] for r in table.rows)
    loads = sorted(results.number(r, "load") for r in table.rows)
    out.append(f"- measured {days[0]} to {days[-1]}, load average {loads[0]} to {loads[-1]}\n")
    return "".join(out)


def summary(table: Table) -> str:
    """The table of the README: how many times faster, and how far from the memory floor."""
    op, lines = "cross_entropy", []
    for group in table.of(op):
        if group[2:4] != _README_SHAPE:
            continue
        lines.append([
            _TITLES[group[0]], group[1],
            table.pair(op, group, "ours_inplace", "cpu_ms"),
            table.ratio(op, group, "eager", "ours_inplace"),
            table.ratio(op, group, "compile", "ours_inplace"),
            table.ratio(op, group, "eager", "ours"),
            table.ratio(op, group, "compile", "ours"),
            table.pair(op, group, "ours_inplace", "floor_ratio"),
        ])  # fmt: skip
    head = [
        "loss", "dtype", "in place, CPU ms", "eager / in place", "compile / in place",
        "eager / out of place", "compile / out of place", "in place / memory floor",
    ]  # fmt: skip
    n, v = _README_SHAPE
    own = [r for r in table.rows if r["op"] == "cross_entropy"]
    cpus = ", ".join(sorted({f"{r['cpu']}, {r['isa']}" for r in own}))
    text = (
        f"{n} rows, {v} classes, 2 threads, {cpus}. CPU time over all threads; each cell is "
        "`stock / recycled`: with the C library's allocator, and with one that reuses freed "
        "pages. Stock is what users see, recycled is what the kernel earned. Out of place under "
        "the stock allocator, page faults of the gradient buffer are most of the time; "
        "`inplace=True` avoids them. Two classes, larger vocabularies, wall time and errors: "
        "[docs/speed.md](docs/speed.md).\n"
    )
    return text + "\n" + markdown(head, lines, 2)


def cross_entropy(table: Table) -> str:
    """Every case, shape and provider: CPU ms, wall ms, faults and distance from the floor."""
    op, lines = "cross_entropy", []
    for group in table.of(op):
        names = [str(r["provider"]) for r in table.rows if r["op"] == op]
        for who in dict.fromkeys(names):
            if table.get(op, group, "stock", who) or table.get(op, group, "recycled", who):
                lines.append([
                    _TITLES[group[0]], group[1], f"{group[2]} x {group[3]}", who,
                    table.pair(op, group, who, "cpu_ms"), table.pair(op, group, who, "wall_ms"),
                    table.pair(op, group, who, "faults"),
                    table.ratio(op, group, who, "ours"),
                    table.ratio(op, group, who, "ours_inplace"),
                    table.pair(op, group, who, "floor_ratio"),
                ])  # fmt: skip
    head = [
        "loss", "dtype", "N x V", "provider", "CPU ms", "wall ms", "page faults", "/ ours",
        "/ in place", "/ floor",
    ]  # fmt: skip
    return markdown(head, lines, 4)


def accuracy(table: Table) -> str:
    """Errors against fp64 of every provider that was timed."""
    op, lines = "cross_entropy", []
    for r in table.rows:
        if r["op"] != op or r["allocator"] != "stock" or "grad_err" not in r:
            continue
        lines.append([
            _TITLES[str(r["case"])], str(r["dtype"]), f"{r['n']} x {r['v']}", str(r["provider"]),
            f"{results.number(r, 'loss_err'):.1e}", f"{results.number(r, 'grad_err'):.1e}",
        ])  # fmt: skip
    return markdown(["loss", "dtype", "N x V", "provider", "loss", "gradient"], lines, 4)


def linear(table: Table) -> str:
    """The fused head, every provider: time against the bare products, peak memory, errors."""
    op, lines = "linear_cross_entropy", []
    names = dict.fromkeys(str(r["provider"]) for r in table.rows if r["op"] == op)
    for group in table.of(op):
        for who in names:
            found = [r for a in _ALLOCATORS if (r := table.get(op, group, a, who))]
            if not found:
                continue
            lines.append([
                _TITLES[group[0]], group[1], f"{group[2]} x {group[4]} x {group[3]}", who,
                table.pair(op, group, who, "cpu_ms"), table.pair(op, group, who, "wall_ms"),
                table.ratio(op, group, who, "ours", form=".2f"),
                table.ratio(op, group, who, "gemms", form=".2f"),
                cell(found[0], "peak_mib", ".0f"), cell(found[0], "loss_err", ".1e"),
                cell(found[0], "grad_err", ".1e"), cell(found[0], "load", ".1f"),
            ])  # fmt: skip
    head = [
        "loss", "dtype", "N x D x V", "provider", "CPU ms", "wall ms", "/ ours", "/ GEMMs",
        "peak MiB", "error of the loss", "of dhidden", "load",
    ]  # fmt: skip
    return markdown(head, lines, 4) + left_out(table, op)


def left_out(table: Table, op: str) -> str:
    """Who could not take part, and why."""
    found = [r for r in table.skipped if r["op"] == op]
    why = dict.fromkeys(f"- `{r['provider']}`: {r['skipped']}\n" for r in found)
    return "\nNot measured here:\n\n" + "".join(why) if why else ""


def linear_summary(table: Table) -> str:
    """The fused head in the README: distance from the bare products, memory against eager."""
    op, lines = "linear_cross_entropy", []
    for group in table.of(op):
        peak = [table.get(op, group, "stock", who) for who in ("eager", "ours")]
        memory = " / ".join(cell(r, "peak_mib", ".0f") for r in peak if r)
        lines.append([
            _TITLES[group[0]], group[1], f"{group[2]} x {group[4]} x {group[3]}",
            table.ratio(op, group, "ours", "gemms", form=".2f"),
            table.ratio(op, group, "eager", "ours", form=".2f"),
            table.ratio(op, group, "compile", "ours", form=".2f"), memory,
        ])  # fmt: skip
    head = [
        "loss of a head", "dtype", "N x D x V", "ours / bare GEMMs", "eager / ours",
        "compile / ours", "peak MiB, eager / ours",
    ]  # fmt: skip
    return markdown(head, lines, 3)


def cell(r: results.Row | None, column: str, form: str) -> str:
    """A number of a row, or a dash."""
    return "-" if r is None or column not in r else format(results.number(r, column), form)


def two_class(table: Table) -> str:
    """Microseconds of wall time a call: least and median over the rounds."""
    op, lines = "two_class", []
    for group in table.of(op):
        line = [f"{group[2]} x 2"]
        for who in ("ours", "eager", "compile"):
            r = table.get(op, group, "stock", who)
            both = (
                ()
                if r is None
                else (results.number(r, "wall_ms"), results.number(r, "wall_ms_p50"))
            )
            line.append(" / ".join(_show(1e3 * x) for x in both) or "-")
        for who in ("eager", "compile"):
            line.append(table.ratio(op, group, who, "ours"))
        lines.append(line)
    head = ["N x C", "ours, us", "eager, us", "compile, us", "eager / ours", "compile / ours"]
    return markdown(head, lines, 1)


def quantile(table: Table) -> str:
    """CPU ms of the median of N scores, and how many sorts' time ours takes."""
    op, lines = "quantile", []
    names = ("ours", "torch_quantile", "sort", "kthvalue", "floor_read")
    for group in table.of(op):
        times = [table.pair(op, group, who, "cpu_ms") for who in names]
        if group[2] > TORCH_LIMIT:
            times[1] = "refuses"
        ratios = [table.ratio(op, group, "sort", "ours", c) for c in ("cpu_ms", "wall_ms")]
        lines.append([f"{group[2]:,}", *times, *ratios])
    head = ["N", "ours", "torch.quantile", "sort", "kthvalue", "one read"]
    head += ["sort / ours", "sort / ours, wall"]
    return markdown(head, lines, 1)


def products(table: Table) -> str:
    """A 16-bit head on CPUs with and without instructions for it: CPU time, and against ours."""
    lines = []
    for r in table.rows:
        if r["op"] == "products":
            lines.append([
                str(r["case"]), str(r["dtype"]), f"{r['n']} x {r['d']} x {r['v']}",
                str(r["provider"]), str(r["through"]), _show(results.number(r, "cpu_ms")),
                cell(r, "ratio_to_ours", ".2f"), cell(r, "load", ".1f"),
            ])  # fmt: skip
    if not lines:
        return "No rows have been recorded yet: `python -m bench products --record`.\n"
    head = [
        "CPU",
        "dtype",
        "N x D x V",
        "provider",
        "ours goes through",
        "CPU ms",
        "/ ours",
        "load",
    ]
    return markdown(head, lines, 5)


def heads(table: Table) -> str:
    """Sweeps of heads on cached features, and the same work in other ways."""
    order, lines = ("sweep", "epoch", "probe"), []
    found = [r for r in table.rows if r["op"] == "heads"]
    for r in sorted(found, key=lambda r: (order.index(str(r["case"])), results.number(r, "d"))):
        lines.append([
            str(r["case"]), str(r["provider"]), f"{r['n']} x {r['d']}",
            *(f"{results.number(r, c):.0f}" for c in ("losses", "seeds", "epochs", "threads")),
            *(f"{results.number(r, c) / 1e3:.3g}" for c in ("wall_ms", "cpu_ms")),
            cell(r, "ratio_to_ours", ".3g"), cell(r, "load", ".1f"),
        ])  # fmt: skip
    if not lines:
        return "No rows have been recorded yet: `python -m bench heads --record`.\n"
    head = [
        "case", "by", "N x D", "losses", "seeds", "epochs", "cores", "wall s", "CPU s", "/ ours",
        "load",
    ]  # fmt: skip
    return markdown(head, lines, 3)


def scale(table: Table) -> str:
    """What sharing a job out costs and gains, and how well memory was planned."""
    lines = []
    for r in table.rows:
        if r["op"] not in ("labelling", "exchange", "memory"):
            continue
        ratio = results.number(r, "ratio_to_plan" if r["op"] == "memory" else "ratio_to_ours")
        lines.append([
            str(r["op"]), str(r["case"]), str(r["provider"]),
            *(_show(results.number(r, c)) if c in r else "-" for c in
              ("wall_ms", "rows_per_s", "peak_mib")),
            f"{ratio:.3g}",
        ])  # fmt: skip
    head = ["measured", "case", "of", "wall ms", "rows/s", "peak MiB", "ratio"]
    own = [r for r in table.rows if r["op"] in ("memory", "labelling", "exchange")]
    cpus = ", ".join(sorted({str(r["cpu"]) for r in own}))
    note = f"Two cores of {cpus}, gloo. Ratio to ours, of memory to the plan.\n"
    return note + "\n" + markdown(head, lines, 3)
