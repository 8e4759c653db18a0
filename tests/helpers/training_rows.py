"""Rows, weak labels and a small model for the tests of the training loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from w2s_fast.models import ModelConfig, build_model
from w2s_fast.training import Encoded, TrainConfig, encode

N = 44


BASE = TrainConfig(epochs=2, batch_size=16, lr=1e-2)


@dataclass(frozen=True)
class Rows:
    ids: tuple[str, ...]
    texts: tuple[str, ...]
    pairs: tuple[str, ...] | None = None


def small_model(tokenizer: Any, dtype: str = "fp32", **fields: Any) -> nn.Module:
    cfg = ModelConfig("scratch", hidden=16, heads=2, head_init="small", dtype=dtype, **fields)
    return build_model(cfg, 2, tokenizer, 0)


def encoded_rows(tokenizer: Any) -> Encoded:
    """N short texts, the same in every test."""
    words = ["the", "old", "key", "near", "a", "boy", "door", "cat", "dog", "red"]
    rng = np.random.default_rng(0)
    texts = tuple(" ".join(rng.choice(words, rng.integers(1, 9))) for _ in range(N))
    return encode(tokenizer, Rows(tuple(map(str, range(N))), texts))


def soft_labels() -> np.ndarray:
    """Weak labels (N, 2) of these texts."""
    p = np.random.default_rng(1).uniform(size=N)
    return np.stack([1 - p, p], 1)
