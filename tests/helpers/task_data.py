"""What the tests of tasks share: rows, files, and the checks that every task passes."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from w2s_fast.errors import W2SError
from w2s_fast.tasks import TASKS, Examples, TaskConfig, TaskData
from w2s_fast.tasks._hub import HubTask

HUB_TASKS = {name: task for name, task in TASKS.items() if isinstance(task, HubTask)}
SMALL = {"n_weak": 8, "n_transfer": 12, "n_test": 10}


def numbered_rows(n: int, start: int = 0) -> list[dict[str, object]]:
    """n rows with alternating labels; three rows in a row share a document."""
    numbers = range(start, start + n)
    return [{"text": f"item {i}", "label": i % 2, "doc": f"d{i // 3}"} for i in numbers]


def write_rows(path: Path, rows: list[dict[str, object]]) -> Path:
    """Write rows in the format of the suffix."""
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        mark = "," if path.suffix == ".csv" else "\t"
        lines = [list(rows[0])] + [[str(value) for value in row.values()] for row in rows]
        path.write_text("\n".join(mark.join(line) for line in lines) + "\n")
    return path


def local_config(path: Path, **options: object) -> TaskConfig:
    return TaskConfig(**{"name": "local", "path": str(path), **SMALL, **options})  # type: ignore[arg-type]


def all_columns(data: TaskData) -> list[object]:
    parts = (data.weak, data.transfer, data.test)
    return [(p.ids, p.texts, p.pairs, p.labels.tolist(), p.groups, p.answers) for p in parts]


def check_schema(data: TaskData, cfg: TaskConfig) -> None:
    parts = (data.weak, data.transfer, data.test)
    assert [len(part) for part in parts] == [cfg.n_weak, cfg.n_transfer, cfg.n_test]
    for part in parts:
        assert len(part.texts) == len(part.groups) == len(part.labels) == len(part)
        assert part.labels.dtype == np.int64
        assert part.pairs is None or len(part.pairs) == len(part)
        _check_gold(data, part, cfg)
    assert "{text}" in data.prompt and ("{pair}" in data.prompt) == (data.kind == "preference")
    assert len(data.words) in (0, len(data.class_names)) and len(set(data.words)) == len(data.words)
    ids = [i for part in parts for i in part.ids]
    assert len(set(ids)) == len(ids)
    for one, two in ((0, 1), (0, 2), (1, 2)):
        assert not set(parts[one].groups) & set(parts[two].groups)
        assert not set(parts[one].texts) & set(parts[two].texts)


def _check_gold(data: TaskData, part: Examples, cfg: TaskConfig) -> None:
    """Both classes occur, balanced; or every row has an answer that the task can read."""
    counts = Counter(part.labels.tolist())
    if data.kind == "generation":
        assert data.read is not None and part.answers is not None and set(counts) == {0}
        assert all(data.agree(answer, answer) for answer in part.answers)
        return
    assert part.answers is None and (part.pairs is not None) >= (data.kind == "preference")
    assert set(counts) == set(range(len(data.class_names)))
    if cfg.balance:
        assert max(counts.values()) - min(counts.values()) <= 1


def fails(call: object, *words: str) -> None:
    """The call raises one line that contains all words."""
    with pytest.raises(W2SError) as caught:
        call()  # type: ignore[operator]
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


def many_like(task: HubTask, n: int, mark: str) -> list[dict[str, object]]:
    """n rows like the samples, all of them different and in groups of their own."""
    fixed = ("label", "answer", "answerKey")  # what says which class a row has
    rows = []
    for i in range(n):
        row = task.samples[i % len(task.samples)]
        marked = {k for k, v in row.items() if isinstance(v, str) and k not in fixed}
        new: dict[str, object] = {k: f"{mark}{i} {v}" if k in marked else v for k, v in row.items()}
        if task.name == "dream":
            new["dialogue"] = [f"{mark}{i}", *row["dialogue"]]
        rows.append(new)
    return rows
