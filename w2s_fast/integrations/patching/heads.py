"""The head of a language model, used inside its own call.

Whoever shards a weight brings it together when the module that owns it is called, and takes its
gradient from there. So the loss is computed in the head's own forward: one more keyword, given by
nobody but a patched model. The head stays the module it was, under the names it had.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import MethodType
from typing import Any

import torch
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.integrations.patching.whole import Mark
from w2s_fast.models.lm_head import check_gathered

# What is done with hidden states (..., D), the head's weight (V, D) and its bias (V,) or None.
Then = Callable[[Tensor, Tensor, Tensor | None], Any]


def owner(head: Any) -> Any:
    """The module that owns the weight: of an adapted head, the one beneath its adapters."""
    if _is_copied(head):
        active = head.active_adapters
        plain = head.disable_adapters or not active
        return owner(head.original_module if plain else head.modules_to_save[active[0]])
    return owner(head.base_layer) if hasattr(head, "base_layer") else head


def owners(head: Any) -> Iterator[Any]:
    """All that ``owner`` may be while adapters are switched on and off."""
    if _is_copied(head):
        for one in (head.original_module, *head.modules_to_save.values()):
            yield from owners(one)
    else:
        yield owner(head)


def _is_copied(head: Any) -> bool:
    """Whether peft trains a copy of the whole head (``modules_to_save``)."""
    return hasattr(head, "modules_to_save") and hasattr(head, "original_module")


def take_over(head: Any) -> None:
    """Let the forward of a head take ``then``; without it, it is what it was."""
    for own in owners(head):
        own.forward = MethodType(_forward, own)
        own._w2s_head = Mark()


def hand_back(lm: Any) -> None:
    """Undo ``take_over`` in every module of a model; adapters may have copied the head."""
    for module in lm.modules():
        if module.__dict__.pop("_w2s_head", None):
            del module.forward


def _forward(self: Any, hidden: Tensor, then: Then | None = None) -> Any:
    if then is None:
        return type(self).forward(self, hidden)
    check_gathered(self.weight)
    return then(hidden, self.weight, self.bias)


def through(head: Any, hidden: Tensor, then: Then) -> Any:
    """``then`` of the head, adapters included, inside the call of the module that owns it.

    Raises:
        W2SError: if the head was replaced after ``patch``, or has an adapter other than plain LoRA.
    """
    own = owner(head)
    if not hasattr(own, "_w2s_head"):
        raise W2SError(
            f"the head, a {type(own).__name__}, is not the one that was patched; unpatch the model "
            "and patch it again"
        )
    if hasattr(head, "base_layer"):
        then = _adapted(head, hidden, then)
    return own(hidden, then=then)


def _adapted(head: Any, hidden: Tensor, then: Then) -> Then:
    """LoRA on the head, W x + s B A x, as one wider head: [W, B] [x, s A x]."""
    if hasattr(head.base_layer, "base_layer") or not hasattr(head, "lora_A"):
        raise W2SError(f"the head has adapters of type {type(head).__name__}; expected plain LoRA")
    if head.disable_adapters and head.merged:
        head.unmerge()
    if head.disable_adapters or head.merged:
        return then
    columns, weights = [hidden], []
    for name in head.active_adapters:
        if name not in head.lora_A:
            continue
        down, up = head.lora_A[name], head.lora_B[name]
        if name in head.lora_variant or up.bias is not None:
            raise W2SError("the head's LoRA is a variant (DoRA, bias); expected plain LoRA")
        x = head.lora_dropout[name](hidden.to(down.weight.dtype))
        columns.append((down(x) * head.scaling[name]).to(hidden.dtype))
        check_gathered(up.weight)
        weights.append(up.weight)

    def wider(_: Tensor, weight: Tensor, bias: Tensor | None) -> Any:
        ups = [up.to(weight.dtype) for up in weights]
        return then(torch.cat(columns, -1), torch.cat([weight, *ups], 1), bias)

    return wider
