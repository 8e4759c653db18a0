"""Collator of tokens and weak targets for any trainer."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from w2s_fast.errors import W2SError, nearest
from w2s_fast.integrations.batches._arrays import is_missing, rows_of, tensor, to_tensors
from w2s_fast.integrations.batches._columns import (
    ROW_COLUMNS,
    TOKEN_COLUMNS,
    TOPK_COLUMNS,
    check_one_dimension,
    collate_row_column,
    collate_token_column,
    collate_topk_columns,
    padded,
)
from w2s_fast.integrations.batches._packing import (
    check_mask,
    check_packing_columns,
    drop_first_targets,
    positions_of,
    sequence_starts,
)

Row = Mapping[str, Any]
_OPTIONAL_COLUMNS = (*TOKEN_COLUMNS, *TOPK_COLUMNS, *ROW_COLUMNS)


@dataclass(frozen=True)
class WeakLabelCollator:
    """Collates rows to a batch: B rows, T tokens of the longest, K tokens with a probability each.

    A row is a mapping from column to value, or an Arrow or pandas table of one row. Values are
    lists or arrays of NumPy, torch, Arrow or pandas of any suitable dtype. A column may be absent
    from all rows, except ``input_ids``; unknown columns are ignored. The columns are:

    - ``input_ids``, and ``attention_mask``, ``labels``, ``weak_labels`` of the same length: become
      int64 (B, T);
    - ``weak_ids`` and ``weak_probs``: K numbers for the last token, or a list for each token; the
      lists may differ in length, but ids and probabilities must match; become (B, T, K) int64 and
      float32, with id -1 in unused entries;
    - ``weak_labels`` may be V numbers for each token, soft labels over the vocabulary: float32
      (B, T, V);
    - ``weak_rest``: a number, for the last token, or one for each token; becomes (B, T);
    - ``weak_weight``: a number, becomes (B,), or one for each token, (B, T);
    - ``weak_frac``, ``weak_step``: a number, become (B,);
    - ``position_ids``, one for each token, or ``seq_lengths``, the list that TRL's ``pack_dataset``
      writes: become int64 ``position_ids`` (B, T); if both are present they must agree.

    Rows whose positions restart are packed. Such a batch has no ``attention_mask`` and sets
    ``use_cache=False``, because transformers separates sequences only without mask and cache. The
    first token of a later sequence has no target: its labels become -100 and its weak columns
    empty.

    Padding is on the right; tensors are on the CPU. The columns are those of ``w2s_fast.patch``.
    TRL drops them unless ``remove_unused_columns=False``.

    Args:
        tokenizer: has ``pad_token_id`` or ``eos_token_id``; or a processor that has a tokenizer.
        pad_to_multiple_of: T is padded to a multiple of it; None for 1.

    Raises:
        W2SError: when called, for a column that is missing in some rows, has the wrong length, or
            holds NaN, missing or masked values, or invalid booleans or fractions; for a mask with
            numbers other than 0 and 1; for an unknown ``weak_`` column; and for an unsupported
            packing column. When constructed, for a tokenizer without a padding token.

    Rows without any weak column cause a warning: the trainer may have dropped them.
    """

    tokenizer: Any
    pad_to_multiple_of: int | None = 1

    def __post_init__(self) -> None:
        multiple = self.pad_to_multiple_of
        if multiple is not None and (type(multiple) is not int or multiple < 1):
            raise W2SError(f"pad_to_multiple_of is {multiple}; expected an integer of at least 1")
        if self._pad_id is None:
            raise W2SError("the tokenizer has neither pad_token nor eos_token; set its pad_token")

    @property
    def _pad_id(self) -> int | None:
        tokenizer = self.tokenizer
        if not hasattr(tokenizer, "pad_token_id"):  # a processor
            tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
        if not hasattr(tokenizer, "pad_token_id"):
            kind = type(tokenizer).__name__
            raise W2SError(f"tokenizer is a {kind}; expected one with pad_token_id")
        pad = tokenizer.pad_token_id
        return tokenizer.eos_token_id if pad is None else pad

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        """Collate rows to a batch of tensors; packed rows add ``use_cache=False``."""
        rows = rows_of(rows)
        present = _shared_columns(rows)
        ids = [tensor("input_ids", row["input_ids"], torch.int64) for row in rows]
        check_one_dimension("input_ids", ids)
        lengths = [len(x) for x in ids]
        if not all(lengths):
            raise W2SError(f"row {lengths.index(0)} has no tokens; leave it out")
        multiple = self.pad_to_multiple_of or 1
        size = -(-max(lengths) // multiple) * multiple
        assert self._pad_id is not None
        batch: dict[str, Any] = {"input_ids": padded(ids, size, self._pad_id)}
        masks = [torch.ones(n, dtype=torch.int64) for n in lengths]
        batch["attention_mask"] = padded(masks, size, 0)
        for name in TOKEN_COLUMNS:
            if name in present:
                batch[name] = collate_token_column(name, [row[name] for row in rows], lengths, size)
        if present & TOPK_COLUMNS.keys():
            batch |= collate_topk_columns(rows, present, lengths, size)
        for name, dtype in ROW_COLUMNS.items():
            if name in present:
                batch[name] = collate_row_column(name, [row[name] for row in rows], dtype)
        positions = positions_of(rows, lengths)
        return batch if positions is None else _with_positions(batch, rows, positions)


def _shared_columns(rows: Sequence[Row]) -> set[str]:
    """Return the known columns of all rows; a column that only some rows have is an error."""
    if not rows:
        raise W2SError("a batch of no rows; expected at least one")
    known = {"input_ids", *_OPTIONAL_COLUMNS}
    columns = [{n for n in row if n in known and not is_missing(row[n])} for row in rows]
    required = set().union(*columns, {"input_ids"})
    all_names = set().union(*rows)
    check_packing_columns(all_names)
    _check_weak_columns(all_names, required)
    for i, names in enumerate(columns):
        if names != required:
            lacking = ", ".join(sorted(required - names))
            raise W2SError(f"row {i} of the batch lacks {lacking}; expected it in every row")
    return required


def _check_weak_columns(all_names: set[str], present: set[str]) -> None:
    """Raise ``W2SError`` for an unknown weak column; warn if there is none at all."""
    known = [name for name in _OPTIONAL_COLUMNS if name.startswith("weak_")]
    for name in sorted(all_names):
        if name.startswith("weak_") and name not in known:
            raise W2SError(
                f"no weak column is called {name!r}; expected some of {', '.join(known)}"
                f"{nearest(name, known)}"
            )
    if not present & set(known):
        warnings.warn(
            "these rows have no weak column, so only their labels are learned; did the trainer "
            "drop the weak columns? (remove_unused_columns=False)",
            stacklevel=4,
        )


def _with_positions(
    batch: dict[str, Any], rows: Sequence[Row], positions: list[Tensor]
) -> dict[str, Any]:
    """Add ``position_ids``; drop the mask of packed rows, and targets across sequences."""
    size = batch["input_ids"].shape[1]
    # Positions of padding are 0, so each padding token is a sequence of its own.
    batch["position_ids"] = padded(positions, size, 0)
    starts = [sequence_starts(x) for x in positions]
    if not any(bool(x.any()) for x in starts):
        return batch
    for i, mask in enumerate(batch.pop("attention_mask")):
        check_mask(i, mask)
        if starts[i].any():
            _check_each_token(i, rows[i])
    drop_first_targets(batch, padded(starts, size, False))
    return batch | {"use_cache": False}


def _check_each_token(i: int, row: Row) -> None:
    """Raise ``W2SError`` for a value for the last token of a row of several sequences."""
    for name, dims in (("weak_ids", 2), ("weak_probs", 2), ("weak_rest", 1)):
        value = None if is_missing(row.get(name)) else to_tensors(f"{name} is", row[name])
        if isinstance(value, Tensor) and value.dim() < dims:
            raise W2SError(
                f"{name} of row {i} is for its last token, and the row has several packed "
                "sequences; expected one entry for each of its tokens"
            )
