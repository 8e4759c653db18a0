"""Files of generation tasks: samples of a model, and the labels that methods make of texts.

Samples have the columns ``id`` and ``texts`` (a list of n). Labels of a method have one row each
with ``row``, the item, and ``text``, or ``chosen``, ``rejected``, ``q`` and, where there are any,
``prefix``; the ids of all items are in the metadata, so that labels of another split are found out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from w2s_fast.errors import W2SError
from w2s_fast.files import content_hash, write_json
from w2s_fast.methods import PairLabels, Samples, TextLabels
from w2s_fast.pipeline.artifacts import (
    LABEL_REPORT,
    LABELS,
    part_name,
    read_rows_of,
    write_columns,
    write_table,
)

_IDS = b"ids"  # metadata: content hash of the ids of all items


def write_samples(path: Path, ids: Sequence[str], samples: Samples) -> None:
    """Write n completions of each item."""
    import pyarrow as pa

    write_columns(path, ids, {"texts": pa.array(samples, pa.list_(pa.string()))})


def read_samples(path: Path, ids: Sequence[str]) -> Samples:
    """Return the completions in the order of ``ids``, from a folder of parts.

    Raises:
        W2SError: The folder has other items.
    """
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    column = table["texts"].to_pylist()
    return [column[row] for row in read_rows_of(path, table["id"].to_pylist(), ids)]


def write_text_labels(folder: Path, ids: Sequence[str], labels: TextLabels | PairLabels) -> None:
    """Write the labels of a method and its report into the folder of a stage."""
    import pyarrow as pa

    columns: dict[str, Any] = {"row": pa.array(labels.rows, pa.int64())}
    if isinstance(labels, PairLabels):
        for name in ("chosen", "rejected"):
            columns[name] = pa.array(list(getattr(labels, name)), pa.string())
        columns["q"] = pa.array(labels.soft[:, 0], pa.float32())
        if labels.prefixes is not None:
            columns["prefix"] = pa.array(list(labels.prefixes), pa.string())
    else:
        columns["text"] = pa.array(list(labels.texts), pa.string())
    (folder / LABELS).mkdir()
    table = pa.table(columns, metadata={_IDS: content_hash(list(ids))})
    write_table(folder / LABELS / part_name(0), table)
    write_json(folder / LABEL_REPORT, dict(labels.report))


def read_text_labels(folder: Path, ids: Sequence[str]) -> TextLabels | PairLabels:
    """Return the labels of a folder that ``write_text_labels`` has written, without the report.

    Raises:
        W2SError: They were made of other items.
    """
    import pyarrow.parquet as pq

    table = pq.read_table(folder / LABELS / part_name(0))
    metadata: Mapping[bytes, bytes] = table.schema.metadata
    if metadata[_IDS].decode() != content_hash(list(ids)):
        raise W2SError(
            f"{folder} has labels of other items than the {len(ids)} of this run; remove its "
            "folder and run again"
        )
    rows = table["row"].to_numpy().astype(np.int64)
    if "text" in table.column_names:
        return TextLabels(rows=rows, texts=table["text"].to_pylist())
    q = table["q"].to_numpy().astype(np.float32)
    chosen, rejected = table["chosen"].to_pylist(), table["rejected"].to_pylist()
    prefixes = table["prefix"].to_pylist() if "prefix" in table.column_names else None
    return PairLabels(rows=rows, chosen=chosen, rejected=rejected, q=q, prefixes=prefixes)
