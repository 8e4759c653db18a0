"""Classifiers that ``build_model`` makes: a pooled transformer with a head, and a bag of words.

B sequences, T tokens, D hidden, C classes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from w2s_fast.errors import W2SError
from w2s_fast.models.weights import gathered


class Head(nn.Linear):
    """A linear layer that computes in fp32, or fp64 for fp64 weights, whatever its dtype is."""

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C) outputs of x (B, D)."""
        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        bias = None if self.bias is None else self.bias.to(dtype)
        return nn.functional.linear(x.to(dtype), self.weight.to(dtype), bias)


class PrefixHead(Head):
    """A head that reads prefixes of its input: in training each of them, else one.

    Args:
        features: D.
        n_classes: C.
        prefixes: P rising numbers of features, at most D.
        prefix: the one of them that predicts.
    """

    def __init__(
        self, features: int, n_classes: int, prefixes: tuple[int, ...], prefix: int
    ) -> None:
        super().__init__(features, n_classes, dtype=torch.float32)
        self.prefixes, self.prefix = prefixes, prefix

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, P C) logits in training mode, those of prefix p in columns p C to p C + C.

        Otherwise return (B, C). In training the parts between prefixes are multiplied once and
        summed, so that all of them cost as much as one head.
        """
        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        x, weight, bias = x.to(dtype), self.weight.to(dtype), self.bias.to(dtype)
        if not self.training:
            return nn.functional.linear(x[:, : self.prefix], weight[:, : self.prefix], bias)
        z, start, parts = bias, 0, []
        for m in self.prefixes:
            z = z + x[:, start:m] @ weight[:, start:m].T
            parts.append(z)
            start = m
        return torch.cat(parts, dim=1)

    @torch.no_grad()
    def cut(self) -> None:
        """Set the weights beyond the prefix that predicts to zero: an equal, plain head."""
        with gathered([self.weight], change=True):
            self.weight[:, self.prefix :] = 0.0


class Projection(nn.Module):
    r"""Two linear layers with a ReLU between them, in fp32 as ``Head``: relu(x A + a) B + b.

    Training makes features unequal, the more the nearer they are to the labels: those that the
    labels need little fade. Between backbone and head it takes that on itself, and is dropped after
    the training. Source: Xue et al. 2024 (arXiv 2403.11391), for supervised learning too; Chen et
    al. 2020 (SimCLR, arXiv 2002.05709).

    Args:
        features: D.
        width: P, of both layers.
    """

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.lower = Head(features, width, dtype=torch.float32)
        self.upper = Head(width, width, dtype=torch.float32)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, P) projections of x (B, D)."""
        return self.upper(self.lower(x).relu())


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
        projection: maps pooled vectors (B, D) to the head's inputs (B, ``width``); None: the head
            reads them as they are.
        prefixes: rising shares in (0, 1] of the head's inputs: a ``PrefixHead``; (): none.
        prefix: the one of them that predicts.
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
        projection: Projection | None = None,
        prefixes: tuple[float, ...] = (),
        prefix: float = 1.0,
    ) -> None:
        super().__init__()
        self.base: Any = base
        self.frozen = frozen
        if frozen:
            base.requires_grad_(False)
        self.n_classes, self.pooling, self.n_candidates = n_classes, pooling, n_candidates
        config: Any = base.config
        # A bias would cancel in the softmax over scores.
        outputs, bias = (n_classes, True) if n_candidates == 1 else (1, False)
        self.projection = projection
        width = config.hidden_size if projection is None else projection.width
        self.head: Head = Head(width, outputs, bias=bias, dtype=torch.float32)
        if prefixes:
            numbers = [max(1, round(share * width)) for share in prefixes]
            at = numbers[prefixes.index(prefix)]
            self.head = PrefixHead(width, outputs, tuple(numbers), at)
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
        if self.projection is not None:
            pooled = self.projection(pooled)
        out = self.head(pooled)
        return out if self.n_candidates == 1 else out.view(-1, self.n_classes)

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
