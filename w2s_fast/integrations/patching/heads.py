"""The head of a language model, used inside its own call.

Whoever shards a weight brings it together when the module that owns it is called, and takes its
gradient from there. So the loss is computed in the head's own forward: one more keyword, given by
nobody but a patched model. The head stays the module it was, under the names it had.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

from torch import Tensor, nn

from w2s_fast.errors import W2SError
from w2s_fast.integrations.patching.adapters import Then, adapted, owner, owners
from w2s_fast.integrations.patching.whole import Mark
from w2s_fast.models.lm_head import check_gathered
from w2s_fast.models.weights import shape_of

# Libraries whose hooks on a head move or make its weight and leave hidden states and output alone.
_MOVERS = ("torch.distributed", "torch.nn.utils", "deepspeed", "accelerate", "transformers")


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
        W2SError: if the head was replaced or got a hook of somebody else after ``patch``, or has an
            adapter that is not served.
    """
    own = owner(head)
    mine = getattr(own.__dict__.get("forward"), "__func__", None) is _forward
    mine = mine and type(own).forward is nn.Linear.forward
    if not hasattr(own, "_w2s_head") or not mine:
        raise W2SError(
            f"the head, a {type(own).__name__}, is not the one that was patched; unpatch the model "
            "and patch it again"
        )
    refuse_hooks(head)
    return own(hidden, then=adapted(head, then)(hidden))


def refuse_hooks(head: Any) -> None:
    """Raise ``W2SError`` for hooks that see, or change, logits that are never made."""
    for module in head.modules():
        for kind in (
            "_forward_pre_hooks",
            "_forward_hooks",
            "_backward_hooks",
            "_backward_pre_hooks",
        ):
            for hook in getattr(module, kind, {}).values():
                if not origin(hook).startswith(_MOVERS):
                    raise W2SError(
                        f"the head has a hook of {origin(hook)}, which may change what goes into "
                        "it or needs what comes out; a patched model calls its head with some rows "
                        "only and makes no logits; remove the hook or unpatch the model"
                    )


def refuse_head(name: str, head: Any) -> None:
    """Raise ``W2SError`` for a head that is not plain ``nn.Linear`` beneath its adapters."""
    if head is None:
        raise W2SError(f"{name} has no language-model head; expected a causal LM")
    for own in owners(head):
        _refuse_owner(name, own)
    refuse_hooks(head)


def _refuse_owner(name: str, own: Any) -> None:
    weight = getattr(own, "weight", None)
    linear = isinstance(own, nn.Linear) and type(own).forward is nn.Linear.forward
    if not linear or weight is None or not weight.is_floating_point():
        raise W2SError(f"the head of {name} is a {type(own).__name__}; expected nn.Linear")
    if "forward" in own.__dict__:
        raise W2SError(
            f"the forward of the head of this {name} was replaced by {origin(own.forward)}; load "
            "the model without that"
        )
    if shape_of(weight)[0] != own.out_features:
        raise W2SError(
            f"the head of {name} holds {tuple(weight.shape)} of {own.out_features} classes; patch "
            "before tensor parallelism or FSDP"
        )


def origin(function: Any) -> str:
    """The module that a forward or a hook comes from; it may wear the name of what it wraps."""
    function = getattr(function, "__func__", function)
    function = getattr(function, "func", function)  # of functools.partial
    function = getattr(function, "__func__", function)
    if not hasattr(function, "__globals__"):  # an object that is called
        return type(function).__module__
    name = str(function.__globals__.get("__name__") or "someone else")
    inner = getattr(function, "__wrapped__", None)
    # torch.compiler.disable, as libraries decorate their hooks.
    return origin(inner) if name.startswith("torch._dynamo") and inner else name
