"""Let the public losses take DTensors: each decorator chooses the op that their placements need."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.ops.fused_linear.main_grad import find_main_grad
from w2s_fast.ops.targets import SparseTargets, check_logits
from w2s_fast.ops.vocab_parallel.dtensor import (
    class_shard,
    has_dtensor,
    is_dtensor,
    labels_part,
    whole,
)

F = TypeVar("F", bound=Callable[..., Any])


def linear_takes_dtensors(function: F) -> F:
    """Send a head that is sharded over its classes to ``vocab_parallel_cross_entropy``.

    A replicated head, and what it is multiplied with, go to ``function`` as plain tensors.
    """

    @functools.wraps(function)
    def call(
        hidden: Tensor, head: Tensor, weak: Tensor | SparseTargets | None = None, **options: Any
    ) -> Any:
        if not has_dtensor(hidden, head, weak, *options.values()):
            return function(hidden, head, weak, **options)
        if options.get("teacher") is not None:
            raise W2SError(
                "teacher= with a DTensor; expected plain tensors: use .full_tensor(), or call "
                "vocab_parallel_cross_entropy(teacher=) with this rank's rows of every head"
            )
        if weak is None:
            raise W2SError("weak is None; expected labels of the rows")
        _check_meshes(hidden, head)
        shard = class_shard("head", head, 0) if is_dtensor(head) else None
        if shard is not None:
            from w2s_fast.ops.vocab_parallel.api import vocab_parallel_cross_entropy

            local_weak = labels_part(weak, shard)
            return vocab_parallel_cross_entropy(
                hidden, head, local_weak, group=shard.group, **options
            )
        if "main_grad" in options:  # the attribute of the DTensor, not of its local part
            options["main_grad"] = find_main_grad(options["main_grad"], head) or False
        rest = {name: whole(name, value) for name, value in options.items()}
        return function(whole("hidden", hidden), whole("head", head), whole("weak", weak), **rest)

    return call  # type: ignore[return-value]


def logits_take_dtensors(function: F) -> F:
    """Send logits that are sharded over their classes to ``sharded_logits_cross_entropy``."""

    @functools.wraps(function)
    def call(logits: Tensor, weak: Tensor | SparseTargets, **options: Any) -> Any:
        if not has_dtensor(logits, weak, *options.values()):
            return function(logits, weak, **options)
        rest = {name: whole(name, value) for name, value in options.items()}
        check_logits(logits)
        shard = class_shard("logits", logits, 1) if is_dtensor(logits) else None
        if shard is None:
            return function(whole("logits", logits), whole("weak", weak), **rest)
        from w2s_fast.ops.vocab_parallel.logits import sharded_logits_cross_entropy

        local: Any = logits
        return sharded_logits_cross_entropy(
            local.to_local(), labels_part(weak, shard), shard, **rest
        )

    return call  # type: ignore[return-value]


def _check_meshes(hidden: Any, head: Any) -> None:
    """Raise ``W2SError`` unless hidden states and head are plain, or DTensors on one mesh."""
    if is_dtensor(head) and not is_dtensor(hidden):
        raise W2SError(
            f"head is a DTensor with placements {tuple(head.placements)} and hidden a plain "
            "tensor, which may differ between ranks; expected a DTensor: under tensor parallelism, "
            "pass DTensor.from_local(hidden, head.device_mesh, [Replicate()]), or [Shard(1)] for a "
            "part of the sequence; a head that FSDP sharded is gathered inside the module it wraps"
        )
    if is_dtensor(hidden) and not is_dtensor(head):
        raise W2SError(
            f"hidden is a DTensor with placements {tuple(hidden.placements)} and head a plain "
            "tensor; expected both: pass distribute_tensor(head, hidden.device_mesh, [Shard(0)]), "
            "or hidden.full_tensor()"
        )
    if is_dtensor(head) and hidden.device_mesh != head.device_mesh:
        raise W2SError(
            f"hidden is on {hidden.device_mesh}, head on {head.device_mesh}; expected one mesh: "
            "redistribute hidden to that of the head"
        )
