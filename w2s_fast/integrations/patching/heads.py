"""Evaluate a function of a head's weight inside the head's own module call.

Libraries that shard a weight gather it, and reduce its gradient, when the module that owns it is
called. The loss is therefore computed in the head's own forward, which gets one more keyword that
only a patched model passes. The head remains the same module under the same name.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

from torch import Tensor, nn

from w2s_fast.errors import W2SError
from w2s_fast.integrations.patching.adapters import (
    HeadFn,
    weight_owner,
    weight_owners,
    with_adapters,
)
from w2s_fast.integrations.patching.pickling import PatchMark
from w2s_fast.models.lm_head import check_gathered
from w2s_fast.models.weights import shape_of
from w2s_fast.ops.vocab_parallel.dtensor import class_shard, is_dtensor

# Libraries whose hooks on a head change only its weight, not hidden states or output.
_SHARDING_LIBRARIES = (
    "torch.distributed",
    "torch.nn.utils",
    "deepspeed",
    "accelerate",
    "transformers",
)


def install_head(head: Any) -> None:
    """Add the keyword ``head_fn`` to the forward of a head."""
    for module in weight_owners(head):
        module._w2s_head = PatchMark(module.__dict__.get("forward"))
        module.forward = MethodType(_forward, module)


def restore_heads(lm: Any) -> None:
    """Undo ``install_head`` in every module of a model; adapters may have copied the head."""
    for module in lm.modules():
        if mark := module.__dict__.pop("_w2s_head", None):
            del module.forward
            if mark.replaced is not None:
                module.forward = mark.replaced


def _forward(self: Any, hidden: Tensor, head_fn: HeadFn | None = None) -> Any:
    replaced = self._w2s_head.replaced
    if head_fn is None:
        return type(self).forward(self, hidden) if replaced is None else replaced(hidden)
    # Tensor parallelism of transformers: hidden states are equal on every rank, and the loss takes
    # the rows of the head that this one holds.
    if replaced is None:
        check_gathered(self.weight)
    return head_fn(hidden, self.weight, self.bias)


def call_head(head: Any, hidden: Tensor, head_fn: HeadFn) -> Any:
    """Return ``head_fn`` of the head with its adapters, inside the call of its module.

    Raises:
        W2SError: if the head was replaced or got a hook of another library after ``patch``, or has
            an unsupported adapter.
    """
    module = weight_owner(head)
    installed = getattr(module.__dict__.get("forward"), "__func__", None) is _forward
    installed = installed and type(module).forward is nn.Linear.forward
    if not hasattr(module, "_w2s_head") or not installed:
        raise W2SError(
            f"the head, a {type(module).__name__}, is not the one that was patched; unpatch the "
            "model and patch it again"
        )
    check_hooks(head)
    return module(hidden, head_fn=with_adapters(head, head_fn)(hidden))


def check_hooks(head: Any) -> None:
    """Raise ``W2SError`` for hooks that read or change logits, which do not exist."""
    for module in head.modules():
        for kind in (
            "_forward_pre_hooks",
            "_forward_hooks",
            "_backward_hooks",
            "_backward_pre_hooks",
        ):
            for hook in getattr(module, kind, {}).values():
                if not origin_module(hook).startswith(_SHARDING_LIBRARIES):
                    raise W2SError(
                        f"the head has a hook of {origin_module(hook)}, which may change its input "
                        "or need its output; a patched model calls its head with some rows only "
                        "and makes no logits; remove the hook or unpatch the model"
                    )


def check_head(name: str, head: Any) -> None:
    """Raise ``W2SError`` for a head that is not plain ``nn.Linear`` below its adapters."""
    if head is None:
        raise W2SError(f"{name} has no language-model head; expected a causal LM")
    for module in weight_owners(head):
        _check_owner(name, module)
        if is_tensor_parallel(module) and module is not head:
            raise W2SError(
                f"the head of {name} is sharded by tensor parallelism and has adapters; expected "
                "one of the two: leave the head out of target_modules"
            )
    check_hooks(head)


def is_tensor_parallel(module: Any) -> bool:
    """Return whether transformers has sharded a linear layer over its classes (``tp_plan``)."""
    forward = module.__dict__.get("forward")
    if forward is None or not origin_module(forward).startswith("transformers.distributed"):
        return False
    return is_dtensor(module.weight) and class_shard("head", module.weight, 0) is not None


def _check_owner(name: str, module: Any) -> None:
    weight = getattr(module, "weight", None)
    linear = isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward
    if not linear or weight is None or not weight.is_floating_point():
        raise W2SError(f"the head of {name} is a {type(module).__name__}; expected nn.Linear")
    if "forward" in module.__dict__ and not is_tensor_parallel(module):
        raise W2SError(
            f"the forward of the head of this {name} was replaced by "
            f"{origin_module(module.forward)}; load the model without that"
        )
    if shape_of(weight)[0] != module.out_features:
        raise W2SError(
            f"the head of {name} holds {tuple(weight.shape)} of {module.out_features} classes; "
            "patch before tensor parallelism or FSDP"
        )


def origin_module(function: Any) -> str:
    """Return the module that defines a forward or a hook, even if it copies another's name."""
    function = getattr(function, "__func__", function)
    function = getattr(function, "func", function)  # of functools.partial
    function = getattr(function, "__func__", function)
    if not hasattr(function, "__globals__"):  # a callable object
        return type(function).__module__
    name = str(function.__globals__.get("__name__") or "an unknown module")
    inner = getattr(function, "__wrapped__", None)
    # Libraries decorate their hooks with torch.compiler.disable.
    return origin_module(inner) if name.startswith("torch._dynamo") and inner else name
