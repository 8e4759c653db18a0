"""Files that stages write and later stages read: their names, and the Parquet format.

Labels and predictions have the columns ``id`` (string) and ``probs`` (fixed-size list of C
float32); labels that a method made may have ``weight`` (float32) as well. Votes have ``id`` and
``votes`` (fixed-size list of int16, -1 for an abstention). Transcripts and the completions of
generation tasks have ``id`` and ``text``. Equal values give equal bytes, so equal
runs write equal files.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from w2s_fast.errors import W2SError

LABELS = "labels"  # folder: labels of a split, see ``part_name``
VOTES = "votes.parquet"  # votes of weak supervisors for a split, see ``write_votes``
GATE = "gate.json"  # the supervisors that a gate has selected
SUPERVISORS = "supervisors.json"  # what a label model knows of its supervisors
TRANSCRIPTS = "transcripts"  # folder: one transcript per text, in the same parts
SAMPLES = "samples"  # folder: n completions per prompt, in parts
LABEL_REPORT = "labels.json"  # what a method made of every item, see ``write_text_labels``
PERPLEXITY = "perplexity.npy"  # perplexities (R,) of completions under a student
PAIR_LOGPROB = "pair_logprob.npy"  # log-probabilities (R, 2) of pairs under a model
MODEL = "model.safetensors"  # trained weights
TOKENIZER = "tokenizer"  # folder: a tokenizer that transformers loads
PRETRAINED = "model"  # folder: a language model that transformers loads
FEATURES = "features.safetensors"  # cached hidden states
BALANCE = "balance.npy"  # class balance of the true labels
TEST = "test.parquet"  # predictions of the test items
OOD = "ood.parquet"  # predictions of the out-of-distribution test items
LOG = "log.json"  # loss and metrics of every step
TRAJECTORY = "trajectory.npy"  # predictions of the transfer set during a training
SWEEP = "interpolation.npy"  # test predictions (K, N, C) at every coefficient
CALIBRATION = "calibration.json"  # calibrator of the weak labels, and its scores
TRUST = "trust.npy"  # P(label right) of the transfer set
TRUST_SCORES = "trust.json"  # scores of the trust model on the weak split
BOOSTING_ROWS = "boosting_rows.npy"  # weights of the rows of the weak split, for its next model
BOOSTING_VOTE = "boosting_vote.npy"  # vote (1,) of a weak model
OVERLAP = "overlap.json"  # overlap density of the transfer set
CARD = "card.json"  # record of stage `supervisor_card`
FIT = "fit"  # folder: predictions of training texts during a training, see ``write_fit``
REPORT = "scores.json"  # results.json without ``failed`` and ``provenance``


def part_name(number: int) -> str:
    """Return the file name of one part of a folder of labels or transcripts."""
    return f"part-{number:05d}.parquet"


def write_probs(
    path: Path, ids: Sequence[str], probs: np.ndarray, weight: np.ndarray | None = None
) -> None:
    """Write probabilities (N, C), and row weights (N,) if there are any, under ``ids`` (N).

    Raises:
        W2SError: A value is NaN or infinite, or the sizes differ.
    """
    import pyarrow as pa

    _check(probs, ids, str(path.name))
    flat = pa.array(np.ascontiguousarray(probs, dtype=np.float32).ravel())
    columns = {"probs": pa.FixedSizeListArray.from_arrays(flat, probs.shape[1])}
    if weight is not None:
        columns["weight"] = pa.array(np.asarray(weight, dtype=np.float32))
    write_columns(path, ids, columns)


def write_votes(path: Path, ids: Sequence[str], names: Sequence[str], votes: np.ndarray) -> None:
    """Write votes (N, m) under ``ids`` (N), and the names (m) of those who cast them."""
    import pyarrow as pa

    flat = pa.array(np.ascontiguousarray(votes, dtype=np.int16).ravel())
    column = pa.FixedSizeListArray.from_arrays(flat, len(names))
    write_columns(path, ids, {"votes": column}, {"names": json.dumps(list(names))})


def read_votes(path: Path, ids: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Return names (m) and votes (N, m) int16 in the order of ``ids``.

    Raises:
        W2SError: The file has other items.
    """
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    names = json.loads(table.schema.metadata[b"names"])
    order = read_rows_of(path, table["id"].to_pylist(), ids)
    flat = table["votes"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return names, flat.reshape(-1, len(names))[order]


def write_texts(path: Path, ids: Sequence[str], texts: Sequence[str]) -> None:
    """Write one text per item."""
    import pyarrow as pa

    write_columns(path, ids, {"text": pa.array(list(texts), pa.string())})


def write_columns(
    path: Path, ids: Sequence[str], columns: dict[str, Any], facts: dict[str, str] | None = None
) -> None:
    """Write columns beside the ids of their rows."""
    import pyarrow as pa

    ids_column = {"id": pa.array(list(ids), pa.string())}
    write_table(path, pa.table(ids_column | columns, metadata=facts))


def write_table(path: Path, table: Any) -> None:
    """Write a table of pyarrow as a Parquet file, whole or not at all."""
    import pyarrow.parquet as pq

    temporary = path.with_name(f".{path.name}")
    pq.write_table(table, temporary, compression="none")
    os.replace(temporary, path)


def read_probs(path: Path, ids: Sequence[str], n_classes: int) -> np.ndarray:
    """Return (N, C) float32 in the order of ``ids``, from a file or a folder of parts.

    Raises:
        W2SError: The file has other items, another number of classes, or NaN.
    """
    return read_weighted_probs(path, ids, n_classes)[0]


def read_weighted_probs(
    path: Path, ids: Sequence[str], n_classes: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return ``read_probs`` and the row weights (N,), None if the file has none."""
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    order = read_rows_of(path, table["id"].to_pylist(), ids)
    width = table.schema.field("probs").type.list_size
    if width != n_classes:
        raise W2SError(f"{path} has {width} classes, the task {n_classes}; relabel with this task")
    flat = table["probs"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    probs = flat.reshape(-1, width)[order]
    _check(probs, ids, str(path))
    if "weight" not in table.column_names:
        return probs, None
    return probs, table["weight"].to_numpy()[order]


def write_fit(
    folder: Path, ids: Sequence[str], steps: Sequence[int], trajectory: np.ndarray
) -> None:
    """Write predictions (K, N, C) of N items at K steps of a training, a file per step."""
    folder.mkdir()
    for step, probs in zip(steps, trajectory, strict=True):
        write_probs(folder / f"step-{step:08d}.parquet", ids, probs)


def read_fit(folder: Path, n_classes: int) -> tuple[list[int], list[str], np.ndarray]:
    """Return steps (K), ids (N) and predictions (K, N, C) of ``write_fit``."""
    import pyarrow.parquet as pq

    files = sorted(folder.iterdir())
    ids = pq.read_table(files[0], columns=["id"])["id"].to_pylist()
    steps = [int(file.stem.partition("-")[2]) for file in files]
    return steps, ids, np.stack([read_probs(file, ids, n_classes) for file in files])


def read_texts(path: Path, ids: Sequence[str] | None = None) -> dict[str, str]:
    """Return texts by id, in the order of ``ids``, from a file or a folder of parts.

    Args:
        path: File or folder of ``write_texts``.
        ids: The items it must have, no more and no fewer; None: whatever it has.

    Raises:
        W2SError: The file has other items.
    """
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    stored, texts = table["id"].to_pylist(), table["text"].to_pylist()
    if ids is None:
        return dict(zip(stored, texts, strict=True))
    return {stored[row]: texts[row] for row in read_rows_of(path, stored, ids)}


def read_rows_of(path: Path, stored: Sequence[str], ids: Sequence[str]) -> list[int]:
    """Return the position of each of ``ids`` among the items of a file."""
    rows = {key: row for row, key in enumerate(stored)}
    missing = [key for key in ids if key not in rows]
    if missing or len(stored) != len(ids):
        raise W2SError(
            f"{path} has {len(stored)} items where {len(ids)} were expected"
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
