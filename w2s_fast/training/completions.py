"""Prompts with completions as rows of tokens, with labels on the completion and its end token.

The input of a row is its prompt and completion; each of its last k tokens predicts one label: the
k - 1 later completion tokens and the end token. Thus the labels of a row are always at its end.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.training.data import Encoded, pad_id


class CompletionBatch(NamedTuple):
    """Right-padded rows and the positions that predict a label, on the model's device."""

    input_ids: Tensor  # (B, T) int64
    attention_mask: Tensor  # (B, T) int64, 1 on real tokens
    positions: Tensor  # (n,) int64 indices into the flattened (B, T), row after row

    def padded(self, n: int) -> CompletionBatch:
        """Return the batch with ``n`` positions; those added carry no label."""
        padding = self.positions.new_zeros(n - len(self.positions))
        return self._replace(positions=torch.cat([self.positions, padding]))


@dataclass(frozen=True, eq=False, kw_only=True)
class Completions(Encoded):
    """N tokenized prompts with completions; ``tokens`` are the model's inputs.

    Attributes:
        labels: (L,) int32 tokens to predict, row after row.
        starts: (N+1,) int64; the labels of row i are ``labels[starts[i]:starts[i+1]]``, and its
            last tokens predict them.
    """

    labels: np.ndarray
    starts: np.ndarray

    def digest(self) -> str:
        """Return a content hash; labels are targets, so only their positions are part of it."""
        starts = hashlib.sha256(np.ascontiguousarray(self.starts).tobytes())
        return f"{super().digest()}-{starts.hexdigest()}"

    def rows(self, part: slice) -> Completions:
        """Select contiguous rows."""
        start, stop, _ = part.indices(len(self))
        low, high = self.starts[start], self.starts[stop]
        inputs = super().rows(part)
        return Completions(
            inputs.tokens, inputs.offsets, None, self.pad_id,
            labels=self.labels[low:high], starts=self.starts[start : stop + 1] - low,
        )  # fmt: skip

    def take(self, rows: np.ndarray) -> Completions:
        """Select the given rows, in their order."""
        lengths, counts = self.lengths[rows], np.diff(self.starts)[rows]
        tokens = [np.arange(self.offsets[r], self.offsets[r + 1]) for r in rows]
        labels = [np.arange(self.starts[r], self.starts[r + 1]) for r in rows]
        empty = np.zeros(0, dtype=np.int64)
        return replace(
            self,
            tokens=self.tokens[np.concatenate([empty, *tokens])],
            offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            labels=self.labels[np.concatenate([empty, *labels])],
            starts=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        )

    def batch(self, rows: np.ndarray, device: torch.device | str = "cpu") -> CompletionBatch:  # type: ignore[override]
        """Collate the given rows, padded on the right to the longest of them."""
        ids, mask, _ = super().batch(rows, device)
        ends = np.arange(len(rows)) * ids.shape[1] + self.lengths[rows]
        counts = np.diff(self.starts)[rows]
        positions = np.concatenate([np.arange(e - k, e) for e, k in zip(ends, counts, strict=True)])
        return CompletionBatch(ids, mask, torch.from_numpy(positions).to(device))

    def label_index(self, rows: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Index the labels of the given rows, where process r holds rows r, r + size, ....

        Returns:
            (n,) index into ``labels`` and (n,) index into ``rows``. Entry i belongs to process
            i % size; the index is -1 where a process has fewer labels than another.
        """
        shares = [self._labels_of(rows, np.arange(r, len(rows), size)) for r in range(size)]
        most = max(len(index) for index, _ in shares)
        index = np.full((most, size), -1, dtype=np.int64)
        owner = np.zeros((most, size), dtype=np.int64)
        for r, (labels, owners) in enumerate(shares):
            index[: len(labels), r], owner[: len(labels), r] = labels, owners
        return index.reshape(-1), owner.reshape(-1)

    def _labels_of(self, rows: np.ndarray, which: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        parts = [np.arange(self.starts[r], self.starts[r + 1]) for r in rows[which]]
        return np.concatenate(parts), np.repeat(which, [len(p) for p in parts])


def encode_completions(
    tokenizer: Any,
    prompts: Sequence[str],
    completions: Sequence[str],
    max_length: int = 512,
    end: bool = True,
) -> Completions:
    """Tokenize prompts with their completions, with labels on the completions and the end token.

    The tokens of a completion are those that follow the prompt's in the text of both. A prompt that
    is too long loses its beginning; a completion is never cut.

    Args:
        tokenizer: a transformers tokenizer.
        prompts, completions: N texts each; a space that separates them belongs to one of them.
        max_length: tokens of a row; a smaller limit that the tokenizer knows takes precedence.
        end: whether the end token is a label, too.

    Raises:
        W2SError: if there are no rows, a completion leaves no room for its prompt or has no tokens
            (without ``end``), or the tokenizer has no end token.
    """
    if not len(prompts) or len(prompts) != len(completions):
        raise W2SError(
            f"{len(prompts)} prompts and {len(completions)} completions; expected as many, at "
            "least one"
        )
    eos = end_token(tokenizer)
    limit = min(max_length, tokenizer.model_max_length)
    prompt_tokens = prompt_ids(tokenizer, prompts)
    tokens = completion_tokens(tokenizer, prompts, prompt_tokens, completions)
    inputs: list[list[int]] = []
    labels: list[list[int]] = []
    for row, (prompt, completion) in enumerate(zip(prompt_tokens, tokens, strict=True)):
        row_labels = [*completion, eos] if end else completion
        if not row_labels:
            raise W2SError(
                f"completion {row} is {completions[row]!r}, which has no tokens; fill it"
            )
        room = limit - len(row_labels) + 1
        if room < 1:
            raise W2SError(
                f"completion {row} has {len(completion)} tokens and leaves no room for its prompt "
                f"in max_length={limit}; use a larger one, or leave the row out"
            )
        inputs.append([*truncate_left(tokenizer, prompt, room), *row_labels[:-1]])
        labels.append(row_labels)
    return join_rows(tokenizer, inputs, labels)


def encode_texts(tokenizer: Any, texts: Sequence[str], max_length: int = 512) -> Completions:
    """Tokenize texts for language modelling: every token but the first is a label, and the end.

    Args:
        tokenizer: a transformers tokenizer.
        texts: N texts, truncated on the right.
        max_length: tokens of a row; a smaller limit that the tokenizer knows takes precedence.

    Raises:
        W2SError: if there are no texts, one has no tokens, or there is no end token.
    """
    if not len(texts):
        raise W2SError("no texts; expected at least one")
    limit, eos = min(max_length, tokenizer.model_max_length), end_token(tokenizer)
    rows = [[*ids, eos][: limit + 1] for ids in prompt_ids(tokenizer, texts)]
    return join_rows(tokenizer, [ids[:-1] for ids in rows], [ids[1:] for ids in rows])


def encode_prompts(tokenizer: Any, prompts: Sequence[str], room: int) -> Encoded:
    """Tokenize prompts alone, truncated to their last ``room`` tokens.

    Raises:
        W2SError: if there are none.
    """
    if not len(prompts):
        raise W2SError("no prompts; expected at least one")
    rows = [truncate_left(tokenizer, ids, room) for ids in prompt_ids(tokenizer, prompts)]
    return Encoded(np.concatenate(rows).astype(np.int32), _offsets(rows), None, pad_id(tokenizer))


def prompt_ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Tokenize texts for a model to continue: with the opening token, without the end token.

    Raises:
        W2SError: for a text without tokens.
    """
    eos = tokenizer.eos_token_id
    rows: list[list[int]] = []
    for row, ids in enumerate(tokenizer(list(texts), verbose=False)["input_ids"]):
        added = len(ids) > 1 and ids[-1] == eos and not texts[row].endswith(tokenizer.eos_token)
        rows.append(list(ids[:-1] if added else ids))
        if not rows[-1]:
            raise W2SError(f"text {row} has no tokens; fill it, or leave it out")
    return rows


def completion_tokens(
    tokenizer: Any,
    prompts: Sequence[str],
    prompt_tokens: Sequence[list[int]],
    completions: Sequence[str],
) -> list[list[int]]:
    """Tokenize completions as what follows the tokens of their prompts in the text of both."""
    texts = [p + c for p, c in zip(prompts, completions, strict=True)]
    rows = []
    for row, both in enumerate(prompt_ids(tokenizer, texts)):
        prompt = prompt_tokens[row]
        if both[: len(prompt)] == prompt:
            rows.append(both[len(prompt) :])
        else:  # a token spans the boundary
            rows.append(list(tokenizer(completions[row], add_special_tokens=False)["input_ids"]))
    return rows


def truncate_left(tokenizer: Any, ids: list[int], room: int) -> list[int]:
    """Return the last ``room`` tokens; an opening special token stays if there is room for two."""
    if len(ids) <= room:
        return ids
    opening = ids[:1] if ids[0] == tokenizer.bos_token_id and room > 1 else []
    return [*opening, *ids[len(ids) - room + len(opening) :]]


def end_token(tokenizer: Any) -> int:
    """Return the id of the token that ends a completion.

    Raises:
        W2SError: if there is none.
    """
    if tokenizer.eos_token_id is None:
        raise W2SError(
            "the tokenizer has no end token (eos_token), which completions need; set one"
        )
    return int(tokenizer.eos_token_id)


def join_rows(tokenizer: Any, inputs: list[list[int]], labels: list[list[int]]) -> Completions:
    """Return rows of input tokens, and of the labels that the last of them predict."""
    return Completions(
        tokens=np.concatenate(inputs).astype(np.int32),
        offsets=_offsets(inputs),
        types=None,
        pad_id=pad_id(tokenizer),
        labels=np.concatenate(labels).astype(np.int32),
        starts=_offsets(labels),
    )


def _offsets(rows: Sequence[Sequence[int]]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum([len(r) for r in rows])]).astype(np.int64)
