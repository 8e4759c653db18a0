"""Log-probabilities of texts under a language model; logits are never stored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from w2s_fast.errors import W2SError
from w2s_fast.ops.fused_linear.logprob import linear_logprob, linear_topk_logprob
from w2s_fast.ops.lazy_logits import Projected
from w2s_fast.training.completions import CompletionBatch, Completions, encode_completions
from w2s_fast.training.engine import forward
from w2s_fast.training.prediction import map_batches


def sequence_logprob(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[str],
    completions: Sequence[str],
    max_length: int = 512,
    end: bool = True,
    batch_size: int = 64,
) -> np.ndarray:
    """Compute log p(completion | prompt), summed over the completion's tokens and the end token.

    Batches are distributed as in ``predict``; the model runs in eval mode and is returned to its
    mode.

    Args:
        model: a causal language model from ``build_model``.
        tokenizer, prompts, completions, max_length, end: see ``encode_completions``.
        batch_size: maximum rows of one forward.

    Returns:
        (N,) float32, nats.

    Raises:
        W2SError: see ``encode_completions``; or if a result is not finite.
    """
    data = encode_completions(tokenizer, prompts, completions, max_length, end)
    return completion_logprob(model, data, batch_size)


@torch.inference_mode()
def completion_logprob(model: nn.Module, data: Completions, batch_size: int = 64) -> np.ndarray:
    """Compute ``sequence_logprob`` of tokenized rows."""
    rows = _RowTracker(data)

    def compute(batch: CompletionBatch) -> Tensor:
        labels, owner = rows.labels(batch.positions.device)

        def sum_logprob(z: Projected) -> Tensor:
            tokens = linear_logprob(
                z.hidden, z.weight, labels, bias=z.bias, softcap=z.softcap, memory_mib=z.memory_mib
            )
            assert isinstance(tokens, Tensor)
            zero = tokens.new_zeros(len(batch.input_ids))
            return zero.index_add(0, owner, tokens).float().unsqueeze(1)

        return forward(model, batch, sum_logprob)

    return _check_finite(map_batches(model, rows, batch_size, compute)[:, 0])


@torch.inference_mode()
def next_token_probs(
    model: nn.Module,
    tokenizer: Any,
    texts: Sequence[str],
    words: Sequence[str],
    max_length: int = 512,
    batch_size: int = 64,
) -> np.ndarray:
    """Compare the probabilities of C words after each text, for zero-shot labels.

        p_c = p(word_c | text) / sum_k p(word_k | text)

    A word of several tokens is scored as a whole, without an end token. If every word is one token,
    one forward a text is enough; otherwise each pair of text and word needs one.

    Args:
        model: a causal language model from ``build_model``.
        tokenizer: its tokenizer.
        texts: N texts.
        words: C different words, including the space before them if there is one.
        max_length: tokens; a longer text loses its beginning.
        batch_size: maximum rows of one forward.

    Returns:
        (N, C) float32; rows sum to 1.

    Raises:
        W2SError: for fewer than two words, equal ones, or a word without tokens.
    """
    if len(set(words)) < max(2, len(words)):
        raise W2SError(f"words are {list(words)}; expected at least two different ones")
    repeated = [text for text in texts for _ in words]
    data = encode_completions(tokenizer, repeated, list(words) * len(texts), max_length, end=False)
    if len(data.labels) == len(data):
        logp = _first_tokens(model, data, len(words), batch_size)
    else:
        logp = completion_logprob(model, data, batch_size).reshape(-1, len(words))
    return torch.from_numpy(logp).softmax(1).numpy()


def _first_tokens(model: nn.Module, data: Completions, n_words: int, batch_size: int) -> np.ndarray:
    """Return (N, C) log-probabilities of one-token words, from one row a text."""
    ids = torch.from_numpy(data.labels.astype(np.int64)).view(-1, n_words)
    for row in ids.tolist():
        if len(set(row)) < n_words:
            raise W2SError(f"two words begin and end with the same token: {row}; use other words")
    rows = _RowTracker(data, every=n_words)

    def compute(batch: CompletionBatch) -> Tensor:
        word_ids = ids[torch.from_numpy(rows.last_batch)].to(batch.input_ids.device)

        def word_logprob(z: Projected) -> Tensor:
            logp, _ = linear_topk_logprob(
                z.hidden, z.weight, word_ids, bias=z.bias, softcap=z.softcap,
                memory_mib=z.memory_mib,
            )  # fmt: skip
            return logp.float()

        return forward(model, batch, word_logprob)

    return _check_finite(map_batches(model, rows, batch_size, compute))


class _RowTracker:
    """Rows for ``map_batches`` that remember which of them made the last batch.

    Args:
        data: the rows.
        every: row i stands for rows i every to i every + every - 1, whose inputs are the same.
    """

    def __init__(self, data: Completions, every: int = 1) -> None:
        self.data, self.every = data, every
        self.last_batch = np.zeros(0, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.data) // self.every

    @property
    def lengths(self) -> np.ndarray:
        return self.data.lengths[:: self.every]

    def batch(self, rows: np.ndarray, device: torch.device | str = "cpu") -> CompletionBatch:
        self.last_batch = rows
        return self.data.batch(rows * self.every, device)

    def labels(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return (n,) labels of the last batch and (n,) the row of the batch each belongs to."""
        index, owner = self.data.label_index(self.last_batch, 1)
        labels = torch.from_numpy(self.data.labels[index].astype(np.int64))
        return labels.to(device), torch.from_numpy(owner).to(device)


def _check_finite(logp: np.ndarray) -> np.ndarray:
    finite = np.isfinite(logp).reshape(len(logp), -1).all(1)
    if not finite.all():
        raise W2SError(
            f"the log-probability of row {int(np.flatnonzero(~finite)[0])} is not finite; the "
            "model has diverged, train it with a smaller lr"
        )
    return logp
