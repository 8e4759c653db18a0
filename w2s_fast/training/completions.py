"""Prompts with answers as rows of tokens: labels on the answer and its end, nowhere else.

A row's input is its prompt and answer; each of its last k tokens predicts one label, which are the
k - 1 answer tokens and the end token. So the labels of a row always stand at its end.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.training.data import Encoded, pad_id


class CompletionBatch(NamedTuple):
    """Right-padded rows and where their labels are predicted, on the model's device."""

    input_ids: Tensor  # (B, T) int64
    attention_mask: Tensor  # (B, T) int64, 1 on real tokens
    positions: Tensor  # (n,) int64 rows of the flattened (B, T), row after row

    def padded(self, n: int) -> CompletionBatch:
        """With positions that carry no label until there are ``n``."""
        fill = self.positions.new_zeros(n - len(self.positions))
        return self._replace(positions=torch.cat([self.positions, fill]))


@dataclass(frozen=True, eq=False, kw_only=True)
class Completions(Encoded):
    """N tokenized prompts with answers; ``tokens`` are what the model reads.

    Attributes:
        labels: (L,) int32 tokens to predict, row after row.
        starts: (N+1,) int64; the labels of row i are ``labels[starts[i]:starts[i+1]]``, and its
            last tokens predict them.
    """

    labels: np.ndarray
    starts: np.ndarray

    def digest(self) -> str:
        """Content hash; of the labels, which are targets, only where they are."""
        where = hashlib.sha256(np.ascontiguousarray(self.starts).tobytes())
        return f"{super().digest()}-{where.hexdigest()}"

    def rows(self, part: slice) -> Completions:
        """Some of the rows, in their order."""
        start, stop, _ = part.indices(len(self))
        low, high = self.starts[start], self.starts[stop]
        inputs = super().rows(part)
        return Completions(
            inputs.tokens, inputs.offsets, None, self.pad_id,
            labels=self.labels[low:high], starts=self.starts[start : stop + 1] - low,
        )  # fmt: skip

    def batch(self, rows: np.ndarray, device: torch.device | str = "cpu") -> CompletionBatch:  # type: ignore[override]
        """Collate the given rows, padded on the right to the longest of them."""
        ids, mask, _ = super().batch(rows, device)
        ends = np.arange(len(rows)) * ids.shape[1] + self.lengths[rows]
        counts = np.diff(self.starts)[rows]
        positions = np.concatenate([np.arange(e - k, e) for e, k in zip(ends, counts, strict=True)])
        return CompletionBatch(ids, mask, torch.from_numpy(positions).to(device))

    def label_index(self, rows: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Which labels the given rows have, where process r holds rows r, r + size, ....

        Returns:
            (n,) index into ``labels`` and (n,) index into ``rows``. Entry i is of process
            i % size; where a process has fewer labels than another the index is -1.
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
    answers: Sequence[str],
    max_length: int = 512,
    end: bool = True,
) -> Completions:
    """Tokenize prompts with their answers, labels on the answers and the end token.

    An answer's tokens are those that follow the prompt's in the text of both. Too long a prompt
    loses its beginning; an answer is never cut.

    Args:
        tokenizer: a transformers tokenizer.
        prompts, answers: N texts each; what separates them (a space) belongs to one of them.
        max_length: tokens of a row; a tokenizer that knows a smaller limit of its model wins.
        end: whether the end token is a label, too.

    Raises:
        W2SError: if there are no rows, an answer leaves no room for its prompt, or has no tokens
            (without ``end``), or the tokenizer has no end token.
    """
    if not len(prompts) or len(prompts) != len(answers):
        raise W2SError(
            f"{len(prompts)} prompts and {len(answers)} answers; expected as many, at least one"
        )
    eos = end_token(tokenizer)
    limit = min(max_length, tokenizer.model_max_length)
    before = prompt_ids(tokenizer, prompts)
    both = prompt_ids(tokenizer, [p + a for p, a in zip(prompts, answers, strict=True)])
    inputs: list[list[int]] = []
    labels: list[list[int]] = []
    for row, (prompt, whole) in enumerate(zip(before, both, strict=True)):
        answer = whole[len(prompt) :]
        if whole[: len(prompt)] != prompt:  # a token reaches over the seam
            answer = tokenizer(answers[row], add_special_tokens=False)["input_ids"]
        wanted = [*answer, eos] if end else answer
        if not wanted:
            raise W2SError(f"answer {row} is {answers[row]!r}, which has no tokens; fill it")
        room = limit - len(wanted) + 1
        if room < 1:
            raise W2SError(
                f"answer {row} has {len(answer)} tokens and leaves no room for its prompt in "
                f"max_length={limit}; use a larger one, or leave the row out"
            )
        inputs.append([*cut(tokenizer, prompt, room), *wanted[:-1]])
        labels.append(wanted)
    return _answers(tokenizer, inputs, labels)


def encode_texts(tokenizer: Any, texts: Sequence[str], max_length: int = 512) -> Completions:
    """Tokenize texts with every token but the first one as a label, and the end: a language model.

    Args:
        tokenizer: a transformers tokenizer.
        texts: N texts; what does not fit is cut off at the end.
        max_length: tokens of a row; a tokenizer that knows a smaller limit of its model wins.

    Raises:
        W2SError: if there are no texts, one has no tokens, or there is no end token.
    """
    if not len(texts):
        raise W2SError("no texts; expected at least one")
    limit, eos = min(max_length, tokenizer.model_max_length), end_token(tokenizer)
    whole = [[*ids, eos][: limit + 1] for ids in prompt_ids(tokenizer, texts)]
    inputs, labels = [ids[:-1] for ids in whole], [ids[1:] for ids in whole]
    return _answers(tokenizer, inputs, labels)


def encode_prompts(tokenizer: Any, prompts: Sequence[str], room: int) -> Encoded:
    """Prompts alone, cut to their last ``room`` tokens.

    Raises:
        W2SError: if there are none.
    """
    if not len(prompts):
        raise W2SError("no prompts; expected at least one")
    rows = [cut(tokenizer, ids, room) for ids in prompt_ids(tokenizer, prompts)]
    return Encoded(np.concatenate(rows).astype(np.int32), _offsets(rows), None, pad_id(tokenizer))


def prompt_ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Tokens that a model continues: with what opens a text, without what ends it.

    Raises:
        W2SError: for a text without tokens.
    """
    eos = tokenizer.eos_token_id
    found: list[list[int]] = []
    for row, ids in enumerate(tokenizer(list(texts), verbose=False)["input_ids"]):
        closed = len(ids) > 1 and ids[-1] == eos and not texts[row].endswith(tokenizer.eos_token)
        found.append(list(ids[:-1] if closed else ids))
        if not found[-1]:
            raise W2SError(f"text {row} has no tokens; fill it, or leave it out")
    return found


def cut(tokenizer: Any, ids: list[int], room: int) -> list[int]:
    """The last ``room`` tokens; the token that opens every text stays if there is room for two."""
    if len(ids) <= room:
        return ids
    opening = ids[:1] if ids[0] == tokenizer.bos_token_id and room > 1 else []
    return [*opening, *ids[len(ids) - room + len(opening) :]]


def end_token(tokenizer: Any) -> int:
    """Id of the token that ends an answer.

    Raises:
        W2SError: if there is none.
    """
    if tokenizer.eos_token_id is None:
        raise W2SError("the tokenizer has no end token (eos_token), which answers need; set one")
    return int(tokenizer.eos_token_id)


def _answers(tokenizer: Any, inputs: list[list[int]], labels: list[list[int]]) -> Completions:
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
