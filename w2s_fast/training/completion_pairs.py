"""Prompts with two completions each as rows of tokens, and the numbers that losses need of them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.losses.preference import Preference
from w2s_fast.models.packed_attention import Packing
from w2s_fast.ops.fused_linear.logprob import linear_logprob
from w2s_fast.ops.lazy_logits import Projected
from w2s_fast.training.completions import (
    Completions,
    completion_tokens,
    end_token,
    join_rows,
    prompt_ids,
    truncate_left,
)

# Packing pays from here on: gathering the rows for attention took 1 % of a step on a CPU.
_LEAST_SAVED = 0.02
_SIDES = ("first", "second")


class PairBatch(NamedTuple):
    """2 B completions of B pairs, the first and second of a pair in turn, on the model's device.

    L labels: all tokens of the completions that a model is to predict.
    """

    input_ids: Tensor  # (2 B, T) int64, right-padded
    attention_mask: Tensor  # (2 B, T) int64, 1 on real tokens
    positions: Tensor  # (L,) int64 indices into the flattened (2 B, T), row after row
    labels: Tensor  # (L,) int64 tokens
    owner: Tensor  # (L,) int64, row of each label in 0..2 B - 1
    lengths: Tensor  # (B, 2) float32 labels of each completion
    reference: Tensor | None  # (B, 2) float32
    target: Tensor | None  # (B, 2) float32
    packing: Packing | None  # without padding and what both completions of a pair begin with

    def answers(self, z: Projected) -> Tensor:
        """Return what losses over pairs take as logits.

        Args:
            z: (L, V) uncomputed logits of the positions.

        Returns:
            (B, 2, 3) fp32 (fp64 for an fp64 model): summed log-probability, differentiable; that of
            the reference, NaN without one; number of tokens. With a target (B, 2, 4).
        """
        tokens = linear_logprob(
            z.hidden, z.weight, self.labels, bias=z.bias, softcap=z.softcap, memory_mib=z.memory_mib
        )
        assert isinstance(tokens, Tensor)
        sums = tokens.new_zeros(self.lengths.numel()).index_add(0, self.owner, tokens)
        logp = sums.view(-1, 2)
        missing = torch.full_like(self.lengths, float("nan"))
        columns = [logp, missing if self.reference is None else self.reference, self.lengths]
        columns += [] if self.target is None else [self.target]
        return torch.stack([c.to(logp.dtype) for c in columns], 2)


@dataclass(frozen=True, eq=False, kw_only=True)
class CompletionPairs:
    """N tokenized prompts with two completions each; see ``encode_pairs``.

    Attributes:
        completions: 2 N rows, the first and second completion of a pair in turn.
        truncated: (N,) bool, pairs whose prompt has lost its beginning.
        reference: (N, 2) float32 summed log-probabilities under the reference model, or None.
        target: (N, 2) float32 summed log-ratios of an aligned weak model to its reference, or None.
        n_classes: 2, of the weak labels.
    """

    completions: Completions
    truncated: np.ndarray
    reference: np.ndarray | None = None
    target: np.ndarray | None = None
    n_classes: ClassVar[int] = 2

    def __len__(self) -> int:
        return len(self.truncated)

    @property
    def n_truncated(self) -> int:
        """Number of pairs whose prompt has lost its beginning."""
        return int(self.truncated.sum())

    @property
    def lengths(self) -> np.ndarray:
        """(N,) tokens of each pair: twice its longer row."""
        return 2 * self.completions.lengths.reshape(-1, 2).max(1)

    def digest(self) -> str:
        """Return a content hash over tokens, labels, reference and target."""
        h = hashlib.sha256(self.token_digest().encode())
        for column in (self.reference, self.target):
            h.update(b"-" if column is None else np.ascontiguousarray(column).tobytes())
        return h.hexdigest()

    def token_digest(self) -> str:
        """Return a content hash over tokens and labels alone."""
        labels = hashlib.sha256(np.ascontiguousarray(self.completions.labels).tobytes())
        return f"{self.completions.digest()}-{labels.hexdigest()}"

    def rows(self, part: slice) -> CompletionPairs:
        """Select contiguous pairs."""
        return self.take(np.arange(len(self))[part])

    def take(self, rows: np.ndarray) -> CompletionPairs:
        """Select the given pairs, in their order.

        Args:
            rows: (M,) integers, or (N,) bool.
        """
        rows = np.arange(len(self))[rows]
        return replace(
            self,
            completions=self.completions.take(_both(rows)),
            truncated=self.truncated[rows],
            reference=None if self.reference is None else self.reference[rows],
            target=None if self.target is None else self.target[rows],
        )

    def with_reference(self, reference: np.ndarray) -> CompletionPairs:
        """Return these pairs with log-probabilities of a reference model.

        Args:
            reference: (N, 2) of the first and second completions, summed; see
                ``reference_logprob``.

        Raises:
            W2SError: for another shape, or numbers that are not finite.
        """
        return replace(self, reference=_column("reference", reference, len(self)))

    def with_target(self, target: np.ndarray) -> CompletionPairs:
        """Return these pairs with the log-ratios that ``WSPO`` learns.

        Args:
            target: (N, 2) summed log-probabilities of the first and second completions under an
                aligned weak model minus those under the model that it was trained from.

        Raises:
            W2SError: for another shape, or numbers that are not finite.
        """
        return replace(self, target=_column("target", target, len(self)))

    def batch(self, rows: np.ndarray, device: torch.device | str = "cpu") -> PairBatch:
        """Collate B pairs: 2 B rows, padded on the right to the longest of them."""
        both = _both(rows)
        ids, mask, positions = self.completions.batch(both, device)
        index, owner = self.completions.label_index(both, 1)

        def to_device(values: np.ndarray | None, dtype: Any) -> Any:
            if values is None:
                return None
            return torch.from_numpy(values.astype(dtype)).to(device)

        def column(values: np.ndarray | None) -> Any:
            return None if values is None else to_device(values[rows], np.float32)

        counts = np.diff(self.completions.starts)[both].reshape(-1, 2)
        return PairBatch(
            ids, mask, positions,
            to_device(self.completions.labels[index], np.int64),
            to_device(owner, np.int64),
            to_device(counts, np.float32),
            column(self.reference),
            column(self.target),
            _packing(self.completions, both, device),
        )  # fmt: skip


def encode_pairs(
    tokenizer: Any,
    prompts: Sequence[str],
    first: Sequence[str],
    second: Sequence[str],
    max_length: int = 512,
    end: bool = True,
) -> CompletionPairs:
    """Tokenize prompts with two completions each, with labels on the completions and end tokens.

    Both completions of a pair follow the same tokens: where a prompt is too long for the longer of
    them, it loses its beginning for both. A completion is never cut.

    Args:
        tokenizer: a transformers tokenizer.
        prompts, first, second: N texts each; a space that separates them belongs to one of them.
        max_length: tokens of a row; a smaller limit that the tokenizer knows takes precedence.
        end: whether the end token is a label, too.

    Returns:
        N pairs without a reference.

    Raises:
        W2SError: if there are no rows, a completion is blank, both completions of a row are equal,
            one leaves no room for its prompt, or the tokenizer has no end token.
    """
    _check_texts(prompts, first, second)
    limit, eos = min(max_length, tokenizer.model_max_length), end_token(tokenizer)
    prompt_tokens = prompt_ids(tokenizer, prompts)
    sides = [
        [[*tokens, eos] if end else tokens for tokens in side]
        for side in _tokens(tokenizer, prompts, prompt_tokens, first, second)
    ]
    _check_tokens(sides, limit)
    inputs: list[list[int]] = []
    labels: list[list[int]] = []
    truncated = np.zeros(len(prompts), dtype=bool)
    for row, (prompt, *both) in enumerate(zip(prompt_tokens, *sides, strict=True)):
        room = limit - max(map(len, both)) + 1
        kept = truncate_left(tokenizer, prompt, room)
        truncated[row] = len(kept) < len(prompt)
        inputs += [[*kept, *tokens[:-1]] for tokens in both]
        labels += both
    return CompletionPairs(completions=join_rows(tokenizer, inputs, labels), truncated=truncated)


def completion_lengths(
    tokenizer: Any, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]
) -> np.ndarray:
    """Return (N, 2) int64: the tokens of both completions as ``encode_pairs`` counts them.

    They include the end token; a completion has room if it has at most ``max_length`` of them.
    """
    sides = _tokens(tokenizer, prompts, prompt_ids(tokenizer, prompts), first, second)
    return np.array([[len(tokens) + 1 for tokens in side] for side in sides], dtype=np.int64).T


def check_pair_labels(pairs: CompletionPairs, weak_labels: np.ndarray, loss: Any) -> None:
    """Raise ``W2SError`` if soft labels are no probabilities, or the loss needs a missing column.

    Args:
        pairs: N pairs.
        weak_labels: (N, 2) soft labels, or (N,) integers.
        loss: the loss of the training.
    """
    check_columns(pairs, getattr(loss, "preference", None))
    if weak_labels.ndim == 2:
        bad = np.abs(weak_labels.sum(1) - 1) > 1e-3
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            raise W2SError(
                f"weak label {weak_labels[row].tolist()} in row {row}; expected the probabilities "
                "that the first and the second completion are better, with a sum of 1"
            )


def check_columns(pairs: CompletionPairs, preference: Any, reward_only: bool = False) -> None:
    """Raise ``W2SError`` if this is no preference loss, or the pairs lack a column it needs.

    Args:
        pairs: N pairs.
        preference: of the training.
        reward_only: whether only the rewards are computed, which need no target.
    """
    if not isinstance(preference, Preference):
        raise W2SError(
            f"the preference loss of completion pairs is {preference!r}; expected one, train with "
            "a loss of make_pair_loss"
        )
    fixes = {
        "reference": "pairs.with_reference(reference_logprob(model, pairs))",
        "target": "pairs.with_target(log-ratios of the weak model)",
    }
    for name in preference.needs:
        if getattr(pairs, name) is None and not (reward_only and name == "target"):
            raise W2SError(
                f"{type(preference).__name__} needs the {name} of the pairs, which is None; use "
                f"{fixes[name]}"
            )


def _packing(data: Completions, rows: np.ndarray, device: torch.device | str) -> Packing | None:
    """Leave out padding, and of each second row the tokens that it begins with like the first.

    None where that would save too little.
    """
    lengths = data.lengths[rows]
    real = np.arange(lengths.max()) < lengths[:, None]
    ids = np.full(real.shape, -1)
    ids[real] = np.concatenate([data.tokens[data.offsets[r] : data.offsets[r + 1]] for r in rows])
    shared = np.logical_and.accumulate(ids[::2] == ids[1::2], axis=1)
    computed = real.copy()
    computed[1::2] &= ~shared
    source = np.flatnonzero(computed)
    if len(source) > (1 - _LEAST_SAVED) * real.size:
        return None
    place = np.where(computed, np.cumsum(computed).reshape(real.shape) - 1, 0)
    place[1::2] = np.where(shared, place[::2], place[1::2])
    return Packing(*(torch.from_numpy(x.astype(np.int64)).to(device) for x in (source, place)))


def _tokens(
    tokenizer: Any, prompts: Sequence[str], prompt_tokens: Any, *sides: Sequence[str]
) -> list[list[list[int]]]:
    return [completion_tokens(tokenizer, prompts, prompt_tokens, texts) for texts in sides]


def _both(rows: np.ndarray) -> np.ndarray:
    return (2 * rows[:, None] + np.arange(2)).reshape(-1)


def _column(name: str, values: np.ndarray, n: int) -> np.ndarray:
    values = np.asarray(values)
    if values.shape != (n, 2) or not np.issubdtype(values.dtype, np.floating):
        raise W2SError(
            f"{name} has shape {values.shape} and dtype {values.dtype}; expected floats ({n}, 2)"
        )
    bad = ~np.isfinite(values).all(1)
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise W2SError(f"{name} of pair {row} is {values[row].tolist()}; expected finite numbers")
    return values.astype(np.float32)


def _check_texts(prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> None:
    sizes = [len(texts) for texts in (prompts, first, second)]
    if not sizes[0] or len(set(sizes)) > 1:
        raise W2SError(
            f"{sizes[0]} prompts, {sizes[1]} first and {sizes[2]} second completions; expected as "
            "many of each, at least one"
        )
    for row, (one, two) in enumerate(zip(first, second, strict=True)):
        for side, text in zip(_SIDES, (one, two), strict=True):
            if not text.strip():
                raise W2SError(
                    f"the {side} completion of pair {row} is {text!r}, which is blank; fill it, or "
                    "leave the pair out"
                )
        if one == two:
            raise W2SError(
                f"both completions of pair {row} are {one[:80]!r}; expected different ones, leave "
                "the pair out"
            )


def _check_tokens(sides: Sequence[Sequence[Sequence[int]]], limit: int) -> None:
    lengths = np.array([[len(tokens) for tokens in side] for side in sides]).T
    if (lengths == 0).any():
        row, side = np.argwhere(lengths == 0)[0].tolist()
        raise W2SError(f"the {_SIDES[side]} completion of pair {row} has no tokens; fill it")
    if (lengths > limit).any():
        row, side = np.argwhere(lengths > limit)[0].tolist()
        raise W2SError(
            f"the {_SIDES[side]} completion of pair {row} has {lengths[row, side]} tokens and "
            f"leaves no room for its prompt in max_length={limit}; it is one of "
            f"{int((lengths > limit).any(1).sum())} such pairs of {len(lengths)}: use "
            f"max_length={lengths.max()} or more, or leave them out"
        )
