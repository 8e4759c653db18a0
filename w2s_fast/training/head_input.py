"""The input of a model's head during a training: truncated, and kept for terms that read it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from w2s_fast.errors import W2SError
from w2s_fast.models.weights import shape_of


def head_of(model: nn.Module, purpose: str) -> nn.Linear:
    """Return the linear head of a classifier.

    Args:
        model: as ``build_model`` makes it, a ``CachedHead`` or a ``LastLayer``.
        purpose: what needs the head, for the message.

    Raises:
        W2SError: the model has no linear head on one vector a row.
    """
    head = getattr(model, "head", None)
    if not isinstance(head, nn.Linear):
        raise W2SError(
            f"{purpose} works on the input of a linear head, and {type(model).__name__} has none; "
            "use a classifier on hidden states"
        )
    return head


class HeadInput:
    """Hooks on the heads of a model: what they read.

    Attributes:
        size: D, entries of the input.
        width: entries of the input that the heads see, the first ones; the others are 0. None: all.
        last: (B, D) input of the first head in its last forward, truncated, with its graph.

    Args:
        heads: linear layers of one width.
    """

    def __init__(self, *heads: nn.Linear) -> None:
        self.size = int(shape_of(heads[0].weight)[1])
        self.width: int | None = None
        self.last: Tensor | None = None
        self._first = heads[0]
        self._handles = [head.register_forward_pre_hook(self._before) for head in heads]

    def _before(self, head: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        x = truncated(inputs[0], self.width)
        if head is self._first:
            self.last = x
        return (x, *inputs[1:])

    @contextlib.contextmanager
    def at_width(self, width: int | None) -> Iterator[None]:
        """Truncate the input inside the block."""
        self.width = width
        try:
            yield
        finally:
            self.width = self.last = None

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()


def truncated(x: Tensor, width: int | None) -> Tensor:
    """Return x (..., D) with zeros from column ``width`` on; x itself for None."""
    if width is None:
        return x
    return x.masked_fill(torch.arange(x.shape[-1], device=x.device) >= width, 0.0)
