"""Markdown tables of README.md, docs/speed_tables.md and docs/distributed.md, from measured rows.

Times are CPU time unless a column says wall.
"""

from __future__ import annotations

from bench.cases.quantile import TORCH_LIMIT
from bench.harness.row_files import Row, number
from bench.report.measured_rows import TITLES, MeasuredRows, Shape, cell, markdown, short

_README_SHAPE = (4096, 32000)


def machine(rows: MeasuredRows) -> str:
    """List where and when the rows were measured."""
    lines = []
    for name, label in (
        ("cpu", "CPU"), ("isa", "instruction set of the core"), ("threads", "threads"),
        ("os", "system"), ("huge_pages", "transparent huge pages"), ("torch", "torch"),
        ("python", "Python"), ("git_sha", "commit"),
    ):  # fmt: skip
        values = sorted({str(r[name]) for r in rows.rows})
        lines.append(f"- {label}: {', '.join(values)}\n")
    days = sorted(str(r["utc"])[:10] for r in rows.rows)
    loads = sorted(number(r, "load") for r in rows.rows)
    lines.append(f"- measured {days[0]} to {days[-1]}, load average {loads[0]} to {loads[-1]}\n")
    return "".join(lines)


def summary(rows: MeasuredRows) -> str:
    """Return the README's table: speed against eager and compile, distance from the floor."""
    op, lines = "cross_entropy", []
    for s in rows.shapes(op):
        if (s.n, s.v) != _README_SHAPE:
            continue
        lines.append([
            TITLES[s.case], s.dtype,
            rows.pair(op, s, "ours_inplace", "cpu_ms"),
            rows.ratio(op, s, "eager", "ours_inplace"),
            rows.ratio(op, s, "compile", "ours_inplace"),
            rows.ratio(op, s, "eager", "ours"),
            rows.ratio(op, s, "compile", "ours"),
            rows.pair(op, s, "ours_inplace", "floor_ratio"),
        ])  # fmt: skip
    head = [
        "loss", "dtype", "in place, CPU ms", "eager / in place", "compile / in place",
        "eager / out of place", "compile / out of place", "in place / memory floor",
    ]  # fmt: skip
    n, v = _README_SHAPE
    cpus = ", ".join(sorted({f"{r['cpu']}, {r['isa']}" for r in rows.of(op)}))
    text = (
        f"{n} rows, {v} classes, 2 threads, {cpus}. CPU time over all threads; each cell is "
        "`stock / recycled`: with the C library's allocator, which users have, and with one that "
        "reuses freed pages, which isolates the kernel. Out of place under the stock allocator, "
        "page faults of the gradient buffer take most of the time; `inplace=True` avoids them. Two "
        "classes, larger vocabularies, wall time and errors: "
        "[docs/speed_tables.md](docs/speed_tables.md).\n"
    )
    return text + "\n" + markdown(head, lines, 2)


def cross_entropy(rows: MeasuredRows) -> str:
    """Tabulate every case, shape and provider: times, page faults, distance from the floor."""
    op, lines = "cross_entropy", []
    for s in rows.shapes(op):
        for provider in rows.providers(op):
            if any(rows.find_both(op, s, provider)):
                lines.append([
                    TITLES[s.case], s.dtype, f"{s.n} x {s.v}", provider,
                    rows.pair(op, s, provider, "cpu_ms"), rows.pair(op, s, provider, "wall_ms"),
                    rows.pair(op, s, provider, "faults"),
                    rows.ratio(op, s, provider, "ours"),
                    rows.ratio(op, s, provider, "ours_inplace"),
                    rows.pair(op, s, provider, "floor_ratio"),
                ])  # fmt: skip
    head = [
        "loss", "dtype", "N x V", "provider", "CPU ms", "wall ms", "page faults", "/ ours",
        "/ in place", "/ floor",
    ]  # fmt: skip
    return markdown(head, lines, 4)


def accuracy(rows: MeasuredRows) -> str:
    """Tabulate the errors against fp64 of every provider that was timed."""
    lines = []
    for r in rows.of("cross_entropy"):
        if r["allocator"] == "stock" and "grad_err" in r:
            lines.append([
                TITLES[str(r["case"])], str(r["dtype"]), f"{r['n']} x {r['v']}",
                str(r["provider"]), cell(r, "loss_err", ".1e"), cell(r, "grad_err", ".1e"),
            ])  # fmt: skip
    return markdown(["loss", "dtype", "N x V", "provider", "loss", "gradient"], lines, 4)


