"""Weak labels for people and other programs: the text and the class name beside every probability.

The stored stage has ids and probabilities alone, so that other names of the classes do not change
it; ``w2s-fast label`` writes these files from it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from w2s_fast.tasks import TaskData

if TYPE_CHECKING:
    import pyarrow


def write_label_files(stored: Path, data: TaskData, folder: Path) -> None:
    """Write the weak labels of the transfer set as Parquet files, a file per stored part.

    Columns: ``id``, ``text`` and, where the task has one, ``text_pair``; then ``label`` (name of
    the most likely class), ``probs`` (C float32) and, where rows differ in it, ``weight``
    (float32); or ``completion`` for generation tasks. Equal labels give equal bytes.

    Args:
        stored: Folder of the stored parts.
        data: The task that was labelled.
        folder: Destination; what it holds is replaced.
    """
    import pyarrow.parquet as pq

    temporary = folder.with_name(f".{folder.name}")
    if temporary.is_symlink():
        temporary.unlink()  # what it leads to is not touched
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    row_of = {key: row for row, key in enumerate(data.transfer.ids)}
    for part in sorted(stored.iterdir()):
        table = _with_texts(pq.read_table(part), data, row_of)
        pq.write_table(table, temporary / part.name, compression="none")
    if folder.is_dir() and not folder.is_symlink():
        shutil.rmtree(folder)
    os.replace(temporary, folder)


def _with_texts(table: pyarrow.Table, data: TaskData, row_of: Mapping[str, int]) -> pyarrow.Table:
    import numpy as np
    import pyarrow as pa

    ids = table["id"].to_pylist()
    items = data.transfer.take([row_of[key] for key in ids])
    columns: dict[str, Any] = {"id": ids, "text": pa.array(items.texts, pa.string())}
    if items.pairs is not None:
        columns["text_pair"] = pa.array(items.pairs, pa.string())
    if data.kind == "generation":
        columns["completion"] = table["text"]
    else:
        classes = np.array(table["probs"].to_pylist()).argmax(1)
        columns["label"] = [data.class_names[c] for c in classes]
        columns["probs"] = table["probs"]
        if "weight" in table.column_names:
            columns["weight"] = table["weight"]
    return pa.table(columns)
