"""Rows of tokens and weak targets, padded to one batch for any trainer."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from w2s_fast.errors import W2SError, nearest

Row = Mapping[str, Any]
# column -> (dtype, what stands where there is nothing)
_TOKENS: dict[str, tuple[torch.dtype, float]] = {
    "attention_mask": (torch.int64, 0),
    "labels": (torch.int64, -100),
    "weak_labels": (torch.int64, -100),
    "weak_rest": (torch.float32, 0),
    "weak_weight": (torch.float32, 0),
}
_LISTED: dict[str, tuple[torch.dtype, float]] = {
    "weak_ids": (torch.int64, -1),
    "weak_probs": (torch.float32, 0),
}


@dataclass(frozen=True)
class WeakLabelCollator:
    """Makes a batch of rows: B rows, T tokens of the longest, K listed tokens a position.

    Columns of a row, all but the first may be missing in all rows; others are left out:

    - ``input_ids``, and of the same length ``attention_mask``, ``labels``, ``weak_labels``: become
      int64 (B, T);
    - ``weak_ids`` and ``weak_probs``: K numbers, meant for the last token, or such a list for each
      token; become (B, T, K) int64 and float32, id -1 where nothing is listed;
    - ``weak_labels`` may be V numbers for each token, soft labels over the vocabulary: (B, T, V);
    - ``weak_rest``: a number, for the last token, or one for each token; becomes (B, T);
    - ``weak_weight``: a number, becomes (B,), or one for each token, (B, T).

    Padding is on the right. The columns are those of ``w2s_fast.patch``. TRL drops them unless
    ``remove_unused_columns=False``.

    Args:
        tokenizer: has ``pad_token_id``, or else ``eos_token_id``.
        pad_to_multiple_of: of T.

    Raises:
        W2SError: when called, for a column that some rows lack, whose length is not that of its
            row, or that holds NaN, and for an unknown ``weak_`` column; when made, for a tokenizer
            without a token to pad with.

    Rows without any weak column bring a warning: the trainer may have dropped them.
    """

    tokenizer: Any
    pad_to_multiple_of: int = 1

    def __post_init__(self) -> None:
        if self._pad is None:
            raise W2SError("the tokenizer has neither pad_token nor eos_token; set its pad_token")

    @property
    def _pad(self) -> int | None:
        pad = self.tokenizer.pad_token_id
        return self.tokenizer.eos_token_id if pad is None else pad

    def __call__(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """The batch."""
        present = _present(rows)
        lengths = [len(row["input_ids"]) for row in rows]
        if not all(lengths):
            raise W2SError(f"row {lengths.index(0)} has no tokens; leave it out")
        size = -(-max(lengths) // self.pad_to_multiple_of) * self.pad_to_multiple_of
        assert self._pad is not None
        ids = [_tensor("input_ids", row["input_ids"], torch.int64) for row in rows]
        batch = {"input_ids": _padded(ids, size, self._pad)}
        masks = [torch.ones(n, dtype=torch.int64) for n in lengths]
        batch["attention_mask"] = _padded(masks, size, 0)
        for name in present & _TOKENS.keys():
            batch[name] = _by_token(name, [row[name] for row in rows], lengths, size)
        for name in present & _LISTED.keys():
            batch[name] = _by_list(name, [row[name] for row in rows], lengths, size)
        return batch


def _present(rows: Sequence[Row]) -> set[str]:
    """Columns that all rows have; a column that only some have is a mistake."""
    if not rows:
        raise W2SError("a batch of no rows; expected at least one")
    known = {"input_ids", *_TOKENS, *_LISTED}
    found = [{name for name in row if name in known and row[name] is not None} for row in rows]
    wanted = set().union(*found, {"input_ids"})
    _check_weak(set().union(*rows), wanted)
    for i, names in enumerate(found):
        if names != wanted:
            lacking = ", ".join(sorted(wanted - names))
            raise W2SError(f"row {i} of the batch lacks {lacking}; expected it in every row")
    return wanted


def _check_weak(given: set[str], wanted: set[str]) -> None:
    """Refuse a weak column that nobody reads; warn where there is none at all."""
    known = [name for name in (*_TOKENS, *_LISTED) if name.startswith("weak_")]
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


def _by_token(name: str, values: list[Any], lengths: list[int], size: int) -> Tensor:
    """(B, T) of numbers for each token, (B, T, V) of lists; (B,) of a weight for the row."""
    dtype, empty = _TOKENS[name]
    soft = name == "weak_labels" and hasattr(values[0][0], "__len__")
    given = [_tensor(name, value, torch.float32 if soft else dtype) for value in values]
    if name == "weak_weight" and not given[0].dim():
        return torch.stack(given)
    if name == "weak_rest":
        given = [_at_last(x, n, empty, 0) for x, n in zip(given, lengths, strict=True)]
    _same_length(name, given, lengths)
    return _padded(given, size, 0 if soft else empty)


def _by_list(name: str, values: list[Any], lengths: list[int], size: int) -> Tensor:
    """(B, T, K) of K numbers for the last token, or for each."""
    dtype, empty = _LISTED[name]
    given = [_tensor(name, value, dtype) for value in values]
    given = [_at_last(x, n, empty, 1) for x, n in zip(given, lengths, strict=True)]
    _same_length(name, given, lengths)
    k = max(x.shape[1] for x in given)
    pad = torch.nn.functional.pad
    return _padded([pad(x, (0, k - x.shape[1]), value=empty) for x in given], size, empty)


def _at_last(x: Tensor, length: int, empty: float, dim: int) -> Tensor:
    """What is meant for the last token of ``length``, in its place."""
    if x.dim() != dim:
        return x
    return torch.cat([x.new_full((length - 1, *x.shape), empty), x.unsqueeze(0)])


def _tensor(name: str, value: Any, dtype: torch.dtype) -> Tensor:
    try:
        x = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise W2SError(f"{name} is not a table of numbers ({error})") from error
    if x.is_floating_point() and not dtype.is_floating_point:
        raise W2SError(f"{name} holds {x.flatten()[:1].tolist()}; expected integers")
    if x.is_floating_point() and bool(x.isnan().any()):
        raise W2SError(f"{name} holds NaN; the supervisor diverged, or a value is missing")
    return x.to(dtype)


def _same_length(name: str, given: list[Tensor], lengths: list[int]) -> None:
    for i, (x, n) in enumerate(zip(given, lengths, strict=True)):
        if x.dim() == 0 or len(x) != n:
            raise W2SError(
                f"{name} of row {i} has shape {tuple(x.shape)}; expected one entry for each of its "
                f"{n} tokens"
            )


def _padded(rows: list[Tensor], size: int, empty: float) -> Tensor:
    """(B, size, ...) of rows (t, ...), on the right."""
    out = rows[0].new_full((len(rows), size, *rows[0].shape[1:]), empty)
    for i, row in enumerate(rows):
        if row.shape[1:] != out.shape[2:]:
            raise W2SError(f"row {i} is {row.shape[-1]} wide, row 0 {out.shape[-1]}; expected one")
        out[i, : len(row)] = row
    return out
