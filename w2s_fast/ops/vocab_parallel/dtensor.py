"""Read DTensors: which classes of a head or of logits this rank holds, and the rest in full.

Tensor parallelism shards a head (V, D), or logits (N, V), over the classes of a one-dimensional
mesh: placement ``Shard`` on that dimension, in chunks of ceil(V / R) as ``torch.chunk`` makes them.
The vocabulary-parallel ops run on the local parts. Everything else of a call must be the same on
all ranks: DTensors that are sharded otherwise, such as hidden states sharded over the sequence, are
gathered. Gradients travel back through ``to_local`` and ``redistribute``, so every DTensor gets a
gradient in its own placement.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.ops.targets import SparseTargets
from w2s_fast.ops.vocab_parallel.shard import Shard, check_vocabulary

_MODULE = "torch.distributed.tensor"
_PLAIN = frozenset((Tensor, float, int, bool, str, type(None)))


def is_dtensor(value: object) -> bool:
    """Return whether a value is a DTensor, without importing their module: it takes a while."""
    module = sys.modules.get(_MODULE)
    return module is not None and isinstance(value, module.DTensor)


def has_dtensor(*values: object) -> bool:
    """Return whether one of the values, or a tensor of ``SparseTargets``, is a DTensor."""
    if torch.compiler.is_compiling() or _MODULE not in sys.modules:
        return False
    for value in values:
        if type(value) in _PLAIN:  # nearly always: a loss of 32 rows takes microseconds
            continue
        parts = value if isinstance(value, SparseTargets) else (value,)
        if any(is_dtensor(part) for part in parts):
            return True
    return False


def class_shard(name: str, value: Any, dim: int) -> Shard | None:
    """Return the classes that this rank holds of a DTensor; None where it holds all of them.

    Args:
        name: of the value, for errors.
        value: DTensor, sharded over its classes or replicated.
        dim: the dimension of the classes.

    Raises:
        W2SError: for another placement, a mesh of several dimensions, or a split that leaves a
            rank without a class.
    """
    axis = _axis(name, value)
    placement, ranks = value.placements[axis], value.device_mesh.size(axis)
    if ranks == 1 or placement.is_replicate():
        return None
    if not placement.is_shard(dim) or type(placement).__name__ != "Shard":
        raise W2SError(
            f"{name} has placement {placement} on a mesh of {ranks} ranks; expected Shard({dim}), "
            f"over the classes, or Replicate(): pass {name}.redistribute(placements=[Shard({dim})])"
        )
    total = value.shape[dim]
    check_vocabulary(total)
    width = -(-total // ranks)
    if width * (ranks - 1) >= total:
        raise W2SError(
            f"{name} has {total} classes on {ranks} ranks, {width} a rank, which leaves the last "
            f"without any; expected more than {width * (ranks - 1)} classes: use fewer ranks or "
            "pad the vocabulary"
        )
    first = value.device_mesh.get_local_rank(axis) * width
    shard = Shard(first, min(width, total - first), total, value.device_mesh.get_group(axis))
    held = value._local_tensor.shape[dim]
    if held != shard.width:
        raise W2SError(
            f"{name} holds {held} of {total} classes on this rank; expected {shard.width}, the "
            f"chunks of torch.chunk over {ranks} ranks: shard it by distribute_tensor"
        )
    return shard


def whole(name: str, value: Any) -> Any:
    """Return all of a DTensor as a plain tensor, gathered where needed; other values as they are.

    Raises:
        W2SError: for a mesh of several dimensions.
    """
    if isinstance(value, SparseTargets):
        return SparseTargets(*(whole(name, t) for t in value))
    if not is_dtensor(value):
        return value
    from torch.distributed.tensor import Replicate

    _axis(name, value)
    if not all(placement.is_replicate() for placement in value.placements):
        value = value.redistribute(placements=[Replicate()] * value.device_mesh.ndim)
    return value.to_local()


def replicated(value: Tensor, mesh: Any) -> Any:
    """Return a tensor that is the same on every rank of a mesh as a DTensor."""
    from torch.distributed.tensor import DTensor, Replicate

    return DTensor.from_local(value, mesh, [Replicate()] * mesh.ndim, run_check=False)


def class_part(name: str, value: Any, shard: Shard, dim: int) -> Any:
    """Return this rank's classes of a DTensor with a dimension of classes, as a plain tensor.

    Raises:
        W2SError: for a plain tensor, whose gradient would miss the classes of other ranks.
    """
    if value is None:
        return None
    if not is_dtensor(value):
        raise W2SError(
            f"{name} is a plain tensor beside classes that are sharded over {shard.total} classes; "
            f"expected a DTensor: pass distribute_tensor({name}, mesh, [Shard({dim})])"
        )
    if class_shard(name, value, dim) is None:
        return whole(name, value).narrow(dim, shard.first, shard.width)
    return value.to_local()


def labels_part(weak: Any, shard: Shard) -> Any:
    """Return what ``vocab_parallel_cross_entropy`` takes of the weak labels of all classes.

    Class ids are the same on every rank; of probabilities (..., V) it takes this rank's columns.
    """
    if isinstance(weak, SparseTargets) or not weak.is_floating_point():
        return whole("weak", weak)
    last = weak.dim() - 1
    if is_dtensor(weak) and weak.placements[_axis("weak", weak)].is_shard(last):
        return class_part("weak", weak, shard, last)
    return whole("weak", weak)[..., shard.classes]


def _axis(name: str, value: Any) -> int:
    """Return the dimension of the mesh that has several ranks; 0 where none has."""
    mesh = value.device_mesh
    wide = [i for i in range(mesh.ndim) if mesh.size(i) > 1]
    if len(wide) > 1:
        raise W2SError(
            f"{name} has placements {tuple(value.placements)} on a mesh of shape "
            f"{tuple(mesh.shape)}; expected a mesh of one dimension, that of tensor parallelism: "
            f"call the module that FSDP wraps, which gathers the rest, or pass DTensor.from_local("
            f"{name}.to_local(), mesh['tp'], [...])"
        )
    return wide[0] if wide else 0
