"""peft adapters on a language model's head: the module with the weight, and the adapted product."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.models.lm_head import check_gathered

# A function of hidden states (..., D), the head's weight (V, D) and its bias (V,) or None.
HeadFn = Callable[[Tensor, Tensor, Tensor | None], Any]


def weight_owner(head: Any) -> Any:
    """Return the module with the weight: the one below the adapters of an adapted head."""
    if _retrains_tokens(head):
        return weight_owner(head.token_adapter)
    if _is_copied(head):
        active = head.active_adapters
        unadapted = head.disable_adapters or not active
        original, copies = head.original_module, head.modules_to_save
        return weight_owner(original if unadapted else copies[active[0]])
    return weight_owner(head.base_layer) if hasattr(head, "base_layer") else head


def weight_owners(head: Any) -> Iterator[Any]:
    """Yield every module that ``weight_owner`` may return as adapters are switched on and off."""
    if _is_copied(head) and not _retrains_tokens(head):
        for module in (head.original_module, *head.modules_to_save.values()):
            yield from weight_owners(module)
    else:
        yield weight_owner(head)


def _is_copied(head: Any) -> bool:
    """Return whether peft trains a copy of the whole head (``modules_to_save``)."""
    return hasattr(head, "modules_to_save") and hasattr(head, "original_module")


def _retrains_tokens(head: Any) -> bool:
    """Return whether peft trains a few rows of the head (``trainable_token_indices``, tied)."""
    return "token_adapter" in getattr(head, "_modules", {})


def with_adapters(head: Any, head_fn: HeadFn) -> Callable[[Tensor], HeadFn]:
    """Wrap ``head_fn`` so that it is applied to the head with its adapters.

    Returns:
        A function of the hidden states that reach the head, which returns the wrapped function.

    Raises:
        W2SError: for adapters other than LoRA, AdaLoRA and retrained tokens.
    """
    if _retrains_tokens(head):
        head = head.token_adapter
    if not hasattr(head, "base_layer"):
        return lambda hidden: head_fn
    kind = type(head).__name__
    known = hasattr(head, "lora_A") or hasattr(head, "trainable_tokens_delta")
    if hasattr(head.base_layer, "base_layer") or not known:
        raise W2SError(
            f"the head has adapters of type {kind}; expected LoRA, AdaLoRA or "
            "trainable_token_indices; leave the head out of target_modules"
        )
    if head.disable_adapters and head.merged:
        head.unmerge()
    if head.disable_adapters or head.merged:
        return lambda hidden: head_fn
    if hasattr(head, "trainable_tokens_delta"):
        return lambda hidden: _with_trained_tokens(head, head_fn)
    return lambda hidden: _with_lora(head, hidden, head_fn)


def _with_trained_tokens(head: Any, head_fn: HeadFn) -> HeadFn:
    """Replace the trained rows of the weight; like peft, this leaves the bias out."""

    def replaced(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Any:
        return head_fn(hidden, head.get_merged_weights(head.active_adapters), None)

    return replaced


def _with_lora(head: Any, hidden: Tensor, head_fn: HeadFn) -> HeadFn:
    """Compute LoRA on the head, W x + s B A x, as one wider head: [W, B] [x, s A x]."""
    columns, weights = [hidden], []
    for name in head.active_adapters:
        if name in head.lora_A:
            inner, up = _low_rank(head, name, hidden)
            columns.append(inner.to(hidden.dtype))
            weights.append(up)

    def wider(_: Tensor, weight: Tensor, bias: Tensor | None) -> Any:
        ups = [up.to(weight.dtype) for up in weights]
        return head_fn(torch.cat(columns, -1), torch.cat([weight, *ups], 1), bias)

    return wider


def _low_rank(head: Any, name: str, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Return s A x (..., r) and B (V, r) of one adapter."""
    down, up = head.lora_A[name], head.lora_B[name]
    if isinstance(down, Tensor):  # AdaLoRA: B (A * E) x s / rank
        check_gathered(up)
        check_gathered(down)
        x = head.lora_dropout[name](hidden.to(down.dtype))
        rank = head.ranknum[name] + 1e-5
        return x @ (down * head.lora_E[name]).T * head.scaling[name] / rank, up
    if name in head.lora_variant or up.bias is not None:
        raise W2SError("the head's LoRA is a variant (DoRA, bias); expected plain LoRA")
    x = head.lora_dropout[name](hidden.to(down.weight.dtype))
    check_gathered(up.weight)
    return down(x) * head.scaling[name], up.weight
