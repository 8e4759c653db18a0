"""Rows of tokens and weak targets, padded to one batch for any trainer."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from w2s_fast.errors import W2SError, nearest
from w2s_fast.integrations.batches._arrays import is_missing, plain, rows_of, tensor
from w2s_fast.integrations.batches._columns import (
    LISTED,
    NUMBERS,
    TOKENS,
    by_list,
    by_row,
    by_token,
    one_dimension,
    padded,
)
from w2s_fast.integrations.batches._packing import (
    begins,
    check_mask,
    positions_of,
    refuse_elsewhere,
    separate,
)

Row = Mapping[str, Any]


@dataclass(frozen=True)
class WeakLabelCollator:
    """Makes a batch of rows: B rows, T tokens of the longest, K listed tokens a position.

    A row is a mapping from column to value, or a table of Arrow or pandas of one row. Values are
    lists or arrays of NumPy, torch, Arrow or pandas, of any dtype that holds them, and give the
    same batch. Columns of a row, all but the first may be missing in all rows; others are left out:

    - ``input_ids``, and of the same length ``attention_mask``, ``labels``, ``weak_labels``: become
      int64 (B, T);
    - ``weak_ids`` and ``weak_probs``: K numbers, meant for the last token, or such a list for each
      token, of any lengths, as many of the one as of the other; become (B, T, K) int64 and float32,
      id -1 where nothing is listed;
    - ``weak_labels`` may be V numbers for each token, soft labels over the vocabulary: float32
      (B, T, V);
    - ``weak_rest``: a number, for the last token, or one for each token; becomes (B, T);
    - ``weak_weight``: a number, becomes (B,), or one for each token, (B, T);
    - ``weak_frac``, ``weak_step``: a number, become (B,);
    - ``position_ids``, one for each token, or ``seq_lengths``, of which TRL's ``pack_dataset``
      makes a list: become int64 ``position_ids`` (B, T); where both are there they must agree.

    Rows whose positions begin anew are packed. Such a batch has no ``attention_mask`` and says
    ``use_cache=False``, because transformers keeps sequences apart only without mask and cache, and
    nothing is learned at the first token of a later sequence: labels there become -100, weak
    columns what says nothing.

    Padding is on the right, and on the CPU. The columns are those of ``w2s_fast.patch``. TRL drops
    them unless ``remove_unused_columns=False``.

    Args:
        tokenizer: has ``pad_token_id``, or else ``eos_token_id``; or a processor that has one.
        pad_to_multiple_of: of T; None for 1.

    Raises:
        W2SError: when called, for a column that some rows lack, whose length is not that of its
            row, or that holds NaN, missing or masked values, booleans or fractions where they do
            not belong, for a mask of other numbers than 0 and 1, for an unknown ``weak_`` column,
            and for a column that says in another way where packed sequences begin; when made, for a
            tokenizer without a token to pad with.

    Rows without any weak column bring a warning: the trainer may have dropped them.
    """

    tokenizer: Any
    pad_to_multiple_of: int | None = 1

    def __post_init__(self) -> None:
        multiple = self.pad_to_multiple_of
        if multiple is not None and (type(multiple) is not int or multiple < 1):
            raise W2SError(f"pad_to_multiple_of is {multiple}; expected an integer of at least 1")
        if self._pad is None:
            raise W2SError("the tokenizer has neither pad_token nor eos_token; set its pad_token")

    @property
    def _pad(self) -> int | None:
        own = self.tokenizer
        own = own if hasattr(own, "pad_token_id") else getattr(own, "tokenizer", own)
        if not hasattr(own, "pad_token_id"):
            raise W2SError(f"tokenizer is a {type(own).__name__}; expected one with pad_token_id")
        return own.eos_token_id if own.pad_token_id is None else own.pad_token_id

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        """The batch: tensors, and of packed rows ``use_cache=False``."""
        rows = rows_of(rows)
        present = _present(rows)
        ids = [tensor("input_ids", row["input_ids"], torch.int64) for row in rows]
        one_dimension("input_ids", ids)
        lengths = [len(x) for x in ids]
        if not all(lengths):
            raise W2SError(f"row {lengths.index(0)} has no tokens; leave it out")
        multiple = self.pad_to_multiple_of or 1
        size = -(-max(lengths) // multiple) * multiple
        assert self._pad is not None
        batch: dict[str, Any] = {"input_ids": padded(ids, size, self._pad)}
        masks = [torch.ones(n, dtype=torch.int64) for n in lengths]
        batch["attention_mask"] = padded(masks, size, 0)
        for name in TOKENS:
            if name in present:
                batch[name] = by_token(name, [row[name] for row in rows], lengths, size)
        if present & LISTED.keys():
            batch |= by_list(rows, present, lengths, size)
        for name, dtype in NUMBERS.items():
            if name in present:
                batch[name] = by_row(name, [row[name] for row in rows], dtype)
        positions = positions_of(rows, lengths)
        return batch if positions is None else _positioned(batch, rows, positions)


def _present(rows: Sequence[Row]) -> set[str]:
    """Columns that all rows have; a column that only some have is a mistake."""
    if not rows:
        raise W2SError("a batch of no rows; expected at least one")
    known = {"input_ids", *TOKENS, *LISTED, *NUMBERS}
    found = [{name for name in row if name in known and not is_missing(row[name])} for row in rows]
    wanted = set().union(*found, {"input_ids"})
    given = set().union(*rows)
    refuse_elsewhere(given)
    _check_weak(given, wanted)
    for i, names in enumerate(found):
        if names != wanted:
            lacking = ", ".join(sorted(wanted - names))
            raise W2SError(f"row {i} of the batch lacks {lacking}; expected it in every row")
    return wanted


def _check_weak(given: set[str], wanted: set[str]) -> None:
    """Refuse a weak column that nobody reads; warn where there is none at all."""
    known = [name for name in (*TOKENS, *LISTED, *NUMBERS) if name.startswith("weak_")]
    for name in sorted(given):
        if name.startswith("weak_") and name not in known:
            raise W2SError(
                f"no weak column is called {name!r}; expected some of {', '.join(known)}"
                f"{nearest(name, known)}"
            )
    if not wanted & set(known):
        warnings.warn(
            "these rows have no weak column, their labels are all there is to learn; did the "
            "trainer drop them? (remove_unused_columns=False)",
            stacklevel=4,
        )


def _positioned(
    batch: dict[str, Any], rows: Sequence[Row], positions: list[Tensor]
) -> dict[str, Any]:
    """With ``position_ids``; packed rows lose their mask, and what would be learned across them."""
    size = batch["input_ids"].shape[1]
    # Padding repeats 0: each of its tokens is a sequence of its own.
    batch["position_ids"] = padded(positions, size, 0)
    starts = [begins(x) for x in positions]
    if not any(bool(x.any()) for x in starts):
        return batch
    for i, mask in enumerate(batch.pop("attention_mask")):
        check_mask(i, mask)
        if starts[i].any():
            _check_each_token(i, rows[i])
    separate(batch, padded(starts, size, False))
    return batch | {"use_cache": False}


def _check_each_token(i: int, row: Row) -> None:
    """Raise ``W2SError`` for what is meant for the last token of a row of several sequences."""
    for name, dims in (("weak_ids", 2), ("weak_probs", 2), ("weak_rest", 1)):
        value = None if is_missing(row.get(name)) else plain(f"{name} is", row[name])
        if isinstance(value, Tensor) and value.dim() < dims:
            raise W2SError(
                f"{name} of row {i} is for its last token, and the row has several packed "
                "sequences; expected one entry for each of its tokens"
            )
