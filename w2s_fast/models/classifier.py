"""Classifiers that ``build_model`` makes: a pooled transformer with a head, and a bag of words.

B sequences, T tokens, D hidden, C classes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from w2s_fast.errors import W2SError


class Head(nn.Linear):
    """A linear layer that computes in fp32, or fp64 for fp64 weights, whatever its dtype is."""

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C) outputs of x (B, D)."""
        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        bias = None if self.bias is None else self.bias.to(dtype)
        return nn.functional.linear(x.to(dtype), self.weight.to(dtype), bias)


class Classifier(nn.Module):
    """A transformers base model, one pooled vector a sequence, and a linear head in fp32.

    Args:
        base: model whose output has ``last_hidden_state`` (B, T, D).
        n_classes: C.
        pooling: ``last``, ``mean`` or ``cls``.
        head_init: ``zero`` or ``small``.
        frozen: train the head alone; the base then runs without a graph.
        n_candidates: 1: one row of tokens an example, with C logits. C: a row of tokens for each
            candidate of an example, with one score r(.); the scores are the C logits. For two
            completions the probability of the second is then sigmoid(r_2 - r_1), as in a reward
            model.
    """

    def __init__(
        self,
        base: nn.Module,
        n_classes: int,
        pooling: str,
        head_init: str,
        *,
        frozen: bool = False,
        n_candidates: int = 1,
    ) -> None:
        super().__init__()
        self.base: Any = base
        self.frozen = frozen
        if frozen:
            base.requires_grad_(False)
        self.n_classes, self.pooling = n_classes, pooling
        config: Any = base.config
        # A bias would cancel in the softmax over scores.
        outputs, bias = (n_classes, True) if n_candidates == 1 else (1, False)
        self.head = Head(config.hidden_size, outputs, bias=bias, dtype=torch.float32)
        with torch.no_grad():
            self.head.weight.mul_(0.0 if head_init == "zero" else 0.01)
            if bias:
                self.head.bias.zero_()
        if getattr(config, "use_cache", False):
            config.use_cache = False  # a single forward never reads the cache
        self._limit = position_limit(base)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """Return (B, C) fp32 logits of right-padded ids and mask, both (B n_candidates, T)."""
        check_length(input_ids, self._limit)
        segments = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            hidden = self.base(
                input_ids=input_ids, attention_mask=attention_mask, **segments
            ).last_hidden_state
            pooled = pool(hidden, attention_mask, self.pooling)
        return self.head(pooled).view(-1, self.n_classes)

    def gradient_checkpointing(self, on: bool) -> None:
        """Turn recomputation of activations in backward on or off."""
        switch_checkpointing(self.base, on)


def position_limit(base: Any) -> int | None:
    """Return the number of learned position embeddings of a model; None if it has none."""
    names = ("position_embeddings", "wpe", "embed_positions")
    learned = any(part in name for name, _ in base.named_parameters() for part in names)
    return base.config.max_position_embeddings if learned else None


def check_length(input_ids: Tensor, limit: int | None) -> None:
    """Raise ``W2SError`` for rows (B, T) of more tokens than the model has positions."""
    if limit is not None and input_ids.shape[1] > limit:
        raise W2SError(
            f"a sequence has {input_ids.shape[1]} tokens, the model has {limit} positions; set "
            f"max_length={limit}"
        )


def switch_checkpointing(base: Any, on: bool) -> None:
    """Turn gradient checkpointing of a transformers model on or off."""
    # transformers 5 renamed the methods.
    new = hasattr(base, "activation_checkpointing_enable")
    name = "activation_checkpointing" if new else "gradient_checkpointing"
    if on:
        getattr(base, f"{name}_enable")({"use_reentrant": False})
    else:
        getattr(base, f"{name}_disable")()


def pool(hidden: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """Pool right-padded hidden states (B, T, D) to (B, D): ``last``, ``mean`` or ``cls``."""
    if pooling == "cls":
        return hidden[:, 0]
    if pooling == "last":
        # By mask, not by token id: the padding id may be a real token.
        return hidden[torch.arange(len(hidden), device=hidden.device), mask.sum(1) - 1]
    weight = mask.unsqueeze(2).to(torch.promote_types(hidden.dtype, torch.float32))
    return (hidden.to(weight.dtype) * weight).sum(1) / weight.sum(1)


class BagOfWords(nn.Module):
    """Linear model of token counts: logits = bias + sum_t W[id_t] / sqrt(number of tokens).

    The square root keeps long and short texts on a common scale. All weights start at 0, so the
    model is the same for every seed and its training objective is convex.
    """

    def __init__(self, vocabulary: int, n_classes: int, n_candidates: int = 1) -> None:
        super().__init__()
        self.n_classes = n_classes
        outputs = n_classes if n_candidates == 1 else 1  # see ``Classifier``
        self.weight = nn.Parameter(torch.zeros(vocabulary, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs)) if n_candidates == 1 else None

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """Return (B, C) logits; they do not depend on segments or the order of tokens."""
        mask = attention_mask.unsqueeze(2).to(self.weight.dtype)
        total = (self.weight[input_ids] * mask).sum(1)
        scores = total / mask.sum(1).sqrt()
        return (scores if self.bias is None else self.bias + scores).view(-1, self.n_classes)
