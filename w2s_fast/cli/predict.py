"""``w2s-fast predict``: class probabilities of new texts by an exported model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from w2s_fast.cli.parse import asks_for_help, take_options
from w2s_fast.errors import W2SError
from w2s_fast.paths import user_path

USAGE = """usage: w2s-fast predict --model FOLDER --data FILE --to FILE [options]

Reads texts (CSV, TSV, JSONL or Parquet) and writes the class probabilities of an exported model:
id, text, label (the most likely class) and probs, in the form of weak labels.

  --model FOLDER      the exported model
  --data FILE         the texts
  --to FILE           .parquet or .jsonl; must not exist
  --text COLUMN       the text (default: text); of a reward model, the first dialogue
  --text-pair COLUMN  the second text, where the model was trained on two
  --id COLUMN         identifiers (default: numbers from 0)
"""
_VALUES = ("model", "data", "to", "text", "text-pair", "id")
_FORMATS = (".parquet", ".jsonl")


def main(args: Sequence[str]) -> int:
    """Run the command; return the exit code."""
    if not args or asks_for_help(args):
        print(USAGE, end="")
        return 0 if args else 2
    own, rest = take_options(args, values=_VALUES)
    if rest:
        options = ", ".join(f"--{name}" for name in _VALUES)
        raise W2SError(f"predict: unexpected {' '.join(rest)}; expected {options}")
    if missing := [name for name in ("model", "data", "to") if name not in own]:
        raise W2SError(f"predict needs --{', --'.join(missing)}")
    data, to = user_path(own["data"], "--data"), user_path(own["to"], "--to")
    _check_target(to)
    columns = _read(data, own)
    from w2s_fast.pipeline.exported import load_exported

    model = load_exported(user_path(own["model"], "--model"))
    probs = model.predict(columns["text"], columns.get("text_pair"))
    labels = [model.class_names[i] for i in probs.argmax(1)]
    _write(to, {**columns, "label": labels, "probs": probs.tolist()})
    print(f"predictions  {to}")
    return 0


def _check_target(to: Path) -> None:
    if to.suffix not in _FORMATS:
        raise W2SError(f"--to is {str(to)!r}; expected a name that ends in .parquet or .jsonl")
    if to.exists():
        raise W2SError(f"--to is {str(to)!r}, which exists; name a new file")
    if not to.parent.is_dir():
        raise W2SError(f"--to is {str(to)!r}; its folder does not exist, make it first")


def _read(path: Path, own: dict[str, str]) -> dict[str, list[str]]:
    """Return the columns id, text and, if it is named, text_pair."""
    from w2s_fast.tasks._files import column, read_table

    table, columns = read_table(path), {}
    options = {
        "id": own.get("id"),
        "text": own.get("text", "text"),
        "text_pair": own.get("text-pair"),
    }
    for key, name in options.items():
        if name is not None:
            option = f"--{key.replace('_', '-')}"
            columns[key] = _texts(column(table, name, option, path), name, option, path)
    columns.setdefault("id", [str(i) for i in range(table.num_rows)])
    return {key: columns[key] for key in options if key in columns}


def _texts(cells: Sequence[Any], name: str, option: str, path: Path) -> list[str]:
    from w2s_fast.tasks._columns import is_missing
    from w2s_fast.tasks._files import text_cell

    values = [
        text_cell(cell, f"{path}: row {row + 1} of column {name!r} ({option})")
        for row, cell in enumerate(cells)
    ]
    if missing := [row for row, value in enumerate(values) if is_missing(value)]:
        raise W2SError(
            f"{path}: {len(missing)} of {len(values)} rows have no value in column {name!r} "
            f"({option}), the first is row {missing[0] + 1}; fill or remove them"
        )
    return [str(value) for value in values]


def _write(to: Path, columns: dict[str, Any]) -> None:
    """Write the file whole or not at all: a half would be in the way of the next try."""
    from w2s_fast.files import explain_write_errors, write_bytes

    data = _as_jsonl(columns) if to.suffix == ".jsonl" else _as_parquet(columns)
    with explain_write_errors("the predictions", to.absolute().parent):
        write_bytes(to, data)


def _as_jsonl(columns: dict[str, Any]) -> bytes:
    rows = (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _as_parquet(columns: dict[str, Any]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    size = len(columns["probs"][0])
    probs = pa.array(columns["probs"], pa.list_(pa.float32(), size))
    stream = pa.BufferOutputStream()
    pq.write_table(pa.table({**columns, "probs": probs}), stream)
    data: bytes = stream.getvalue().to_pybytes()
    return data
