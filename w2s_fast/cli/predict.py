"""``w2s-fast predict``: class probabilities of new texts by an exported model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from w2s_fast.cli.parse import asks_for_help, take_options
from w2s_fast.cli.table_options import FORMAT_OPTIONS, FORMAT_USAGE, table_format, truth_option
from w2s_fast.errors import W2SError
from w2s_fast.paths import user_path

USAGE = f"""usage: w2s-fast predict --model FOLDER --data FILE --to FILE [options]

Reads texts (CSV, TSV, JSONL or Parquet) and writes the class probabilities of an exported model:
id, text, label (the most likely class) and probs, in the form of weak labels.

  --model FOLDER      the exported model
  --data FILE         the texts
  --to FILE           .parquet or .jsonl; must not exist
  --text COLUMN       the text (default: text); of a reward model, the first dialogue
  --text-pair COLUMN  the second text, where the model was trained on two
  --id COLUMN         identifiers (default: numbers from 0)
{FORMAT_USAGE}\
  --header BOOL       whether the first row names the columns (default: true, unless all columns
                      are given by their position: 0, 1, ...)
"""
_VALUES = ("model", "data", "to", "text", "text-pair", "id", *FORMAT_OPTIONS, "header")
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
    from w2s_fast.comparison.table_format import option_names
    from w2s_fast.tasks import TaskConfig
    from w2s_fast.tasks._columns import read_columns, texts

    form, header = table_format(own), truth_option(own, "header")
    refs = {"text": own.get("text", "text")}
    refs |= {key.replace("-", "_"): own[key] for key in ("id", "text-pair") if key in own}
    with option_names():
        cells = read_columns(path, refs, TaskConfig(**asdict(form), header=header))
        columns = {key: texts(path, cells[key], key, name) for key, name in refs.items()}
    columns.setdefault("id", [str(i) for i in range(len(columns["text"]))])
    return {key: columns[key] for key in ("id", "text", "text_pair") if key in columns}


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
