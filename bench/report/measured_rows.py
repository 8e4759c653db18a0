"""Look up measured rows by what they measure, and format them as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from bench.harness.row_files import Row, number

ALLOCATORS = ("stock", "recycled")
TITLES = {  # case of a loss -> its name in tables, in the order of tables
    "logconf_hard": "confidence loss, hard weak labels",
    "logconf_topk": "confidence loss, top-8 weak labels",
    "logconf_dense": "confidence loss, dense weak labels",
    "hard": "cross-entropy, hard labels",
    "topk": "cross-entropy, top-8 labels",
    "dense": "cross-entropy, dense labels",
    "teacher": "cross-entropy, two teachers from hidden states",
}


class Shape(NamedTuple):
    """What was measured, apart from op, provider and allocator; d is 0 without a head."""

    case: str
    dtype: str
    n: int
    v: int
    d: int


def shape_of(r: Row) -> Shape:
    """Return the shape of a row."""
    return Shape(r["case"], r["dtype"], r["n"], r["v"], r.get("d", 0))  # type: ignore[arg-type]


class MeasuredRows:
    """Rows of all ops, without and with the reason why nothing was measured."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = [r for r in rows if "skipped" not in r]
        self.skipped = [r for r in rows if "skipped" in r]

    def __bool__(self) -> bool:
        return bool(self.rows)

    def of(self, *ops: str) -> list[Row]:
        """Return the rows of some ops, in the order of the file."""
        return [r for r in self.rows if r["op"] in ops]

    def shapes(self, op: str) -> list[Shape]:
        """Return the distinct shapes of an op in the order of tables."""
        order = {case: i for i, case in enumerate(TITLES)}
        return sorted(
            {shape_of(r) for r in self.of(op)},
            key=lambda s: (order.get(s.case, 0), s.n, s.v, s.dtype != "fp32"),
        )

    def providers(self, op: str) -> list[str]:
        """Return the providers of an op in the order of the file."""
        return list(dict.fromkeys(str(r["provider"]) for r in self.of(op)))

    def find(self, op: str, shape: Shape, allocator: str, provider: str) -> Row | None:
        """Return the row of one provider, or None if it was not measured."""
        for r in self.of(op):
            if (r["allocator"], r["provider"]) == (allocator, provider) and shape_of(r) == shape:
                return r
        return None

    def find_both(self, op: str, shape: Shape, provider: str) -> list[Row | None]:
        """Return the rows of one provider under the stock and the recycled allocator."""
        return [self.find(op, shape, allocator, provider) for allocator in ALLOCATORS]

    def pair(self, op: str, shape: Shape, provider: str, column: str) -> str:
        """Return a column as ``stock / recycled``."""
        rows = self.find_both(op, shape, provider)
        return " / ".join(short(None if r is None else number(r, column)) for r in rows)

    def ratio(
        self,
        op: str,
        shape: Shape,
        slow: str,
        fast: str,
        column: str = "cpu_ms",
        form: str = "",
    ) -> str:
        """Return a column of ``slow`` over that of ``fast`` as ``stock / recycled``."""
        ratios = [
            number(s, column) / number(f, column) if s and f else None
            for s, f in zip(
                self.find_both(op, shape, slow), self.find_both(op, shape, fast), strict=True
            )
        ]
        return " / ".join(format(x, form) if form and x else short(x) for x in ratios)

    def not_measured(self, op: str) -> str:
        """Return a list of the providers that could not be measured, and why."""
        rows = [r for r in self.skipped if r["op"] == op]
        lines = dict.fromkeys(f"- `{r['provider']}`: {r['skipped']}\n" for r in rows)
        return "\nNot measured here:\n\n" + "".join(lines) if lines else ""


def short(x: float | None) -> str:
    """Return a number with two or three digits, or a dash."""
    if x is None:
        return "-"
    return f"{x:.0f}" if x >= 100 else f"{x:.1f}" if x >= 10 else f"{x:.2g}"


def cell(r: Row | None, column: str, form: str) -> str:
    """Return a number of a row, or a dash."""
    return "-" if r is None or column not in r else format(number(r, column), form)


def markdown(head: Sequence[str], lines: Sequence[Sequence[str]], text_columns: int) -> str:
    """Return a table whose first ``text_columns`` columns are text and the others numbers."""
    rule = ["---"] * text_columns + ["---:"] * (len(head) - text_columns)
    return "".join(f"| {' | '.join(line)} |\n" for line in (head, rule, *lines))
