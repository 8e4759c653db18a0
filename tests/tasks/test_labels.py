"""Labels have one spelling for all formats, and an order that depends on nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from decimal import Decimal
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from helpers.task_data import all_columns, fails, local_config, write_rows

from w2s_fast.errors import DataWarning
from w2s_fast.tasks import get_task
from w2s_fast.tasks._labels import ordered

load = get_task("local").load


def rows(labels: list[object], start: int = 0) -> list[dict[str, object]]:
    """60 rows with these labels in turn."""
    numbers = range(start, start + 60)
    return [{"text": f"item {i}", "label": labels[i % len(labels)]} for i in numbers]


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["1.0", "0", "1", "0.0", "+1", "-0"], ("0", "1")),
        (["+1", "-1", "1.", "-1.0"], ("-1", "1")),
        (["True", "false", "true", "FALSE"], ("False", "True")),
        (["true", "half-true"], ("half-true", "true")),
        (["1.5", "2.0", "2"], ("1.5", "2")),
        (["01", "02"], ("01", "02")),
    ],
)
def test_spellings_of_one_class(
    tmp_path: Path, labels: list[object], classes: tuple[str, ...]
) -> None:
    path = write_rows(tmp_path / "a.csv", rows(labels))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load(local_config(path, balance=False), 0).class_names == classes
        declared = local_config(path, balance=False, classes=tuple(map(str, labels[:2][::-1])))
        assert set(load(declared, 0).class_names) == set(classes)


@pytest.mark.parametrize("values", [[0, 1], [0.0, 1.0], [False, True], ["0", "+1"]])
def test_all_formats_give_the_same_classes(tmp_path: Path, values: list[object]) -> None:
    paths = [write_rows(tmp_path / f"a{s}", rows(values)) for s in (".csv", ".jsonl", ".parquet")]
    first, *others = (load(local_config(path), 0) for path in paths)
    for data in others:
        assert data.class_names == first.class_names
        assert all_columns(data) == all_columns(first)


def test_two_files_may_spell_a_class_differently(tmp_path: Path) -> None:
    train = write_rows(tmp_path / "train.csv", rows(["+1", "-1"]))
    test = write_rows(tmp_path / "test.jsonl", rows([1, -1.0], start=60))
    data = load(local_config(train, test_path=str(test)), 0)
    assert data.class_names == ("-1", "1")
    yes = write_rows(tmp_path / "yes.csv", rows(["true", "false"]))
    no = write_rows(tmp_path / "no.jsonl", rows([True, False], start=60))
    assert load(local_config(yes, test_path=str(no)), 0).class_names == ("False", "True")


def test_fixed_point_labels_and_labels_in_bytes(tmp_path: Path) -> None:
    texts = pyarrow.array([f"t {i}" for i in range(40)])
    for name, labels in (
        (
            "decimal",
            pyarrow.array([Decimal(f"{i % 2}.00") for i in range(40)]),
        ),
        ("binary", pyarrow.array([b"%d" % (i % 2) for i in range(40)])),
    ):
        path = tmp_path / f"{name}.parquet"
        pyarrow.parquet.write_table(pyarrow.table({"text": texts, "label": labels}), path)
        assert load(local_config(path), 0).class_names == ("0", "1")


def test_two_names_of_one_declared_class(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.csv", rows(["0", "1"]))
    fails(lambda: load(local_config(path, classes=("1", "1.0")), 0), "task.classes", "both '1'")


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (["Positive", "positive", "negative"], "'Positive' (20 rows) and 'positive' (20 rows)"),
        (["1", "01", "2"], "'01' (20 rows) and '1' (20 rows)"),
        (["a  b", "a b", "c"], "'a  b' (20 rows) and 'a b' (20 rows)"),
        (["neg", "neg\u200b", "pos"], r"'neg' (20 rows) and 'neg\u200b' (20 rows)"),
        (["neg", "\ufeffneg", "pos"], r"'neg' (20 rows) and '\ufeffneg' (20 rows)"),
        (["so\xadso", "soso", "pos"], r"'soso' (20 rows) and 'so\xadso' (20 rows)"),
        (["a \u200eb", "a b", "c"], r"'a b' (20 rows) and 'a \u200eb' (20 rows)"),
        (["1\u2060", "01", "2"], r"'01' (20 rows) and '1\u2060' (20 rows)"),
        (["neg\0", "neg", "pos"], r"'neg' (20 rows) and 'neg\x00' (20 rows)"),
        (["\u2764", "\u2764\ufe0f", "\u2639"], r"\ufe0f' (20 rows)"),
    ],
)
def test_classes_that_differ_in_form_only(tmp_path: Path, labels: list[object], words: str) -> None:
    path = write_rows(tmp_path / "a.csv", rows(labels))
    with pytest.warns(DataWarning) as caught:
        assert len(load(local_config(path), 0).class_names) == 3
    (message,) = (str(w.message) for w in caught)
    assert words in message and "differ only in case or format, or in characters" in message
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(local_config(path, classes=tuple(map(str, labels))), 0)  # the user wants both


def test_the_order_of_classes_is_total() -> None:
    assert ordered({"1", "01", "00001", "2"}) == ("00001", "01", "1", "2")
    code = "from w2s_fast.tasks._labels import ordered; print(ordered({'1', '01', '001', '2'}))"
    seen = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in range(3)
    }
    assert len(seen) == 1
