"""Run a model's own forward with a head that returns ``LazyLogits``.

While it runs, the attribute of the head is replaced by an object that returns ``LazyLogits`` of
hidden states. Scales, caps, shifts, the loss function, router losses and everything else in the
model's code therefore run unchanged; only the head and the cross-entropy are replaced.
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
from w2s_fast.integrations.patching.adapters import weight_owner
from w2s_fast.integrations.patching.lazy_logits import LazyLogits


def own_forward(lm: Any, inputs: dict[str, Any]) -> Any:
    """Return the output of the forward of the model's class, with named fields."""
    forward = type(lm).forward
    named = {"return_dict": True} if takes(forward, "return_dict") else {}
    return forward(lm, **inputs, **named)


@functools.cache
def takes(forward: Callable[..., Any], name: str) -> bool:
    """Return whether a forward accepts a keyword, by name or by ``**kwargs``."""
    parameters = inspect.signature(forward).parameters.values()
    return any(p.kind is p.VAR_KEYWORD or p.name == name for p in parameters)


class _HeadStandIn:
    """Replaces the head while a forward runs: same attributes, but calls return ``LazyLogits``."""

    def __init__(self, head: Any, cross_entropy: Callable[..., Tensor]) -> None:
        self._head, self._cross_entropy = head, cross_entropy

    def __getattr__(self, name: str) -> Any:
        return getattr(self._head, name)

    def __call__(self, hidden: Tensor) -> LazyLogits:
        width = int(weight_owner(self._head).out_features)
        kind = hidden.device.type
        auto = torch.is_autocast_enabled(kind) and hidden.dtype != torch.float64
        dtype = torch.get_autocast_dtype(kind) if auto else hidden.dtype
        return LazyLogits(hidden, width, dtype, self._cross_entropy)


def head_places(lm: Any, head: Any, known: list[tuple[Any, str]]) -> list[tuple[Any, str]]:
    """Return the modules that hold the head, and its names there; ``known`` is updated in place.

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
            f"the head of {type(lm).__name__} is not one of its modules; expected a causal LM of "
            "transformers with nn.Linear as its output embeddings"
        )
    return known


@contextmanager
def without_logits(
    lm: Any, known: list[tuple[Any, str]], cross_entropy: Callable[..., Tensor]
) -> Iterator[Any]:
    """Make the head return ``LazyLogits`` inside the block; yield the head."""
    head = lm.get_output_embeddings()
    places = list(head_places(lm, head, known))
    stand_in = _HeadStandIn(head, cross_entropy)
    for module, name in places:
        module.__dict__[name] = stand_in  # takes precedence over nn.Module's submodules
    try:
        yield head
    finally:
        for module, name in places:
            module.__dict__.pop(name, None)
