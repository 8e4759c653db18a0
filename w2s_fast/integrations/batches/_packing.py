"""Rows of several sequences: where each begins, and what must not be learned across them.

transformers tells sequences of one row apart by ``position_ids`` that begin anew, and looks at them
only where there is no attention mask: a mask of ones would let them attend to one another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.integrations.batches._arrays import is_missing, tensor

# Other ways of saying it, which belong to a whole batch or to one kind of layer.
_ELSEWHERE = (
    "seq_idx", "cu_seqlens", "cu_seq_lens", "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q",
    "max_length_k",
)  # fmt: skip
# What stands where nothing is learned.
_NOTHING: dict[str, float] = {
    "labels": -100, "weak_labels": -100, "weak_ids": -1, "weak_probs": 0, "weak_rest": 0,
}  # fmt: skip


def refuse_elsewhere(names: set[str]) -> None:
    """Raise ``W2SError`` for a column that says where sequences begin and would be left out."""
    for name in _ELSEWHERE:
        if name in names:
            raise W2SError(
                f"the rows have {name}, which would be left out; expected position_ids that are 0 "
                "at the first token of each packed sequence, or seq_lengths"
            )


def positions_of(rows: Sequence[Mapping[str, Any]], lengths: list[int]) -> list[Tensor] | None:
    """(t,) int64 ``position_ids`` of each row, from that column or from ``seq_lengths``.

    Raises:
        W2SError: where they do not fit the tokens or each other, or where only some rows say them.
    """
    found = []
    for name, read in (("position_ids", _positions), ("seq_lengths", _counted)):
        given = [not is_missing(row.get(name)) for row in rows]
        if not any(given):
            continue
        if not all(given):
            lacking = given.index(False)
            raise W2SError(f"row {lacking} of the batch lacks {name}; expected it in every row")
        pairs = zip(rows, lengths, strict=True)
        found.append([read(i, row[name], n) for i, (row, n) in enumerate(pairs)])
    if len(found) == 2:
        for i, (said, counted) in enumerate(zip(*found, strict=True)):
            _check_same(i, said, counted)
    return found[0] if found else None


def _check_same(row: int, positions: Tensor, counted: Tensor) -> None:
    """Raise ``W2SError`` where the two say that sequences begin at different tokens."""
    said, told = (begins(x).nonzero()[:, 0].tolist() for x in (positions, counted))
    if said != told:
        raise W2SError(
            f"position_ids of row {row} begin anew at tokens {said}, its seq_lengths at {told}; "
            "expected the same sequences, or one of the two columns"
        )


def _positions(row: int, value: Any, length: int) -> Tensor:
    x = tensor("position_ids", value, torch.int64)
    if x.shape != (length,):
        raise W2SError(
            f"position_ids of row {row} has shape {tuple(x.shape)}; expected one entry for each of "
            f"its {length} tokens"
        )
    return x


def _counted(row: int, value: Any, length: int) -> Tensor:
    """As TRL's ``pack_dataset`` writes them: the lengths of the sequences of a row."""
    counts = tensor("seq_lengths", value, torch.int64)
    if counts.dim() != 1 or int(counts.sum()) != length or bool((counts < 0).any()):
        raise W2SError(
            f"seq_lengths of row {row} is {counts.tolist()}; expected lengths that sum to its "
            f"{length} tokens"
        )
    return torch.cat([torch.arange(n) for n in counts.tolist()])


def begins(positions: Tensor) -> Tensor:
    """(t,) bool: tokens that begin a sequence other than the first of their row."""
    starts = positions.diff(prepend=positions[:1] - 1) != 1
    starts[0] = False
    return starts


def check_mask(row: int, mask: Tensor) -> None:
    """Raise ``W2SError`` for a mask of a packed row that says more than where it ends."""
    if bool((mask.diff() > 0).any()):
        raise W2SError(
            f"attention_mask of row {row} hides tokens of a packed batch, where no mask is used; "
            "leave padding out of packed rows"
        )


def separate(batch: dict[str, Tensor], starts: Tensor) -> None:
    """Let the first token of a later sequence, starts (B, T), be learned from nothing before it.

    Labels are shifted: the state that would predict it belongs to another sequence.
    """
    soft = batch.get("weak_labels", starts).dim() == 3
    for name, nothing in _NOTHING.items():
        if name in batch:
            batch[name][starts] = 0 if name == "weak_labels" and soft else nothing
