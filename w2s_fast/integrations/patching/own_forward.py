"""A model's own forward, with its head kept from making logits.

While it runs, the head's name in the module that holds it gives ``LazyLogits`` of hidden states.
Scales, caps, shifts, the loss function, router losses and whatever else stands in the model's code
are therefore the model's own at every call; only the head and the cross-entropy are replaced.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.integrations.patching.adapters import owner
from w2s_fast.integrations.patching.lazy_logits import LazyLogits


def own_forward(lm: Any, given: dict[str, Any]) -> Any:
    """What the forward of the model's class gives, as an output with names."""
    forward = type(lm).forward
    named = {"return_dict": True} if takes(forward, "return_dict") else {}
    return forward(lm, **given, **named)


@functools.cache
def takes(forward: Callable[..., Any], name: str) -> bool:
    """Whether a forward has a keyword, or passes on those that it does not name."""
    parameters = inspect.signature(forward).parameters.values()
    return any(p.kind is p.VAR_KEYWORD or p.name == name for p in parameters)


class _Stand:
    """Stands for the head while a forward runs: its attributes, and lazy logits of its calls."""

    def __init__(self, head: Any, cross_entropy: Callable[..., Tensor]) -> None:
        self._head, self._cross_entropy = head, cross_entropy

    def __getattr__(self, name: str) -> Any:
        return getattr(self._head, name)

    def __call__(self, hidden: Tensor) -> LazyLogits:
        width = int(owner(self._head).out_features)
        kind = hidden.device.type
        auto = torch.is_autocast_enabled(kind) and hidden.dtype != torch.float64
        dtype = torch.get_autocast_dtype(kind) if auto else hidden.dtype
        return LazyLogits(hidden, width, dtype, self._cross_entropy)


def places(lm: Any, head: Any, known: list[tuple[Any, str]]) -> list[tuple[Any, str]]:
    """The modules that hold the head, and its names there; ``known`` is what it was before.

    Raises:
        W2SError: if none does.
    """
    if not known or any(module._modules.get(name) is not head for module, name in known):
        known[:] = [
            (module, name)
            for module in lm.modules()
            for name, child in module._modules.items()
            if child is head
        ]
    if not known:
        raise W2SError(
            f"the head of {type(lm).__name__} is none of its modules; expected a causal LM of "
            "transformers with nn.Linear as its output embeddings"
        )
    return known


@contextmanager
def without_logits(
    lm: Any, known: list[tuple[Any, str]], cross_entropy: Callable[..., Tensor]
) -> Iterator[Any]:
    """Let the head give ``LazyLogits`` inside the block; yields the head."""
    head = lm.get_output_embeddings()
    held = list(places(lm, head, known))
    stand = _Stand(head, cross_entropy)
    for module, name in held:
        module.__dict__[name] = stand  # found before nn.Module looks among its modules
    try:
        yield head
    finally:
        for module, name in held:
            module.__dict__.pop(name, None)
