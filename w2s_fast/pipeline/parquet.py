"""What a model said of every item as Parquet: weak labels and test predictions alike.

Two columns: ``id`` (string) and ``probs`` (fixed-size list of C float32), or ``text`` where answers
are words; labels that a method made may have a third, ``weight`` (float32). The same values give
the same bytes, so equal runs have equal files.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from w2s_fast.errors import W2SError


def write_probs(
    path: Path, ids: Sequence[str], probs: np.ndarray, weight: np.ndarray | None = None
) -> None:
    """Write ``probs`` (N, C), and row weights (N,) if there are any, under ``ids`` (N).

    Raises:
        W2SError: A value is NaN or infinite, or the sizes differ.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    _check(probs, ids, str(path.name))
    flat = pa.array(np.ascontiguousarray(probs, dtype=np.float32).ravel())
    columns = {
        "id": pa.array(list(ids), pa.string()),
        "probs": pa.FixedSizeListArray.from_arrays(flat, probs.shape[1]),
    }
    if weight is not None:
        columns["weight"] = pa.array(np.asarray(weight, dtype=np.float32))
    temporary = path.with_name(f".{path.name}")
    pq.write_table(pa.table(columns), temporary, compression="none")
    os.replace(temporary, path)


def write_texts(path: Path, ids: Sequence[str], texts: Sequence[str]) -> None:
    """Write one text an item: columns ``id`` and ``text``."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {"id": pa.array(list(ids), pa.string()), "text": pa.array(list(texts), pa.string())}
    temporary = path.with_name(f".{path.name}")
    pq.write_table(pa.table(columns), temporary, compression="none")
    os.replace(temporary, path)


def read_texts(path: Path, ids: Sequence[str]) -> list[str]:
    """Return the texts of ``write_texts`` in the order of ``ids``.

    Raises:
        W2SError: The file has other items.
    """
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    rows = _rows(path, table["id"].to_pylist(), ids)
    texts = table["text"].to_pylist()
    return [texts[i] for i in rows]


def read_all_texts(path: Path) -> dict[str, str]:
    """Return every text of ``write_texts`` by its id, from a file or a folder of them."""
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    return dict(zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True))


def is_whole(path: Path, ids: Sequence[str]) -> bool:
    """Whether a file of ``write_probs`` is there with just these items."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(path, columns=["id"])["id"].to_pylist() == list(ids)
    except (OSError, KeyError, pa.ArrowException):
        return False


def read_probs(path: Path, ids: Sequence[str], n_classes: int) -> np.ndarray:
    """Return (N, C) float32 in the order of ``ids``, from a file or a folder of them.

    Raises:
        W2SError: The file has other items, another number of classes, or NaN.
    """
    return read_labels(path, ids, n_classes)[0]


def read_labels(
    path: Path, ids: Sequence[str], n_classes: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return ``read_probs`` and the row weights (N,), None where the file has none."""
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    order = _rows(path, table["id"].to_pylist(), ids)
    width = table.schema.field("probs").type.list_size
    if width != n_classes:
        raise W2SError(f"{path} has {width} classes, the task {n_classes}; relabel with this task")
    flat = table["probs"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    probs = flat.reshape(-1, width)[order]
    _check(probs, ids, str(path))
    if "weight" not in table.column_names:
        return probs, None
    return probs, table["weight"].to_numpy()[order]


def _rows(path: Path, found: Sequence[str], ids: Sequence[str]) -> list[int]:
    """Position of each of ``ids`` among the items of a file."""
    rows = {key: row for row, key in enumerate(found)}
    missing = [key for key in ids if key not in rows]
    if missing or len(rows) != len(ids):
        raise W2SError(
            f"{path} has {len(rows)} items where {len(ids)} were expected"
            f"{f', {len(missing)} of them absent, first {missing[0]!r}' if missing else ''}; "
            "remove its folder and run again"
        )
    return [rows[key] for key in ids]


def _check(probs: np.ndarray, ids: Sequence[str], name: str) -> None:
    if probs.ndim != 2 or len(probs) != len(ids):
        raise W2SError(f"{name}: probabilities of shape {probs.shape} for {len(ids)} items")
    bad = np.flatnonzero(~np.isfinite(probs).all(1))
    if len(bad):
        raise W2SError(
            f"{name}: {len(bad)} of {len(ids)} items have NaN probabilities (first id "
            f"{ids[bad[0]]!r}): the model diverged; lower its learning rate or check its inputs"
        )