def linear(rows: MeasuredRows) -> str:
    """Tabulate the fused head: time against the bare products, peak memory, errors."""
    op, lines = "linear_cross_entropy", []
    for s in rows.shapes(op):
        for provider in rows.providers(op):
            first = next((r for r in rows.find_both(op, s, provider) if r), None)
            if first is None:
                continue
            lines.append([
                TITLES[s.case], s.dtype, _head_size(s), provider,
                rows.pair(op, s, provider, "cpu_ms"), rows.pair(op, s, provider, "wall_ms"),
                rows.ratio(op, s, provider, "ours", form=".2f"),
                rows.ratio(op, s, provider, "gemms", form=".2f"),
                cell(first, "peak_mib", ".0f"), cell(first, "loss_err", ".1e"),
                cell(first, "grad_err", ".1e"), cell(first, "load", ".1f"),
            ])  # fmt: skip
    head = [
        "loss", "dtype", "N x D x V", "provider", "CPU ms", "wall ms", "/ ours", "/ GEMMs",
        "peak MiB", "loss error", "dhidden error", "load",
    ]  # fmt: skip
    return markdown(head, lines, 4) + rows.not_measured(op)


def _head_size(s: Shape) -> str:
    return f"{s.n} x {s.d} x {s.v}"


def linear_summary(rows: MeasuredRows) -> str:
    """Return the README's table of the fused head: bare products, memory against eager."""
    op, lines = "linear_cross_entropy", []
    for s in rows.shapes(op):
        peaks = [rows.find(op, s, "stock", provider) for provider in ("eager", "ours")]
        lines.append([
            TITLES[s.case], s.dtype, _head_size(s),
            rows.ratio(op, s, "ours", "gemms", form=".2f"),
            rows.ratio(op, s, "eager", "ours", form=".2f"),
            rows.ratio(op, s, "compile", "ours", form=".2f"),
            " / ".join(cell(r, "peak_mib", ".0f") for r in peaks if r),
        ])  # fmt: skip
    head = [
        "loss of a head", "dtype", "N x D x V", "ours / bare GEMMs", "eager / ours",
        "compile / ours", "peak MiB, eager / ours",
    ]  # fmt: skip
    return markdown(head, lines, 3)


def two_class(rows: MeasuredRows) -> str:
    """Tabulate microseconds of wall time per call: minimum and median over the rounds.

    The last column is the CPU time of ours beyond that of ``z.sum().backward()``.
    """
    op, lines = "two_class", []
    for s in rows.shapes(op):
        line = [f"{s.n} x 2"]
        for provider in ("ours", "eager", "compile"):
            r = rows.find(op, s, "stock", provider)
            times = [number(r, column) for column in ("wall_ms", "wall_ms_p50")] if r else []
            line.append(" / ".join(short(1e3 * ms) for ms in times) or "-")
        line += [rows.ratio(op, s, provider, "ours") for provider in ("eager", "compile")]
        pair = [rows.find(op, s, "stock", provider) for provider in ("ours", "sum")]
        times = [number(r, "cpu_ms") for r in pair if r]
        line.append(short(1e3 * (times[0] - times[1])) if len(times) == 2 else "-")
        lines.append(line)
    head = ["N x C", "ours, us", "eager, us", "compile, us", "eager / ours", "compile / ours"]
    head += ["ours - sum, us"]
    return markdown(head, lines, 1)


def quantile(rows: MeasuredRows) -> str:
    """Tabulate CPU ms of the median of N scores, and the time of a sort against ours."""
    op, lines = "quantile", []
    providers = ("ours", "torch_quantile", "sort", "kthvalue", "floor_read")
    for s in rows.shapes(op):
        times = [rows.pair(op, s, provider, "cpu_ms") for provider in providers]
        if s.n > TORCH_LIMIT:
            times[1] = "raises"
        ratios = [rows.ratio(op, s, "sort", "ours", c) for c in ("cpu_ms", "wall_ms")]
        lines.append([f"{s.n:,}", *times, *ratios])
    head = ["N", "ours", "torch.quantile", "sort", "kthvalue", "one read"]
    head += ["sort / ours", "sort / ours, wall"]
    return markdown(head, lines, 1)


