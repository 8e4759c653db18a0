"""Texts as batches: token ids in one flat array, right padding, and the order of the rows.

The order is a function of seed and epoch alone, so every loss sees the same batches and a resumed
training needs no iterator state.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from w2s_fast.errors import W2SError


class Batch(NamedTuple):
    """Right-padded rows on the model's device: the inputs of a model's ``forward``.

    B counts rows of tokens: preferences have two an example, one for each completion.
    """

    input_ids: Tensor  # (B, T) int64
    attention_mask: Tensor  # (B, T) int64, 1 on real tokens
    token_type_ids: Tensor | None  # (B, T) int64, for tokenizers that tell two texts apart


class RowData(Protocol):
    """Rows for training and prediction; ``Encoded`` and cached states implement it."""

    def __len__(self) -> int:
        """Return the number of rows, N."""

    @property
    def lengths(self) -> np.ndarray:
        """(N,) tokens of each row."""

    def digest(self) -> str:
        """Return a content hash that identifies the data of a checkpoint."""

    def batch(self, rows: np.ndarray, device: torch.device | str = "cpu") -> Any:
        """Collate rows for the model's ``forward``: ``Batch`` or ``CompletionBatch``."""


@dataclass(frozen=True, eq=False)
class Encoded:
    """N tokenized examples, each of W ``n_candidates`` adjacent rows of tokens.

    Attributes:
        tokens: (total,) int32, all rows one after the other.
        offsets: (N W + 1,) int64; row i is ``tokens[offsets[i]:offsets[i+1]]``, and example j has
            rows j W to j W + W - 1.
        types: (total,) int8 segment of each token, or None.
        pad_id: token id that fills short rows.
        n_candidates: W; 2 for preferences, whose examples are two completions.
    """

    tokens: np.ndarray
    offsets: np.ndarray
    types: np.ndarray | None
    pad_id: int
    n_candidates: int = 1

    def __len__(self) -> int:
        return (len(self.offsets) - 1) // self.n_candidates

    @property
    def lengths(self) -> np.ndarray:
        """(N,) tokens of each example: W times the longest of its rows."""
        return np.diff(self.offsets).reshape(-1, self.n_candidates).max(1) * self.n_candidates

    def digest(self) -> str:
        """Return a content hash that identifies the data of a checkpoint."""
        n_candidates = f" n_candidates {self.n_candidates}" if self.n_candidates > 1 else ""
        h = hashlib.sha256(f"pad {self.pad_id}{n_candidates}".encode())
        for part in (self.tokens, self.offsets, self.types):
            h.update(b"-" if part is None else np.ascontiguousarray(part).tobytes())
        return h.hexdigest()

    def rows(self, part: slice) -> Encoded:
        """Select contiguous examples."""
        start, stop, _ = part.indices(len(self))
        first, last = start * self.n_candidates, stop * self.n_candidates
        low, high = self.offsets[first], self.offsets[last]
        types = None if self.types is None else self.types[low:high]
        offsets = self.offsets[first : last + 1] - low
        return replace(self, tokens=self.tokens[low:high], offsets=offsets, types=types)

    def batch(self, rows: np.ndarray, device: torch.device | str = "cpu") -> Batch:
        """Collate B given examples: B W rows, padded on the right to the longest of them."""
        rows = (rows[:, None] * self.n_candidates + np.arange(self.n_candidates)).reshape(-1)
        lengths = np.diff(self.offsets)[rows]
        mask = np.arange(lengths.max()) < lengths[:, None]
        flat = np.concatenate([np.arange(self.offsets[r], self.offsets[r + 1]) for r in rows])

        def padded(values: np.ndarray, fill: int) -> Tensor:
            out = np.full(mask.shape, fill, dtype=np.int64)
            out[mask] = values[flat]
            return torch.from_numpy(out).to(device)

        types = None if self.types is None else padded(self.types, 0)
        attention = torch.from_numpy(mask.astype(np.int64)).to(device)
        return Batch(padded(self.tokens, self.pad_id), attention, types)


def encode(
    tokenizer: Any, examples: Any, max_length: int = 512, kind: str = "classification"
) -> Encoded:
    """Tokenize texts, or pairs of texts, and truncate each row to ``max_length`` tokens.

    Args:
        tokenizer: a transformers tokenizer.
        examples: has ``ids``, ``texts`` and ``pairs`` (or None), all of one length.
        max_length: tokens; a smaller limit that the tokenizer knows takes precedence.
        kind: ``classification``: text and pair are one row, truncated on the right. ``preference``:
            text and pair are two rows of one example, truncated on the left, because the completion
            comes last.

    Raises:
        W2SError: if there are no rows, a row has no tokens at all, or a preference has no pairs.
    """
    if not len(examples.texts):
        raise W2SError("no examples to encode; expected at least one row")
    if kind not in ("classification", "preference"):
        raise W2SError(
            f"kind is {kind!r}; expected classification or preference (generation: "
            "encode_completions)"
        )
    limit = min(max_length, tokenizer.model_max_length)
    if kind == "preference":
        return _preferences(tokenizer, examples, limit)
    pairs = () if examples.pairs is None else (list(examples.pairs),)
    out = tokenizer(list(examples.texts), *pairs, truncation=True, max_length=limit)
    types = out.get("token_type_ids") if examples.pairs is not None else None
    return _encoded(tokenizer, out["input_ids"], types, examples.ids, 1)


