"""Columns of a batch from those of its rows.

B rows, T tokens of the longest, t of one row, K listed classes of a token, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.integrations.batches._arrays import plain, tensor

# column -> (dtype, what stands where there is nothing)
TOKENS: dict[str, tuple[torch.dtype, float]] = {
    "attention_mask": (torch.int64, 0),
    "labels": (torch.int64, -100),
    "weak_labels": (torch.int64, -100),
    "weak_rest": (torch.float32, 0),
    "weak_weight": (torch.float32, 0),
}
LISTED: dict[str, tuple[torch.dtype, float]] = {
    "weak_ids": (torch.int64, -1),
    "weak_probs": (torch.float32, 0),
}
NUMBERS: dict[str, torch.dtype] = {"weak_frac": torch.float32, "weak_step": torch.int64}


def by_token(name: str, values: list[Any], lengths: list[int], size: int) -> Tensor:
    """(B, T) of numbers for each token, (B, T, V) of lists; (B,) of a weight for the row."""
    dtype, empty = TOKENS[name]
    if name == "weak_labels":
        return _weak_labels(values, lengths, size)
    given = [tensor(name, v, dtype, booleans=name == "attention_mask") for v in values]
    if name == "weak_weight":
        if not any(x.dim() for x in given):
            return torch.stack(given)
        given = [x if x.dim() else x.expand(n) for x, n in zip(given, lengths, strict=True)]
    if name == "weak_rest":
        given = [_at_last(x, n, empty, 0) for x, n in zip(given, lengths, strict=True)]
    _same_length(name, given, lengths)
    one_dimension(name, given)
    if name == "attention_mask":
        _check_mask(given)
    return padded(given, size, empty)


def _check_mask(given: list[Tensor]) -> None:
    """Raise ``W2SError`` for numbers of sequences: transformers takes all but 0 for the same."""
    for i, x in enumerate(given):
        odd = x[(x != 0) & (x != 1)]
        if len(odd):
            raise W2SError(
                f"attention_mask of row {i} holds {int(odd[0])}; expected 0 and 1, and "
                "position_ids or seq_lengths where a row packs several sequences"
            )


def _weak_labels(values: list[Any], lengths: list[int], size: int) -> Tensor:
    """(B, T) int64 of class ids or (B, T, V) float32 of probabilities, by a row's dimensions."""
    given = [plain("weak_labels is", value) for value in values]
    soft = [isinstance(x, list) or x.dim() > 1 for x in given]
    if any(soft) and not all(soft):
        raise W2SError("weak_labels are hard in some rows and soft in others; expected one of both")
    dtype, empty = (torch.float32, 0.0) if soft[0] else TOKENS["weak_labels"]
    read = [tensor("weak_labels", value, dtype) for value in given]
    _same_length("weak_labels", read, lengths)
    return padded(read, size, empty)


def by_row(name: str, values: list[Any], dtype: torch.dtype) -> Tensor:
    """(B,) of one number a row."""
    given = [tensor(name, value, dtype) for value in values]
    for i, x in enumerate(given):
        if x.dim():
            raise W2SError(f"{name} of row {i} has shape {tuple(x.shape)}; expected a number")
    return torch.stack(given)


def by_list(
    rows: Sequence[Mapping[str, Any]], present: set[str], lengths: list[int], size: int
) -> dict[str, Tensor]:
    """(B, T, K) of K numbers for the last token, or for each."""
    names = [name for name in LISTED if name in present]
    read = {name: [plain(f"{name} is", row[name]) for row in rows] for name in names}
    batch = {}
    for name, values in read.items():
        dtype, empty = LISTED[name]
        given = [_rectangle(name, value, dtype, empty) for value in values]
        given = [_at_last(x, n, empty, 1) for x, n in zip(given, lengths, strict=True)]
        _same_length(name, given, lengths)
        for i, x in enumerate(given):
            if x.dim() != 2:
                raise W2SError(f"{name} of row {i} has {x.dim()} dimensions; expected lists")
        k = max(1, *(x.shape[1] for x in given))
        batch[name] = padded([_wider(x, k, empty) for x in given], size, empty)
    if len(read) == 2:
        for i, (ids, probs) in enumerate(zip(*read.values(), strict=True)):
            _same_lists(i, ids, probs)
    return batch


def _same_lists(i: int, ids: Any, probs: Any) -> None:
    """Raise ``W2SError`` where a token has other numbers of ids and of probabilities."""
    a, b = _widths(ids), _widths(probs)
    if len(a) != len(b):  # one of them for each token
        raise W2SError(
            f"row {i} lists weak_ids for {len(a)} tokens and weak_probs for {len(b)}; expected "
            "both for the last token, or both for each"
        )
    for k_ids, k_probs in zip(a, b, strict=True):
        if k_ids != k_probs:
            raise W2SError(
                f"row {i} lists {k_ids} of weak_ids and {k_probs} of weak_probs at one token; "
                "expected as many"
            )


def _widths(x: Any) -> list[int]:
    """How many are listed at each token that has a list."""
    if isinstance(x, Tensor):
        return [x.shape[-1]] * (len(x) if x.dim() > 1 else 1)
    return [len(part) for part in x]


def _rectangle(name: str, value: Any, dtype: torch.dtype, empty: float) -> Tensor:
    """(K,) or (t, K) of lists that may differ in length."""
    if isinstance(value, Tensor):
        return tensor(name, value, dtype)
    parts = [tensor(name, part, dtype) for part in value]
    if any(part.dim() != 1 for part in parts):
        raise W2SError(f"{name} is not a table of numbers (it holds numbers beside lists)")
    k = max(len(part) for part in parts)
    return torch.stack([_wider(part, k, empty) for part in parts])


def _wider(x: Tensor, k: int, empty: float) -> Tensor:
    return torch.nn.functional.pad(x, (0, k - x.shape[-1]), value=empty)


def _at_last(x: Tensor, length: int, empty: float, dim: int) -> Tensor:
    """What is meant for the last token of ``length``, in its place."""
    if x.dim() != dim:
        return x
    return torch.cat([x.new_full((length - 1, *x.shape), empty), x.unsqueeze(0)])


def _same_length(name: str, given: list[Tensor], lengths: list[int]) -> None:
    for i, (x, n) in enumerate(zip(given, lengths, strict=True)):
        if x.dim() == 0 or len(x) != n:
            raise W2SError(
                f"{name} of row {i} has shape {tuple(x.shape)}; expected one entry for each of its "
                f"{n} tokens"
            )


def one_dimension(name: str, given: list[Tensor]) -> None:
    for i, x in enumerate(given):
        if x.dim() != 1:
            raise W2SError(f"{name} of row {i} has shape {tuple(x.shape)}; expected one dimension")


def padded(rows: list[Tensor], size: int, empty: float) -> Tensor:
    """(B, size, ...) of rows (t, ...), on the right."""
    out = rows[0].new_full((len(rows), size, *rows[0].shape[1:]), empty)
    for i, row in enumerate(rows):
        if row.shape[1:] != out.shape[2:]:
            raise W2SError(f"row {i} is {row.shape[-1]} wide, row 0 {out.shape[-1]}; expected one")
        out[i, : len(row)] = row
    return out
