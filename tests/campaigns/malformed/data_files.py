"""Malformed files of examples for the task ``local``: CSV, JSONL and Parquet."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

from campaigns.malformed.attempt import Attempt
from campaigns.malformed.files import FILE_FAULTS, FileFault, cut_short, wrong_encoding
from campaigns.malformed.inputs import (
    N_ROWS,
    checkpoint,
    csv_text,
    local_settings,
    rows,
    run,
    write_settings,
)
from campaigns.malformed.settings import Make

Cells = list[dict[str, Any]]


def _attempt(folder: Path, data: str, *names: str, may_pass: bool = False, **task: Any) -> Attempt:
    checkpoint(folder / "student")
    path = write_settings(folder / "run.yaml", local_settings(data, **task))
    return Attempt(run(path), names or (data,), may_pass)


def _of_file(fault: FileFault, suffix: str = "", *, may_pass: bool = False) -> Make:
    def make(folder: Path, rng: Random) -> Attempt:
        path = _write(folder, _cells(), suffix or rng.choice((".csv", ".jsonl", ".parquet")))
        fault(path, rng)
        return _attempt(folder, path.name, may_pass=may_pass)

    return make


def _cells() -> Cells:
    return [{"text": text, "label": label} for text, label in rows()]


def _write(folder: Path, cells: Cells, suffix: str) -> Path:
    path = folder / f"data{suffix}"
    if suffix == ".csv":
        path.write_text(csv_text())
    elif suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in cells))
    else:
        import pyarrow
        import pyarrow.parquet

        names = {name: None for row in cells for name in row}
        columns = {name: [row.get(name) for row in cells] for name in names}
        pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


def _rows(
    change: Callable[[Cells, Random], Cells | None], *names: str, may_pass: bool = False,
    suffixes: Sequence[str] = (".jsonl", ".parquet"), **task: Any,
) -> Make:  # fmt: skip
    """Other rows than the valid ones."""

    def make(folder: Path, rng: Random) -> Attempt:
        cells = _cells()
        cells = change(cells, rng) or cells
        path = _write(folder, cells, rng.choice(suffixes))
        return _attempt(folder, path.name, *(names or (path.name,)), may_pass=may_pass, **task)

    return make


def _lines(change: Callable[[list[str], Random], list[str]], *, may_pass: bool = False,
           **task: Any) -> Make:  # fmt: skip
    """Other lines of the CSV file than the valid ones."""

    def make(folder: Path, rng: Random) -> Attempt:
        path = folder / "data.csv"
        lines = change(csv_text().splitlines(keepends=True), rng)
        path.write_bytes("".join(lines).encode("utf-8", "surrogatepass"))
        return _attempt(folder, path.name, may_pass=may_pass, **task)

    return make


def _at(lines: list[str], rng: Random, new: str) -> list[str]:
    """Replace a line below the header."""
    lines[rng.randrange(1, len(lines))] = new
    return lines


def _set(name: str, values: Sequence[Any], share: float = 0) -> Callable[[Cells, Random], None]:
    """Put a value into one cell of a column, or into a share of them."""

    def change(cells: Cells, rng: Random) -> None:
        value = rng.choice(values)
        chosen = [c for c in cells if rng.random() < share] or [rng.choice(cells)]
        for cell in chosen:
            cell[name] = value

    return change


def _repeat_columns(folder: Path, rng: Random) -> Attempt:
    path = folder / "data.csv"
    path.write_text("text,label,text\n" + "".join(f"{t},{y},{t}\n" for t, y in rows()))
    return _attempt(folder, path.name)


def _packed(folder: Path, rng: Random) -> Attempt:
    path = folder / "data.csv.gz"
    content = gzip.compress(csv_text().encode())
    path.write_bytes(
        rng.choice((csv_text().encode(), content[: len(content) // 2], content[:-6], b"\x1f\x8b"))
    )
    return _attempt(folder, path.name)


def _other_suffix(folder: Path, rng: Random) -> Attempt:
    suffix = rng.choice((".parquet", ".jsonl", ".xlsx", "", ".csv.parquet", ".pkl", ".csv.zip"))
    path = folder / f"data{suffix}"
    path.write_text(csv_text())
    return _attempt(folder, path.name)


def _test_file(folder: Path, rng: Random) -> Attempt:
    (folder / "data.csv").write_text(csv_text())
    test = folder / "test.csv"
    test.write_text(
        rng.choice(("text,label\n", "text,label\na,other\n" * 30, "words,label\na,pos\n", ""))
    )
    if rng.random() < 0.3:
        test.unlink()
    return _attempt(folder, "data.csv", "test.csv", test_path="test.csv")


def _task(folder: Path, rng: Random) -> Attempt:
    """The file is right, and a setting does not fit it."""
    (folder / "data.csv").write_text(csv_text())
    setting, named = rng.choice(
        (
            ({"text": "words"}, "words"), ({"label": "2"}, "'2'"), ({"label": "-1"}, "-1"),
            ({"label": ""}, "label"), ({"group": "author"}, "author"), ({"n_weak": 90}, "90"),
            ({"classes": ["pos", "new"]}, "neg"), ({"classes": ["pos", "pos"]}, "classes"),
            ({"classes": []}, "classes"), ({"delimiter": ""}, "delimiter"), ({"delimiter": ";;"},
            "delimiter"),
            ({"delimiter": "\u00e9"}, "delimiter"), ({"text_pair": "other"}, "other"),
            ({"words": ["a"]}, "words"), ({"prompt": "no place"}, "prompt"), ({"header": False},
            "text"),
            ({"path": None}, "path"), ({"path": ""}, "path"), ({"path": "."}, "directory"),
            ({"path": "data.csv/"}, "data.csv"), ({"path": "data.csv/x"}, "data.csv"),
            ({"delimiter": "\n"}, "delimiter"), ({"delimiter": "\0"}, "delimiter"),
            ({"delimiter": '"'}, "delimiter"), ({"label": "text"}, "class"),
        )
    )  # fmt: skip
    attempt = _attempt(folder, "data.csv", named)
    write_settings(folder / "run.yaml", local_settings("data.csv") | {
        "task": local_settings("data.csv")["task"] | setting})  # fmt: skip
    return attempt


FAULTS: dict[str, Make] = {
    **{f"file: {name}": _of_file(fault) for name, fault in FILE_FAULTS.items()},
    "encoding": _of_file(wrong_encoding, ".jsonl"),
    "Parquet cut short": _of_file(cut_short, ".parquet"),
    "CSV cut short": _of_file(cut_short, ".csv", may_pass=True),
    "JSONL cut short": _of_file(cut_short, ".jsonl", may_pass=True),
    "header alone": _lines(lambda lines, rng: lines[:1]),
    "too few rows": _lines(lambda lines, rng: lines[: rng.randrange(2, 20)]),
    "one class": _lines(lambda lines, rng: [line.replace("neg", "pos") for line in lines]),
    "one text": _rows(_set("text", ["the same"], 1)),
    "a row longer": _lines(lambda lines, rng: _at(lines, rng, "a,b,pos\n")),
    "a row shorter": _lines(lambda lines, rng: _at(lines, rng, "a\n")),
    "quote without end": _lines(lambda lines, rng: _at(lines, rng, '"a,pos\n'), may_pass=True),
    "zero bytes": _lines(lambda lines, rng: _at(lines, rng, "a\0b,pos\n"), may_pass=True),
    "bytes no text": _lines(lambda lines, rng: _at(lines, rng, "\udcff\udcfe,pos\n")),
    "label empty": _lines(lambda lines, rng: _at(lines, rng, "a,\n")),
    "text empty": _lines(lambda lines, rng: _at(lines, rng, ",pos\n")),
    "label a fraction": _rows(_set("label", [0.5, -1.25, 1e-300], 1)),
    "label infinite": _rows(_set("label", [float("inf"), float("nan")], 1), suffixes=(".parquet",)),
    "label nested": _rows(_set("label", [["pos"], {"a": "pos"}, []], 1)),
    "text nested": _rows(_set("text", [["a", "b"], {"a": "b"}], 1)),
    "text null": _rows(_set("text", [None])),
    "label null": _rows(_set("label", [None])),
    "types mixed": _rows(_set("label", [3, True, ["pos"]]), suffixes=(".jsonl",)),
    "a label a row": _rows(
        lambda cells, rng: [c | {"label": f"l{i}"} for i, c in enumerate(cells)]
    ),
    "class of one row": _rows(_set("label", ["rare"])),
    "text of a megabyte": _rows(_set("text", ["word " * 200_000]), may_pass=True),
    "text of blanks": _rows(_set("text", [" ", "\n\t", "\u2003"])),
    "columns missing": _rows(lambda cells, rng: [{"words": c["text"]} for c in cells]),
    "JSON array": lambda folder, rng: _json(folder, json.dumps(_cells())),
    "JSON nested deeply": lambda folder, rng: _json(folder, "[" * 3000 + "\n"),
    "JSON of numbers": lambda folder, rng: _json(folder, "1\n2\n" * N_ROWS),
    "JSON lines broken": lambda folder, rng: _json(folder, '{"text": "a", \n"label": "pos"}\n' * 9),
    "JSON keys twice": lambda folder, rng: _json(
        folder, '{"text": "a", "text": "b", "label": "pos"}\n' * N_ROWS
    ),
    "columns twice": _repeat_columns,
    "packed": _packed,
    "suffix": _other_suffix,
    "test file": _test_file,
    "setting": _task,
}


def _json(folder: Path, text: str) -> Attempt:
    (folder / "data.jsonl").write_text(text)
    return _attempt(folder, "data.jsonl")
