"""Packed rows of several sequences: where each begins, and targets to drop at its first token.

transformers separates the sequences of a row by ``position_ids`` that restart at 0, but only
without an attention mask: with a mask of ones the sequences would attend to one another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.integrations.batches._arrays import is_missing, tensor

# Other conventions for packed sequences, for a whole batch or for one kind of layer.
_UNSUPPORTED = (
    "seq_idx", "cu_seqlens", "cu_seq_lens", "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q",
    "max_length_k",
)  # fmt: skip
# Value of each target column that carries no target.
_NO_TARGET: dict[str, float] = {
    "labels": -100, "weak_labels": -100, "weak_ids": -1, "weak_probs": 0, "weak_rest": 0,
}  # fmt: skip


def check_packing_columns(names: set[str]) -> None:
    """Raise ``W2SError`` for a packing column that would be ignored."""
    for name in _UNSUPPORTED:
        if name in names:
            raise W2SError(
                f"the rows have {name}, which would be ignored; expected position_ids that are 0 "
                "at the first token of each packed sequence, or seq_lengths"
            )


def positions_of(rows: Sequence[Mapping[str, Any]], lengths: list[int]) -> list[Tensor] | None:
    """Return (t,) int64 ``position_ids`` of each row, from that column or from ``seq_lengths``.

    Raises:
        W2SError: if they do not fit the tokens or each other, or only some rows have them.
    """
    columns = []
    for name, read in (("position_ids", _read_positions), ("seq_lengths", _read_lengths)):
        present = [not is_missing(row.get(name)) for row in rows]
        if not any(present):
            continue
        if not all(present):
            raise W2SError(
                f"row {present.index(False)} of the batch lacks {name}; expected it in every row"
            )
        pairs = zip(rows, lengths, strict=True)
        columns.append([read(i, row[name], n) for i, (row, n) in enumerate(pairs)])
    if len(columns) == 2:
        for i, (positions, from_lengths) in enumerate(zip(*columns, strict=True)):
            _check_same(i, positions, from_lengths)
    return columns[0] if columns else None


def _check_same(row: int, positions: Tensor, from_lengths: Tensor) -> None:
    """Raise ``W2SError`` if the columns place the beginnings of sequences at different tokens."""
    a, b = (sequence_starts(x).nonzero()[:, 0].tolist() for x in (positions, from_lengths))
    if a != b:
        raise W2SError(
            f"position_ids of row {row} restart at tokens {a}, its seq_lengths at {b}; "
            "expected the same sequences, or one of the two columns"
        )


def _read_positions(row: int, value: Any, length: int) -> Tensor:
    x = tensor("position_ids", value, torch.int64)
    if x.shape != (length,):
        raise W2SError(
            f"position_ids of row {row} has shape {tuple(x.shape)}; expected one entry for each of "
            f"its {length} tokens"
        )
    return x


def _read_lengths(row: int, value: Any, length: int) -> Tensor:
    """Convert the sequence lengths that TRL's ``pack_dataset`` writes to positions."""
    counts = tensor("seq_lengths", value, torch.int64)
    if counts.dim() != 1 or int(counts.sum()) != length or bool((counts < 0).any()):
        raise W2SError(
            f"seq_lengths of row {row} is {counts.tolist()}; expected lengths that sum to its "
            f"{length} tokens"
        )
    return torch.cat([torch.arange(n) for n in counts.tolist()])


def sequence_starts(positions: Tensor) -> Tensor:
    """Return (t,) bool: first tokens of all sequences but the first of the row."""
    starts = positions.diff(prepend=positions[:1] - 1) != 1
    starts[0] = False
    return starts


def check_mask(row: int, mask: Tensor) -> None:
    """Raise ``W2SError`` for a mask of a packed row that does more than mark its end."""
    if bool((mask.diff() > 0).any()):
        raise W2SError(
            f"attention_mask of row {row} hides tokens of a packed batch, where no mask is used; "
            "leave padding out of packed rows"
        )


def drop_first_targets(batch: dict[str, Tensor], starts: Tensor) -> None:
    """Remove the targets of the first token of later sequences, starts (B, T).

    Labels are shifted, so the state that predicts it belongs to the previous sequence.
    """
    soft = batch.get("weak_labels", starts).dim() == 3
    for name, value in _NO_TARGET.items():
        if name in batch:
            batch[name][starts] = 0 if name == "weak_labels" and soft else value
