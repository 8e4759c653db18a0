"""Pairs of completions for tests, and their log-probabilities from a model's own logits."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from helpers.generation_cases import WORDS
from w2s_fast.training import CompletionPairs, encode_pairs

N = 11


def pair_texts(n: int = N, longest: int = 9) -> tuple[list[str], list[str], list[str]]:
    """Prompts of one word or more, and completions of very different lengths."""
    rng = np.random.default_rng(3)

    def some(low: int, high: int) -> str:
        return " ".join(rng.choice(WORDS, rng.integers(low, high)))

    prompts = [some(1, 6) for _ in range(n)]
    first = [f" {some(1, longest)}" for _ in range(n)]
    second = [f" {some(1, longest)} key key" for _ in range(n)]
    return prompts, first, second


def soft_q(n: int = N) -> np.ndarray:
    """Weak labels (N, 2)."""
    q = np.random.default_rng(4).uniform(size=n)
    return np.stack([q, 1 - q], 1)


def with_columns(pairs: CompletionPairs) -> CompletionPairs:
    """The pairs with a reference and a target that no model gave."""
    rng = np.random.default_rng(5)
    length = np.diff(pairs.completions.starts).reshape(-1, 2)
    reference = -3.0 * length + rng.normal(size=length.shape)
    return pairs.with_reference(reference).with_target(rng.normal(size=length.shape))


def encoded(tokenizer: Any, n: int = N) -> CompletionPairs:
    """These pairs, tokenized, with all columns."""
    return with_columns(encode_pairs(tokenizer, *pair_texts(n)))


def plain_logprob(lm: Any, pairs: CompletionPairs) -> Tensor:
    """(N, 2) differentiable log-probabilities, one forward a completion, without padding."""
    data, rows = pairs.completions, []
    for i in range(2 * len(pairs)):
        ids = torch.from_numpy(data.tokens[data.offsets[i] : data.offsets[i + 1]].astype(np.int64))
        labels = torch.from_numpy(data.labels[data.starts[i] : data.starts[i + 1]].astype(np.int64))
        logp = lm(input_ids=ids[None]).logits[0, -len(labels) :].log_softmax(-1)
        rows.append(logp.gather(1, labels[:, None]).sum())
    return torch.stack(rows).view(-1, 2)
