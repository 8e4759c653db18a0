"""The tables of docs/reasoning.md, from the committed rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bench.reasoning import word_problems
from bench.reasoning.command import load

PAGE = "docs/reasoning.md"
_NONE = "No rows have been recorded yet: `python -m bench reasoning --record`.\n"
_MOST_IDS = 13
Row = Mapping[str, Any]


def blocks() -> dict[str, Callable[[Any], str]]:
    """Return marker -> what makes its text in docs/reasoning.md."""
    return {
        "released": lambda _: counts(load()),
        "strings": lambda _: strings(load()),
        "accuracy": lambda _: accuracies(load()),
        **{name: lambda _, name=name: word_problems.block(name) for name in word_problems.METHODS},
        "sampling": lambda _: sampling(load()),
    }


def counts(rows: Sequence[Row]) -> str:
    """Return the table of counts beside the expected ones."""
    lines = [_line(["count", "found", "expected", "ids"]), _line(["---", "---:", "---:", "---"])]
    for row in _of("count", rows):
        expected = "" if row["expected"] is None else str(row["expected"])
        n = str(row["n"])
        if row["name"].endswith("multiset union"):
            n, expected = (("no", "yes")[row["n"]], "yes")
        lines.append(_line([row["name"], n, expected, _ids(row)]))
    return _table(lines)


def strings(rows: Sequence[Row]) -> str:
    """Return the answers of iteration 1 that are equal, but not as strings."""
    lines = [_line(["id", "weak", "in context"]), _line(["---:", "---", "---"])]
    for row in _of("count", rows):
        if row["name"].startswith("iteration 1") and "answers" in row:
            lines += [_line([str(i), f"`{a}`", f"`{b}`"]) for i, a, b in row["answers"]]
    return _table(lines)


def accuracies(rows: Sequence[Row]) -> str:
    """Return the table of accuracies with their intervals."""
    heads = ("file", "rows", "rows with a true answer", "accuracy", "95 % interval", "unreadable")
    lines = [_line(heads), _line(["---", *["---:"] * 5])]
    for row in _of("accuracy", rows):
        interval = f"{row['low']:.3f} – {row['high']:.3f}"
        numbers = (row["n_rows"], row["n_rows_with_gold"], f"{row['accuracy']:.3f}", interval)
        lines.append(_line([row["name"], *map(str, numbers), str(row["n_unreadable"])]))
    return _table(lines)


def sampling(rows: Sequence[Row]) -> str:
    """Return the table of tokens per CPU second."""
    heads = ("sampling", "tokens / CPU s", "ratio to the loop", "least ratio")
    lines = [_line(heads), _line(["---", *["---:"] * 3])]
    timed = _of("speed", rows)
    if not timed:
        return _NONE
    for row in timed:
        ratios = (f"{row['ratio']:.1f}", f"{row['least_ratio']:.1f}")
        lines.append(_line([row["name"], f"{row['tokens_per_cpu_s']:.0f}", *ratios]))
    first = timed[0]
    return _table(lines) + (
        f"\n{first['n_prompts']} prompts, {first['n_samples']} samples each, at most "
        f"{first['max_new_tokens']} tokens, {first['parameters'] / 1e6:.0f} M parameters "
        f"({first['model']}), fp32, {first['threads']} thread, {first['cpu']}, median of "
        f"{first['rounds']} rounds in turns, commit {first['git_sha']}.\n"
    )


def _of(kind: str, rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row["kind"] == kind]


def _ids(row: Row) -> str:
    ids = row.get("ids", ())
    more = f" and {len(ids) - _MOST_IDS} more" if len(ids) > _MOST_IDS else ""
    return ", ".join(map(str, ids[:_MOST_IDS])) + more


def _table(lines: list[str]) -> str:
    return "\n".join(lines) + "\n" if len(lines) > 2 else _NONE


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