def _preferences(tokenizer: Any, examples: Any, limit: int) -> Encoded:
    if examples.pairs is None:
        raise W2SError("preferences have no pairs; expected two completions an example")
    texts = [t for both in zip(examples.texts, examples.pairs, strict=True) for t in both]
    with truncation_side(tokenizer, "left"):
        out = tokenizer(texts, truncation=True, max_length=limit)
    return _encoded(tokenizer, out["input_ids"], None, examples.ids, 2)


def _encoded(
    tokenizer: Any,
    rows: Sequence[Sequence[int]],
    types: Sequence[Sequence[int]] | None,
    ids: Sequence[str],
    n_candidates: int,
) -> Encoded:
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    if (lengths == 0).any():
        row = int(np.flatnonzero(lengths == 0)[0]) // n_candidates
        raise W2SError(f"example {ids[row]!r} has no tokens; remove its row or fill it")
    return Encoded(
        tokens=np.fromiter(_flat(rows), np.int32, lengths.sum()),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        types=None if types is None else np.fromiter(_flat(types), np.int8, lengths.sum()),
        pad_id=pad_id(tokenizer),
        n_candidates=n_candidates,
    )


@contextlib.contextmanager
def truncation_side(tokenizer: Any, side: str) -> Iterator[None]:
    """Make a tokenizer truncate on this side, ``left`` or ``right``, inside the block."""
    before = tokenizer.truncation_side
    tokenizer.truncation_side = side
    try:
        yield
    finally:
        tokenizer.truncation_side = before


def epoch_order(n: int, seed: int, epoch: int) -> np.ndarray:
    """Return an (n,) int64 permutation, a function of its arguments."""
    return np.random.default_rng((seed, epoch)).permutation(n)


