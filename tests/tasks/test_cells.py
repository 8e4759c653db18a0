"""Cells that are no text: bytes are decoded, structures are refused by row and type."""

from __future__ import annotations

from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from helpers.task_data import HUB_TASKS, all_columns, fails, local_config, write_rows

from w2s_fast.tasks import TaskConfig, get_task
from w2s_fast.tasks._files import read_table


def parquet(path: Path, **columns: list[object]) -> Path:
    """Write columns, all of the same length."""
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


def test_bytes_are_text(tmp_path: Path) -> None:
    texts = [f"café {i}" for i in range(40)]
    labels: list[object] = [i % 2 for i in range(40)]
    docs = [f"d{i // 2}" for i in range(40)]
    plain = parquet(tmp_path / "a.parquet", text=[*texts], label=labels, doc=[*docs])
    coded = parquet(
        tmp_path / "b.parquet",
        text=[t.encode() for t in texts],
        label=labels,
        doc=[d.encode() for d in docs],
    )
    one, two = (get_task("local").load(local_config(p, group="doc"), 0) for p in (plain, coded))
    assert all_columns(one) == all_columns(two)


@pytest.mark.parametrize(
    ("task", "columns"),
    [
        ("local", {"text": "text", "label": "label", "group": "doc"}),
        ("pairs", {"text": "prompt", "chosen": "chosen", "rejected": "rejected"}),
        ("local_answers", {"text": "prompt", "label": "answer"}),
        ("wts_safety", {"text": "prompt", "label": "is_safe"}),
    ],
)
@pytest.mark.parametrize("bad", [["a", "b"], {"role": "user"}])
def test_structures_are_refused(
    tmp_path: Path, task: str, columns: dict[str, str], bad: object
) -> None:
    for key, name in columns.items():
        rows: list[dict[str, object]] = [
            {c: bad if c == name else f"{c} {i}" for c in columns.values()} for i in range(40)
        ]
        path = write_rows(tmp_path / f"{task}-{key}.jsonl", rows)
        cfg = local_config(path, name=task, **({"group": "doc"} if "group" in columns else {}))
        kind = type(bad).__name__
        fails(
            lambda cfg=cfg: get_task(task).load(cfg, 0),
            f"row 1 of column '{name}' (task.{key}) is a {kind}", "expected text",
        )  # fmt: skip


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    texts: list[object] = [f"t {i}".encode() for i in range(40)]
    texts[6] = b"na\xefve"
    path = parquet(tmp_path / "a.parquet", text=texts, label=[i % 2 for i in range(40)])
    fails(
        lambda: get_task("local").load(local_config(path), 0),
        "row 7 of column 'text' (task.text) is not utf-8", "task.encoding=latin-1",
    )  # fmt: skip


def test_local_copies_of_hub_sets_hold_bytes_too(tmp_path: Path) -> None:
    """Labels of a float column too."""
    for split in ("train", "validation", "test"):
        parquet(
            tmp_path / f"{split}.parquet",
            sentence=[f"{split} {i}".encode() for i in range(60)],
            label=[float(i % 2) for i in range(60)],
        )
    data = HUB_TASKS["sst2"].load(
        TaskConfig(name="sst2", path=str(tmp_path), n_weak=8, n_transfer=8, n_test=8), 0
    )
    assert data.weak.texts[0].startswith("train ")


def test_texts_that_look_like_dates_stay_as_they_are(tmp_path: Path) -> None:
    """Within lists and objects too, whatever else these hold."""
    day = "2049-01-01"
    row = {
        "top": day,
        "choices": {"text": [day, f"{day}T10:00:00Z"], "label": None, "n": 3},
        "turns": [{"when": day, "marks": [[day], []]}, {"when": None, "marks": []}],
    }
    path = write_rows(tmp_path / "a.jsonl", [row] * 3)
    assert read_table(path).to_pylist() == [row] * 3