def products(rows: MeasuredRows) -> str:
    """Tabulate a 16-bit head on CPUs with and without instructions for 16-bit products."""
    lines = [
        [
            str(r["case"]), str(r["dtype"]), f"{r['n']} x {r['d']} x {r['v']}",
            str(r["provider"]), str(r["through"]), short(number(r, "cpu_ms")),
            cell(r, "ratio_to_ours", ".2f"), cell(r, "load", ".1f"),
        ]
        for r in rows.of("products")
    ]  # fmt: skip
    if not lines:
        return "No rows have been recorded yet: `python -m bench products --record`.\n"
    head = [
        "CPU", "dtype", "N x D x V", "provider", "products of ours", "CPU ms", "/ ours", "load",
    ]  # fmt: skip
    return markdown(head, lines, 5)


def logprob_entropy(rows: MeasuredRows) -> str:
    """Tabulate log-probabilities with entropy against those of TRL: time, peak memory, errors."""
    lines = []
    for r in rows.of("logprob_entropy"):
        lines.append([
            str(r["dtype"]), f"{r['n']} x {r['d']} x {r['v']}", str(r["provider"]),
            cell(r, "cpu_ms", ".0f"), cell(r, "wall_ms", ".0f"), cell(r, "ratio_to_ours", ".2f"),
            cell(r, "peak_mib", ".0f"), cell(r, "value_err", ".1e"), cell(r, "grad_err", ".1e"),
            cell(r, "load", ".1f"),
        ])  # fmt: skip
    if not lines:
        return "No rows have been recorded yet: `python -m bench logprob_entropy --record`.\n"
    head = [
        "dtype", "N x D x V", "provider", "CPU ms", "wall ms", "/ ours", "peak MiB", "value error",
        "gradient error", "load",
    ]  # fmt: skip
    return markdown(head, lines, 3)


def info_nce(rows: MeasuredRows) -> str:
    """Tabulate InfoNCE beside its formula and sentence-transformers: time, peak memory, errors."""
    lines = []
    for r in rows.of("info_nce"):
        if "skipped" in r:
            continue
        lines.append([
            str(r["dtype"]), f"{r['n']} x {r['d']}", str(r["provider"]), cell(r, "cpu_ms", ".0f"),
            cell(r, "wall_ms", ".0f"), cell(r, "ratio_to_ours", ".2f"), cell(r, "peak_mib", ".0f"),
            cell(r, "grad_err", ".1e"), cell(r, "load", ".1f"),
        ])  # fmt: skip
    if not lines:
        return "No rows have been recorded yet: `python -m bench info_nce --record`.\n"
    head = [
        "dtype", "N x D", "provider", "CPU ms", "wall ms", "/ ours", "peak MiB", "gradient error",
        "load",
    ]  # fmt: skip
    return markdown(head, lines, 3)


def heads(rows: MeasuredRows) -> str:
    """Tabulate sweeps of heads on cached features, and the same work done in other ways."""
    order = ("sweep", "noise", "epoch", "probe")

    def position(r: Row) -> tuple[int, float]:
        return order.index(str(r["case"])), number(r, "d")

    lines = [
        [
            str(r["case"]), str(r["provider"]), f"{r['n']} x {r['d']}",
            *(f"{number(r, c):.0f}" for c in ("losses", "seeds", "epochs", "threads")),
            *(f"{number(r, c) / 1e3:.3g}" for c in ("wall_ms", "cpu_ms")),
            cell(r, "ratio_to_ours", ".3g"), cell(r, "load", ".1f"),
        ]
        for r in sorted(rows.of("heads"), key=position)
    ]  # fmt: skip
    if not lines:
        return "No rows have been recorded yet: `python -m bench heads --record`.\n"
    head = [
        "case", "provider", "N x D", "losses", "seeds", "epochs", "cores", "wall s", "CPU s",
        "/ ours", "load",
    ]  # fmt: skip
    return markdown(head, lines, 3)


def scale(rows: MeasuredRows) -> str:
    """Tabulate what sharing a job costs and gains, and measured memory against the plan."""
    measured = rows.of("labelling", "exchange", "memory")
    lines = []
    for r in measured:
        ratio = number(r, "ratio_to_plan" if r["op"] == "memory" else "ratio_to_ours")
        columns = ("wall_ms", "rows_per_s", "peak_mib")
        numbers = (short(number(r, c) if c in r else None) for c in columns)
        name = (str(r[column]) for column in ("op", "case", "provider"))
        lines.append([*name, *numbers, f"{ratio:.3g}"])
    head = ["measured", "case", "provider", "wall ms", "rows/s", "peak MiB", "ratio"]
    cpus = ", ".join(sorted({str(r["cpu"]) for r in measured}))
    note = f"Two cores of {cpus}, gloo. Ratios are to ours; for memory, to the plan.\n"
    return note + "\n" + markdown(head, lines, 3)
