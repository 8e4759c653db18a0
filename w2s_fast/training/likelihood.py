"""How likely a language model finds given words: log-probabilities, logits never stored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from w2s_fast.errors import W2SError
from w2s_fast.ops.fused_linear.logprob import linear_logprob, linear_topk_logprob
from w2s_fast.ops.lazy_logits import Projected
from w2s_fast.training.completions import AnswerBatch, Answers, encode_answers
from w2s_fast.training.prediction import share
from w2s_fast.training.step import forward


def sequence_logprob(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[str],
    answers: Sequence[str],
    max_length: int = 512,
    end: bool = True,
    batch_size: int = 64,
) -> np.ndarray:
    """log p(answer | prompt): the sum over the answer's tokens, and over the end token.

    Batched and shared out as in ``predict``; the model runs in eval mode and comes back as it was.

    Args:
        model: of ``build_model(..., kind="generation")``.
        tokenizer, prompts, answers, max_length, end: see ``encode_answers``.
        batch_size: rows of one forward at most.

    Returns:
        (N,) float32, nats.

    Raises:
        W2SError: see ``encode_answers``; or if a result is not finite.
    """
    data = encode_answers(tokenizer, prompts, answers, max_length, end)
    return answer_logprob(model, data, batch_size)


@torch.inference_mode()
def answer_logprob(model: nn.Module, data: Answers, batch_size: int = 64) -> np.ndarray:
    """``sequence_logprob`` of rows that are tokenized already."""
    rows = _Numbered(data)

    def compute(batch: AnswerBatch) -> Tensor:
        labels, owner = rows.labels(batch.positions.device)

        def then(z: Projected) -> Tensor:
            tokens = linear_logprob(
                z.hidden, z.weight, labels, bias=z.bias, softcap=z.softcap, memory_mib=z.memory_mib
            )
            assert isinstance(tokens, Tensor)
            zero = tokens.new_zeros(len(batch.input_ids))
            return zero.index_add(0, owner, tokens).float().unsqueeze(1)

        return forward(model, batch, then)

    return _finite(share(model, rows, batch_size, compute)[:, 0])


@torch.inference_mode()
def next_token_probs(
    model: nn.Module,
    tokenizer: Any,
    texts: Sequence[str],
    words: Sequence[str],
    max_length: int = 512,
    batch_size: int = 64,
) -> np.ndarray:
    """How a language model weighs C words after a text: zero-shot labels.

        p_c = p(word_c | text) / sum_k p(word_k | text)

    A word of several tokens counts as a whole, without an end token. Words of one token each need
    one forward a text, others one for each of them.

    Args:
        model: of ``build_model(..., kind="generation")``.
        tokenizer: its tokenizer.
        texts: N texts.
        words: C different words, with the space before them if there is one.
        max_length: tokens; of a longer text the end is read.
        batch_size: rows of one forward at most.

    Returns:
        (N, C) float32; rows sum to 1.

    Raises:
        W2SError: for fewer than two words, equal ones, or a word without tokens.
    """
    if len(set(words)) < max(2, len(words)):
        raise W2SError(f"words are {list(words)}; expected at least two different ones")
    repeated = [text for text in texts for _ in words]
    data = encode_answers(tokenizer, repeated, list(words) * len(texts), max_length, end=False)
    if len(data.labels) == len(data):
        logp = _first_tokens(model, data, len(words), batch_size)
    else:
        logp = answer_logprob(model, data, batch_size).reshape(-1, len(words))
    return torch.from_numpy(logp).softmax(1).numpy()


def _first_tokens(model: nn.Module, data: Answers, n_words: int, batch_size: int) -> np.ndarray:
    """(N, C) log-probabilities of words of one token, from one row a text."""
    ids = torch.from_numpy(data.labels.astype(np.int64)).view(-1, n_words)
    for row in ids.tolist():
        if len(set(row)) < n_words:
            raise W2SError(f"two words begin and end with the same token: {row}; use other words")
    rows = _Numbered(data, every=n_words)

    def compute(batch: AnswerBatch) -> Tensor:
        wanted = ids[torch.from_numpy(rows.taken)].to(batch.input_ids.device)

        def then(z: Projected) -> Tensor:
            logp, _ = linear_topk_logprob(
                z.hidden, z.weight, wanted, bias=z.bias, softcap=z.softcap, memory_mib=z.memory_mib
            )
            return logp.float()

        return forward(model, batch, then)

    return _finite(share(model, rows, batch_size, compute))


class _Numbered:
    """Rows for ``share`` that remember which of them made the last batch.

    ``every``: row i stands for rows i every to i every + every - 1, whose inputs are the same.
    """

    def __init__(self, data: Answers, every: int = 1) -> None:
        self.data, self.every = data, every
        self.taken = np.zeros(0, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.data) // self.every

    @property
    def lengths(self) -> np.ndarray:
        return self.data.lengths[:: self.every]

    def batch(self, rows: np.ndarray, device: torch.device | str = "cpu") -> AnswerBatch:
        self.taken = rows
        return self.data.batch(rows * self.every, device)

    def labels(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """(n,) labels of the last batch and (n,) the row of the batch each belongs to."""
        index, owner = self.data.label_index(self.taken, 1)
        labels = torch.from_numpy(self.data.labels[index].astype(np.int64))
        return labels.to(device), torch.from_numpy(owner).to(device)


def _finite(found: np.ndarray) -> np.ndarray:
    if not np.isfinite(found).all():
        row = int(np.flatnonzero(~np.isfinite(found).reshape(len(found), -1).all(1))[0])
        raise W2SError(
            f"the log-probability of row {row} is not finite; the model has diverged, train it "
            "with a smaller lr"
        )
    return found
