"""Collate the columns of rows into those of a batch.

B rows, T tokens of the longest, t of one row, K classes of a token, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.integrations.batches._arrays import tensor, to_tensors

# column -> (dtype, padding value)
TOKEN_COLUMNS: dict[str, tuple[torch.dtype, float]] = {
    "attention_mask": (torch.int64, 0),
    "labels": (torch.int64, -100),
    "weak_labels": (torch.int64, -100),
    "weak_rest": (torch.float32, 0),
    "weak_weight": (torch.float32, 0),
}
TOPK_COLUMNS: dict[str, tuple[torch.dtype, float]] = {
    "weak_ids": (torch.int64, -1),
    "weak_probs": (torch.float32, 0),
}
ROW_COLUMNS: dict[str, torch.dtype] = {"weak_frac": torch.float32, "weak_step": torch.int64}


def collate_token_column(name: str, values: list[Any], lengths: list[int], size: int) -> Tensor:
    """Collate a column with an entry for each token to (B, T), or (B, T, V) for soft labels.

    ``weak_weight`` may have one number a row instead: (B,).
    """
    dtype, empty = TOKEN_COLUMNS[name]
    if name == "weak_labels":
        return _weak_labels(values, lengths, size)
    values = [tensor(name, v, dtype, booleans=name == "attention_mask") for v in values]
    if name == "weak_weight":
        if not any(x.dim() for x in values):
            return torch.stack(values)
        values = [x if x.dim() else x.expand(n) for x, n in zip(values, lengths, strict=True)]
    if name == "weak_rest":
        values = [_at_last(x, n, empty, 0) for x, n in zip(values, lengths, strict=True)]
    _check_lengths(name, values, lengths)
    check_one_dimension(name, values)
    if name == "attention_mask":
        _check_mask(values)
    return padded(values, size, empty)


def _check_mask(masks: list[Tensor]) -> None:
    """Raise ``W2SError`` for entries other than 0 and 1; transformers would treat them as 1."""
    for i, x in enumerate(masks):
        invalid = x[(x != 0) & (x != 1)]
        if len(invalid):
            raise W2SError(
                f"attention_mask of row {i} holds {int(invalid[0])}; expected 0 and 1, and "
                "position_ids or seq_lengths where a row packs several sequences"
            )


def _weak_labels(values: list[Any], lengths: list[int], size: int) -> Tensor:
    """Collate class ids to (B, T) int64, or probabilities to (B, T, V) float32."""
    trees = [to_tensors("weak_labels is", value) for value in values]
    soft = [isinstance(x, list) or x.dim() > 1 for x in trees]
    if any(soft) and not all(soft):
        raise W2SError("weak_labels are hard in some rows and soft in others; expected one kind")
    dtype, empty = (torch.float32, 0.0) if soft[0] else TOKEN_COLUMNS["weak_labels"]
    labels = [tensor("weak_labels", value, dtype) for value in trees]
    _check_lengths("weak_labels", labels, lengths)
    return padded(labels, size, empty)


def collate_row_column(name: str, values: list[Any], dtype: torch.dtype) -> Tensor:
    """Collate one number a row to (B,)."""
    numbers = [tensor(name, value, dtype) for value in values]
    for i, x in enumerate(numbers):
        if x.dim():
            raise W2SError(f"{name} of row {i} has shape {tuple(x.shape)}; expected a number")
    return torch.stack(numbers)


def collate_topk_columns(
    rows: Sequence[Mapping[str, Any]], present: set[str], lengths: list[int], size: int
) -> dict[str, Tensor]:
    """Collate K numbers for the last token, or for each token, to (B, T, K)."""
    names = [name for name in TOPK_COLUMNS if name in present]
    trees = {name: [to_tensors(f"{name} is", row[name]) for row in rows] for name in names}
    batch = {}
    for name, values in trees.items():
        dtype, empty = TOPK_COLUMNS[name]
        tensors = [_rectangle(name, value, dtype, empty) for value in values]
        tensors = [_at_last(x, n, empty, 1) for x, n in zip(tensors, lengths, strict=True)]
        _check_lengths(name, tensors, lengths)
        for i, x in enumerate(tensors):
            if x.dim() != 2:
                raise W2SError(f"{name} of row {i} has {x.dim()} dimensions; expected lists")
        k = max(1, *(x.shape[1] for x in tensors))
        batch[name] = padded([_wider(x, k, empty) for x in tensors], size, empty)
    if len(trees) == 2:
        for i, (ids, probs) in enumerate(zip(*trees.values(), strict=True)):
            _check_widths(i, ids, probs)
    return batch


def _check_widths(i: int, ids: Any, probs: Any) -> None:
    """Raise ``W2SError`` if a token has different numbers of ids and probabilities."""
    a, b = _widths(ids), _widths(probs)
    if len(a) != len(b):  # one has lists for each token, the other for the last
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
    """Return the number of entries of each token that has a list."""
    if isinstance(x, Tensor):
        return [x.shape[-1]] * (len(x) if x.dim() > 1 else 1)
    return [len(part) for part in x]


def _rectangle(name: str, value: Any, dtype: torch.dtype, empty: float) -> Tensor:
    """Make (K,) or (t, K) from lists that may differ in length."""
    if isinstance(value, Tensor):
        return tensor(name, value, dtype)
    parts = [tensor(name, part, dtype) for part in value]
    if any(part.dim() != 1 for part in parts):
        raise W2SError(f"{name} is not a table of numbers (it mixes numbers and lists)")
    k = max(len(part) for part in parts)
    return torch.stack([_wider(part, k, empty) for part in parts])


def _wider(x: Tensor, k: int, empty: float) -> Tensor:
    return torch.nn.functional.pad(x, (0, k - x.shape[-1]), value=empty)


def _at_last(x: Tensor, length: int, empty: float, dim: int) -> Tensor:
    """Expand a value for the last token to all ``length`` tokens; others are empty."""
    if x.dim() != dim:
        return x
    return torch.cat([x.new_full((length - 1, *x.shape), empty), x.unsqueeze(0)])


def _check_lengths(name: str, values: list[Tensor], lengths: list[int]) -> None:
    for i, (x, n) in enumerate(zip(values, lengths, strict=True)):
        if x.dim() == 0 or len(x) != n:
            raise W2SError(
                f"{name} of row {i} has shape {tuple(x.shape)}; expected one entry for each of its "
                f"{n} tokens"
            )


def check_one_dimension(name: str, values: list[Tensor]) -> None:
    """Raise ``W2SError`` unless every tensor has one dimension."""
    for i, x in enumerate(values):
        if x.dim() != 1:
            raise W2SError(f"{name} of row {i} has shape {tuple(x.shape)}; expected one dimension")


def padded(rows: list[Tensor], size: int, empty: float) -> Tensor:
    """Pad rows (t, ...) on the right to one tensor (B, size, ...)."""
    out = rows[0].new_full((len(rows), size, *rows[0].shape[1:]), empty)
    for i, row in enumerate(rows):
        if row.shape[1:] != out.shape[2:]:
            raise W2SError(f"row {i} is {row.shape[-1]} wide, row 0 {out.shape[-1]}; expected one")
        out[i, : len(row)] = row
    return out
