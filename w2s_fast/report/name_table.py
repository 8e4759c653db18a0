"""Tables of names and numbers that fit a terminal of any width; names are always whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions
from rich.text import Text

from w2s_fast.report.names import printable, wrap_name

_GAPS = (3, 2, 1)  # spaces between columns: as many as fit
_INDENT = 3  # spaces before numbers below their name


@dataclass(frozen=True)
class _Row:
    name: str
    cells: Sequence[str]
    style: str
    end_section: bool


@dataclass
class NameTable:
    """A table whose first column holds names, the others numbers.

    If it is wider than the terminal, columns move together; if it still is, every name gets lines
    of its own above its numbers, and columns that do not fit follow in a further table.

    Attributes:
        title: Line above the table.
        first: Head of the names.
        heads: Heads of the numbers.
        caption: Text below the table, a paragraph a line.
    """

    title: str
    first: str
    heads: Sequence[str]
    caption: str = ""
    _rows: list[_Row] = field(default_factory=list)
    _widths: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._widths = [cell_len(head) for head in self.heads]

    def add_row(
        self, name: str, *cells: str, indent: int = 0, style: str = "", end_section: bool = False
    ) -> None:
        """Add a row; a row without numbers is a heading.

        Args:
            name: The name, as plain text: markup in it has no effect.
            cells: Numbers; those left out are empty.
            indent: Spaces before the name.
            style: Style of the name.
            end_section: Whether an empty line follows unless the row is the last.
        """
        padded = [*cells, *[""] * (len(self.heads) - len(cells))]
        self._widths = [max(w, cell_len(c)) for w, c in zip(self._widths, padded, strict=True)]
        text = " " * indent + printable(name)
        self._rows.append(_Row(text, padded if cells else (), style, end_section))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        """Yield the lines of the first layout that fits."""
        width = options.max_width
        columns = range(len(self.heads))
        yield from _wrap(self.title, width, "table.title")
        yield Text()
        names = max(cell_len(n) for n in (self.first, *(r.name for r in self._rows if r.cells)))
        for gap in _GAPS:
            if 1 + names + self._width(columns, gap) + 1 <= width:
                yield from self._side_by_side(names, gap, width)
                break
        else:
            for block in self._blocks(width):
                yield from self._stacked(block, width)
        yield from _wrap(self.caption, width, "table.caption")

    def _side_by_side(self, names: int, gap: int, width: int) -> Iterator[Text]:
        """Yield lines with a name and its numbers."""
        columns = range(len(self.heads))

        def line(name: str, cells: Sequence[str]) -> str:
            return f" {_pad(name, names)}{self._numbers(cells, columns, gap)}"

        yield from _head(line(self.first, self.heads), 1 + names + self._width(columns, gap))
        for i, row in enumerate(self._rows):
            if row.cells:
                numbers = line("", row.cells)[1 + names :]
                yield Text.assemble(" ", (_pad(row.name, names), row.style), numbers.rstrip())
            else:
                yield from _wrap(f" {row.name}", width, row.style)
            yield from self._end_section(i)
        yield Text()

    def _stacked(self, columns: Sequence[int], width: int) -> Iterator[Text]:
        """Yield lines with a name, each followed by lines with its numbers."""
        yield Text(self.first, style="table.header")
        yield from _head(self._stacked_numbers(self.heads, columns), self._stacked_width(columns))
        above = None
        for i, row in enumerate(self._rows):
            if row.cells and not any(row.cells[c] for c in columns):
                continue
            if row.name != above:  # rows of one name stand below it
                yield from _wrap(row.name, width, row.style)
            above = row.name
            if row.cells:
                yield Text(self._stacked_numbers(row.cells, columns).rstrip())
            yield from self._end_section(i)
        yield Text()

    def _end_section(self, i: int) -> Iterator[Text]:
        if self._rows[i].end_section and i + 1 < len(self._rows):
            yield Text()

    def _blocks(self, width: int) -> list[list[int]]:
        """Divide the columns into tables, as many side by side as fit."""
        blocks: list[list[int]] = [[]]
        for column in range(len(self.heads)):
            if blocks[-1] and self._stacked_width([*blocks[-1], column]) > width:
                blocks.append([])
            blocks[-1].append(column)
        return blocks

    def _stacked_width(self, columns: Sequence[int]) -> int:
        return _INDENT + self._width(columns, 1)

    def _stacked_numbers(self, cells: Sequence[str], columns: Sequence[int]) -> str:
        return " " * _INDENT + self._numbers(cells, columns, 1)

    def _width(self, columns: Sequence[int], gap: int) -> int:
        return sum(gap + self._widths[column] for column in columns)

    def _numbers(self, cells: Sequence[str], columns: Sequence[int], gap: int) -> str:
        return "".join(" " * gap + _pad(cells[c], -self._widths[c]) for c in columns)


def _head(text: str, width: int) -> Iterator[Text]:
    yield Text(text, style="table.header")
    yield Text(" " + "─" * (width - 1))


def _wrap(text: str, width: int, style: str) -> Iterator[Text]:
    for paragraph in text.splitlines():
        for line in wrap_name(paragraph, width):
            yield Text(line.rstrip(), style=style)


def _pad(text: str, width: int) -> str:
    """Pad a text to ``width`` cells, on its left if ``width`` is negative."""
    spaces = " " * (abs(width) - cell_len(text))
    return spaces + text if width < 0 else text + spaces
