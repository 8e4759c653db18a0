"""From texts to batches: encoding, orders, and batches of like length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from w2s_fast.errors import W2SError
from w2s_fast.tasks.datasets.agreement import tokenizer as agreement_tokenizer
from w2s_fast.training import encode
from w2s_fast.training.data import RowOrder, token_batches


@dataclass(frozen=True)
class Rows:
    ids: tuple[str, ...]
    texts: tuple[str, ...]
    pairs: tuple[str, ...] | None = None


def test_encode() -> None:
    tokenizer: Any = agreement_tokenizer()
    rows = Rows(("x", "y", "z"), ("the key", "a", "the old red door"))
    data = encode(tokenizer, rows, max_length=3)
    assert data.lengths.tolist() == [3, 2, 3]
    batch = data.batch(np.array([1, 2]))
    eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    a, the, old = tokenizer.convert_tokens_to_ids(["a", "the", "old"])
    assert batch.input_ids.tolist() == [[eos, a, pad], [eos, the, old]]
    assert batch.attention_mask.tolist() == [[1, 1, 0], [1, 1, 1]]
    assert batch.token_type_ids is None
    with pytest.raises(W2SError, match="at least one row"):
        encode(tokenizer, Rows((), ()))


def test_encode_pairs_and_empty_rows() -> None:
    class Words:
        """Segment ids like BERT's; an empty text has no tokens."""

        model_max_length, pad_token_id, eos_token_id = 8, None, None

        def __call__(self, texts: list[str], pairs: list[str] | None = None, **_: Any) -> Any:
            first = [[len(w) for w in t.split()] for t in texts]
            second = [[len(w) for w in t.split()] for t in pairs or [""] * len(texts)]
            return {
                "input_ids": [a + b for a, b in zip(first, second, strict=True)],
                "token_type_ids": [
                    [0] * len(a) + [1] * len(b) for a, b in zip(first, second, strict=True)
                ],
            }

    data = encode(Words(), Rows(("x", "y"), ("a bb", "c"), ("ddd", "e ff")))
    types = data.batch(np.array([0, 1])).token_type_ids
    assert types is not None and types.tolist() == [[0, 0, 1], [0, 1, 1]]
    with pytest.raises(W2SError, match="'y' has no tokens"):
        encode(Words(), Rows(("x", "y"), ("a", " ")))


def test_row_order() -> None:
    """Every epoch has every row once, in an order of its own; only the last batch is short."""
    order = RowOrder(10, 4, 3, seed=7)
    rows = [order.rows(s) for s in range(8)]
    assert [len(r) for r in rows] == [4] * 7 + [2]
    flat = np.concatenate(rows)
    epochs = flat.reshape(3, 10)
    assert all(sorted(e) == list(range(10)) for e in epochs)
    assert len({tuple(e) for e in epochs}) == 3
    late = RowOrder(10, 4, 3, seed=7).rows(6)  # no memory of earlier steps
    assert np.array_equal(late, rows[6])
    assert not np.array_equal(
        np.concatenate([RowOrder(10, 4, 3, 8).rows(s) for s in range(8)]), flat
    )


def test_token_batches() -> None:
    """Every row once, longest first; no batch has more rows, tokens or padding than it may."""
    lengths = np.random.default_rng(0).integers(1, 300, 500)
    batches = list(token_batches(lengths, 16, tokens=1000))
    assert sorted(np.concatenate(batches).tolist()) == list(range(500))
    groups = [lengths[rows] for rows in batches]
    assert all(a.min() >= b.max() for a, b in zip(groups, groups[1:], strict=False))
    for sizes in groups:
        area = len(sizes) * sizes.max()
        assert len(sizes) <= 16 and (area <= 1000 or len(sizes) == 1)
        assert sizes.sum() >= 0.95 * area
    assert max(map(len, batches)) > 1
    assert list(token_batches(np.array([], dtype=np.int64), 16)) == []
    (one,) = token_batches(np.array([5000]), 16)
    assert one.tolist() == [0]
