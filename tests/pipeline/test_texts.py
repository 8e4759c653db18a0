"""Texts that no file, tokenizer or terminal can hold end in one line, wherever they come from."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from helpers.task_data import fails, local_config
from helpers.toy_run import config

from w2s_fast.cli import main as cli
from w2s_fast.config import RunConfig, field_types, from_dict, to_dict, validate
from w2s_fast.errors import W2SError, terminal_line
from w2s_fast.pipeline.context import load_data
from w2s_fast.tasks import Examples, TaskConfig, TaskData, get_task
from w2s_fast.tasks._check import MAX_CLASS_NAME

HALF = "a \ud800 b"
SIZES = {"n_weak": 4, "n_transfer": 4, "n_test": 4}


class Own:
    """A task of the user, whose values come from anywhere."""

    def __init__(self, **changes: Any) -> None:
        self.changes = changes

    def load(self, cfg: TaskConfig, seed: int) -> TaskData:
        def split(name: str) -> Examples:
            ids = tuple(f"{name}{i}" for i in range(4))
            plain = {"ids": ids, "texts": ids, "pairs": None, "groups": ids, "answers": None}
            own = {k: v for k, v in self.changes.items() if k in plain}
            return Examples(**{**plain, **own}, labels=np.array([0, 1, 0, 1]))

        names = self.changes.get("class_names", ("no", "yes"))
        return TaskData("own", names, split("weak"), split("transfer"), split("test"))


@pytest.mark.parametrize("column", ["ids", "texts", "pairs", "answers", "groups"])
@pytest.mark.parametrize(
    ("value", "words"), [(HALF, "surrogate pair"), (7, "is a int"), (b"x", "is a bytes")]
)
def test_a_value_that_is_no_text_is_named(
    column: str, value: Any, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = type(sys)("own_texts")
    module.task = Own(**{column: ("a", "b", value, "d")})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "own_texts", module)
    cfg = TaskConfig(name="own_texts:task", **SIZES)
    fails(lambda: load_data(cfg, 0), "task 'own'", f"value 3 of the {column} of split weak", words)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("x" * (MAX_CLASS_NAME + 1), "has 201 characters"),
        ("a\0b", "has a NUL"),
        (HALF, "surrogate pair"),
    ],
)
def test_a_class_name_that_is_none_is_named(
    name: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = type(sys)("own_texts")
    module.task = Own(class_names=("no", name))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "own_texts", module)
    cfg = TaskConfig(name="own_texts:task", **SIZES)
    fails(lambda: load_data(cfg, 0), "class name", words)


def test_a_column_of_texts_is_no_column_of_classes(tmp_path: Path) -> None:
    rows = [{"text": f"t{i}", "label": ("long " * 100, "b")[i % 2]} for i in range(40)]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    fails(lambda: load_data(local_config(path), 0), "value 2 of the class names", "which column")


def test_parquet_strings_that_are_no_utf8_are_refused(tmp_path: Path) -> None:
    texts = pyarrow.array([f"t{i} \xe9".encode("latin-1") for i in range(40)], pyarrow.binary())
    buffers = texts.buffers()
    strings = pyarrow.Array.from_buffers(pyarrow.string(), 40, buffers)
    path = tmp_path / "a.parquet"
    table = pyarrow.table({"text": strings, "label": [i % 2 for i in range(40)]})
    pyarrow.parquet.write_table(table, path)
    fails(lambda: get_task("local").load(local_config(path), 0), "a.parquet", "UTF8", "repair")


def _text_settings() -> list[str]:
    return [name for name, kind in field_types().items() if "str" in str(kind)]


@pytest.mark.parametrize("name", _text_settings())
@pytest.mark.parametrize("value", ["a\0b", HALF, "x" * 100_001], ids=["nul", "half", "long"])
def test_no_setting_takes_what_no_file_holds(name: str, value: str) -> None:
    values = to_dict(RunConfig())
    block: dict[str, Any] = values
    *blocks, leaf = name.split(".")
    for part in blocks:
        block = block[part]
    block[leaf] = [value] if "tuple" in str(field_types()[name]) else value
    with pytest.raises(W2SError) as caught:
        from_dict(values)
    line = terminal_line(caught.value)
    assert name in line and len(line) < 2100 and line.isprintable()


def test_settings_given_in_python_are_checked_too(tmp_path: Path) -> None:
    cfg = dataclasses.replace(RunConfig(), output_dir=str(tmp_path / HALF))
    fails(lambda: validate(cfg), "output_dir=", "no UTF-8")


@pytest.mark.parametrize("length", [5_000, 90_000])
@pytest.mark.parametrize("name", ["task.path", "task.test_path", "weak.source", "student.source",
                                  "output_dir", "cache_dir", "task.text", "task.name"])  # fmt: skip
def test_a_long_name_is_one_line_before_compute(
    name: str, length: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,label\n" + "".join(f"t{i},{i % 2}\n" for i in range(40)))
    cfg = config(tmp_path / "out")
    cfg = dataclasses.replace(cfg, task=local_config(path, test_path=str(path)))
    (tmp_path / "run.yaml").write_text(json.dumps(to_dict(cfg)))
    args = ["run", "--config", str(tmp_path / "run.yaml"), f"--{name}", "x" * length, "--quiet"]
    assert cli.main(args) == cli.USER_ERROR
    error = capsys.readouterr().err
    assert error.startswith("w2s-fast: error: ") and error.count("\n") == 1 and len(error) < 2200


def test_an_error_line_shows_no_control_characters() -> None:
    line = terminal_line("bad\x1b[31m value\r\n of\0 " + "x" * 9000 + " fix it")
    assert line.startswith("bad\\x1b[31m value of\\x00 x") and line.endswith("fix it")
    assert line.isprintable() and len(line) < 2100
    assert terminal_line("Größe 漢字 – fine") == "Größe 漢字 – fine"