def derived_seed(seed: int, *keys: int) -> int:
    """Return a 63-bit seed that is a hash of ``seed`` and ``keys``."""
    text = ",".join(map(str, (seed, *keys)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


class RowOrder:
    """Rows of each optimizer step: the permutations of all epochs, split into batches.

    Every epoch visits every row once. A batch may span two epochs, so only the very last batch can
    be short.

    Args:
        n: number of rows.
        batch_size: rows of a step.
        epochs: visits of every row.
        seed: of the permutations.
        stages: (n,) integers, or None for one stage. All epochs of a stage precede those of the
            next larger one; a batch may span two stages.
    """

    def __init__(
        self, n: int, batch_size: int, epochs: int, seed: int, stages: np.ndarray | None = None
    ) -> None:
        self._batch_size, self._total, self._seed = batch_size, n * epochs, seed
        stages = np.zeros(n, dtype=np.int64) if stages is None else stages
        by_stage = np.argsort(stages, kind="stable")
        ends = np.flatnonzero(np.diff(stages[by_stage])) + 1
        self._stages = np.split(by_stage, ends)
        self._starts = np.array([0, *ends]) * epochs
        self._sizes = np.array([len(rows) for rows in self._stages])
        self._orders: dict[tuple[int, int], np.ndarray] = {}

    def rows(self, step: int) -> np.ndarray:
        """Return (<= batch_size,) int64 row numbers of optimizer step ``step``."""
        index = np.arange(step * self._batch_size, min((step + 1) * self._batch_size, self._total))
        stages = np.searchsorted(self._starts, index, side="right") - 1
        epochs, places = np.divmod(index - self._starts[stages], self._sizes[stages])
        keys = list(dict.fromkeys(zip(stages.tolist(), epochs.tolist(), strict=True)))
        orders = self._orders  # those of the last step, which this one may continue
        self._orders = {key: orders[key] if key in orders else self._order(*key) for key in keys}
        parts = [(stages == stage) & (epochs == epoch) for stage, epoch in keys]
        return np.concatenate(
            [self._orders[key][places[part]] for key, part in zip(keys, parts, strict=True)]
        )

    def _order(self, stage: int, epoch: int) -> np.ndarray:
        rows = self._stages[stage]
        seed = derived_seed(self._seed, stage) if stage else self._seed
        return rows[epoch_order(len(rows), seed, epoch)]


def check_stages(stages: np.ndarray, n: int) -> None:
    """Raise ``W2SError`` unless ``stages`` has one integer a row, (n,)."""
    if stages.shape != (n,) or not np.issubdtype(stages.dtype, np.integer):
        raise W2SError(
            f"stages have shape {stages.shape} and dtype {stages.dtype}; expected one integer a "
            f"row, ({n},): see `difficulty_stages`"
        )


# Tokens of a predicted batch: enough to keep every core busy, few enough for the caches.
BATCH_TOKENS = 4096
# Largest share of padding among the tokens of a batch.
_MAX_PADDING = 0.05


def token_batches(
    lengths: np.ndarray, batch_size: int, tokens: int = BATCH_TOKENS
) -> Iterator[np.ndarray]:
    """Yield row numbers in batches of similar length, longest first, so memory peaks at the start.

    A batch ends at ``batch_size`` rows, at ``tokens`` tokens (a single row may have more), or where
    a shorter row would add too much padding.
    """
    order = np.argsort(-lengths, kind="stable")
    start = real = 0
    for i, row in enumerate(order):
        rows = i - start
        longest = lengths[order[start]]
        full = rows >= batch_size or (rows + 1) * longest > tokens
        padded = real + lengths[row] < (1 - _MAX_PADDING) * (rows + 1) * longest
        if rows and (full or padded):
            yield order[start:i]
            start, real = i, 0
        real += lengths[row]
    if len(order):
        yield order[start:]


def pad_id(tokenizer: Any) -> int:
    """Return the token id that pads short rows."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return 0  # masked everywhere, so any valid id works


def _flat(rows: Sequence[Sequence[int]]) -> Iterator[int]:
    for row in rows:
        yield from row


def check_weak_labels(
    weak_labels: np.ndarray,
    weight: np.ndarray | None,
    n: int,
    n_classes: int | None,
    n_tokens: int | None = None,
) -> None:
    """Raise ``W2SError`` unless weak labels and weights fit ``n`` rows and ``n_classes`` classes.

    ``n_tokens``: number of labels of completions, which are token ids (L,).
    """
    if n_tokens is None and weak_labels.ndim == 2 and np.issubdtype(weak_labels.dtype, np.floating):
        expected: tuple[int, ...] = (n, n_classes or weak_labels.shape[1])
        bad = ~np.isfinite(weak_labels).all(1) | (weak_labels < 0).any(1)
        problem = "weak labels must be finite and not negative"
    elif weak_labels.ndim == 1 and np.issubdtype(weak_labels.dtype, np.integer):
        expected = (n if n_tokens is None else n_tokens,)
        bad = ((weak_labels < 0) & (weak_labels != -100)) | (weak_labels >= (n_classes or np.inf))
        problem = f"labels must be 0..{(n_classes or 0) - 1}, or -100 for a row not to use"
    else:
        raise W2SError(
            f"weak labels have shape {weak_labels.shape} and dtype {weak_labels.dtype}; expected "
            + ("integers (N,) or floats (N, C)" if n_tokens is None else "token ids (L,)")
        )
    if weak_labels.shape != expected:
        raise W2SError(
            f"weak labels have shape {weak_labels.shape}; expected {expected} to fit the data"
        )
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise W2SError(f"weak label {weak_labels[row].tolist()} in row {row}: {problem}")
    if weight is not None:
        if weight.shape != (n,):
            raise W2SError(f"weight has shape {weight.shape}; expected {(n,)} to fit the data")
        if not (np.isfinite(weight).all() and (weight >= 0).all()):
            raise W2SError("row weights must be finite and not negative")
        if (total := weight.sum(dtype=np.float64)) > np.finfo(np.float32).max:
            raise W2SError(
                f"row weights sum to {total:.3g}; expected a sum that 32 bits hold, divide them by "
                f"the largest, {weight.max():.3g}"
            )


def check_features(features: np.ndarray, n: int, width: int | None) -> None:
    """Raise ``W2SError`` unless the targets of a loss of features are finite, (n, width)."""
    if features.shape != (n, width) or not np.issubdtype(features.dtype, np.floating):
        raise W2SError(
            f"features have shape {features.shape} and dtype {features.dtype}; expected floating "
            f"point ({n}, {width})"
        )
    if not np.isfinite(features).all():
        raise W2SError("features have numbers that are not finite; expected finite ones")


def check_gold_classes(gold: np.ndarray | None, n: int, n_classes: int | None) -> None:
    """Raise ``W2SError`` unless ``gold`` is None or has a class or -100 for each row."""
    if gold is None:
        return
    if gold.shape != (n,) or not np.issubdtype(gold.dtype, np.integer):
        raise W2SError(
            f"gold has shape {gold.shape} and dtype {gold.dtype}; expected {n} integers, one true "
            "class per row"
        )
    bad = ((gold < 0) & (gold != -100)) | (gold >= (n_classes or np.inf))
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise W2SError(
            f"gold[{row}] is {gold[row]}; expected a class from 0 to {(n_classes or 0) - 1}, or "
            "-100 for a row without one"
        )
