"""The column of votes of a user's file."""

from __future__ import annotations

import json
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from w2s_fast.errors import W2SError
from w2s_fast.pipeline.context import load_data
from w2s_fast.tasks import TaskConfig, get_task

VOTES = [[1, -1, 0], [-1, -1, -1], [0, 0, 1], [1, 1, -1]]


def write_rows(path: Path, votes: list[Any], labels: tuple[str, str] = ("ham", "spam")) -> Path:
    rows = [
        {"text": f"text {i}", "label": labels[i % 2], "votes": votes[i % len(votes)]}
        for i in range(40)
    ]
    if path.suffix == ".parquet":
        columns = {key: [row[key] for row in rows] for key in rows[0]}
        pq.write_table(pa.table(columns), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        lines = [f"{r['text']}\t{r['label']}\t{' '.join(map(str, r['votes']))}" for r in rows]
        path.write_text("\n".join(["text\tlabel\tvotes", *lines]) + "\n")
    return path


def task(path: Path, **more: Any) -> TaskConfig:
    return TaskConfig(
        "local", path=str(path), votes="votes", n_weak=8, n_transfer=12, n_test=10, **more
    )


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "a.tsv"])
def test_votes_follow_their_rows(tmp_path: Path, name: str) -> None:
    cfg = task(write_rows(tmp_path / name, VOTES))
    data = get_task("local").load(cfg, seed=0)
    for split in data.splits.values():
        numbers = [int(text.split()[1]) for text in split.texts]
        assert split.votes is not None and split.votes.dtype == np.int16
        assert split.votes.tolist() == [VOTES[i % 4] for i in numbers]
        assert split.inputs.take([1, 0]).votes.tolist() == split.votes[[1, 0]].tolist()


def test_test_files_have_votes_too(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", VOTES)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    other = tmp_path / "b.jsonl"
    other.write_text(
        "".join(
            json.dumps({**r, "text": f"new {r['text']}", "votes": [1, 1, 1]}) + "\n" for r in rows
        )
    )
    data = get_task("local").load(task(path, test_path=str(other)), seed=0)
    assert data.test.votes.tolist() == [[1, 1, 1]] * 10  # type: ignore[union-attr]
    assert data.transfer.votes.min() == -1  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("labels", "votes", "expected"),
    [
        (("ham", "spam"), ["spam", None, "ham"], [1, -1, 0]),
        (("1", "2"), [1, 2, -1], [0, 1, -1]),  # numbers are classes, not positions
        (("0", "1"), ["1", "-1", "0"], [1, -1, 0]),
        (("0", "1"), [1.0, -1.0, 0.0], [1, -1, 0]),
        (("False", "True"), [True, None, False], [1, -1, 0]),
        (("false", "true"), ["true", "-1", "FALSE"], [1, -1, 0]),
        (("2020-01-01", "2020-01-02"), ["2020-01-02", None, "2020-01-01"], [1, -1, 0]),
    ],
)
def test_votes_are_spelled_as_labels(
    tmp_path: Path, labels: tuple[str, str], votes: list[Any], expected: list[int]
) -> None:
    cfg = task(write_rows(tmp_path / "a.jsonl", [votes], labels))
    assert get_task("local").load(cfg, seed=0).weak.votes.tolist() == [expected] * 8  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["a.tsv", "a.jsonl"])
def test_votes_for_truth_values_in_text(tmp_path: Path, name: str) -> None:
    """Labels are spelled "True" by then; a text file says true."""
    votes: list[Any] = [["true", "-1", "FALSE"]]
    cfg = task(write_rows(tmp_path / name, votes, ("false", "true")))
    assert get_task("local").load(cfg, seed=0).weak.votes.tolist() == [[1, -1, 0]] * 8  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "cells",
    [
        (b"caf\xc3\xa9", b"th\xc3\xa9"),
        (date(2020, 1, 1), date(2020, 1, 2)),
        (datetime(2020, 1, 1, 10), datetime(2020, 1, 2)),
        (Decimal("0.00"), Decimal("1.00")),
        (1e16, 2e16),
        (False, True),
    ],
)
def test_votes_of_every_type_that_labels_have(tmp_path: Path, cells: tuple[Any, Any]) -> None:
    path = tmp_path / "a.parquet"
    labels = [cells[i % 2] for i in range(40)]
    votes = [[cells[1], None, cells[0]]] * 40
    columns = {"text": [f"text {i}" for i in range(40)], "label": labels, "votes": votes}
    pq.write_table(pa.table(columns), path)
    assert get_task("local").load(task(path), seed=0).weak.votes.tolist() == [[1, -1, 0]] * 8  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("votes", "message"),
    [
        ([[1, 2]], r"row 1 of column 'votes' \(task.votes\) has the vote 2; expected one of"),
        ([["spm", "ham"]], "has the vote 'spm'.*did you mean 'spam'"),
        ([[1, 0], [1]], "row 2 of column 'votes' .* has 1 votes, the first row 2"),
        ([[]], r"is '\[\]'; expected a list"),
        ([None], "is 'None'; expected a list"),
        ([[[1], [0]]], "expected a list with the class"),
        (["[1, 0"], r"is '\[1, 0'; expected a list"),
        (["[" * 100_000], r"is '\[\[\[.*'; expected a list"),
    ],
)
def test_bad_votes_are_named(tmp_path: Path, votes: list[Any], message: str) -> None:
    cfg = task(write_rows(tmp_path / "a.jsonl", votes))
    with pytest.raises(W2SError, match=message):
        get_task("local").load(cfg, seed=0)


def test_votes_in_bytes_that_are_no_text(tmp_path: Path) -> None:
    cfg = task(write_rows(tmp_path / "a.parquet", [[b"caf\xe9", b"spam"]]))
    with pytest.raises(W2SError, match=r"row 1 of column 'votes' .* has the vote 'caf"):
        get_task("local").load(cfg, seed=0)


def test_a_class_that_is_minus_one_is_refused(tmp_path: Path) -> None:
    cfg = task(write_rows(tmp_path / "a.jsonl", VOTES, ("-1", "1")))
    with pytest.raises(W2SError, match="-1 is one of the classes .* and also abstains"):
        get_task("local").load(cfg, seed=0)


def test_other_tasks_do_not_read_votes() -> None:
    cfg = TaskConfig(votes="votes", n_weak=8, n_transfer=8, n_test=8)
    with pytest.raises(W2SError, match="task.votes='votes': task 'agreement' does not read"):
        load_data(cfg, 0)
