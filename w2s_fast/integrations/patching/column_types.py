"""Check the types of labels and weak columns: tensors of class ids or of numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.ops.targets import SparseTargets

# Columns of class ids, and columns of numbers.
_IDS = ("labels", "shift_labels", "weak_labels", "weak_ids")
_NUMBERS = ("weak_probs", "weak_rest", "weak_states", "weak_weight")


def unpack_sparse(columns: dict[str, Any]) -> dict[str, Any]:
    """Replace ``weak_labels`` that are ``SparseTargets`` (B, T, K) by their columns.

    Raises:
        W2SError: if one of those columns is present as well.
    """
    weak = columns.get("weak_labels")
    if not isinstance(weak, SparseTargets):
        return columns
    parts = {"weak_ids": weak.ids, "weak_probs": weak.probs, "weak_rest": weak.rest}
    for name in parts:
        if name in columns:
            raise W2SError(f"SparseTargets came with {name}, which they hold; give one of the two")
    rest = {name: value for name, value in columns.items() if name != "weak_labels"}
    return rest | {name: value for name, value in parts.items() if value is not None}


def read_targets(
    targets: dict[str, Any], size: tuple[int, int], device: torch.device
) -> dict[str, Any]:
    """Move labels and weak columns to the device of the hidden states, class ids as int64.

    Raises:
        W2SError: for values that are not tensors or have the wrong dtype.
    """
    return {
        name: None if value is None else _read(name, value, size, device)
        for name, value in targets.items()
    }


def _read(name: str, value: Any, size: tuple[int, int], device: torch.device) -> Tensor:
    if not isinstance(value, Tensor):
        raise W2SError(f"{name} is {_shown(value)}; expected {_expected(name, value, size)}")
    no_number = value.dtype == torch.bool or value.is_complex()
    soft = value.is_floating_point() and name in ("weak_labels", "weak_ids")
    if name in _IDS and not soft:
        if no_number or value.is_floating_point():
            if name == "weak_ids":
                raise W2SError(
                    f"{name} has shape {tuple(value.shape)} and dtype {value.dtype}; expected "
                    f"integers ({size[0]}, {size[1]}, K)"
                )
            raise W2SError(
                f"{name} have dtype {value.dtype}; expected class ids as integers ({name}.long())"
            )
        # In eight bits -100 would be equal to class 156.
        value = value.to(torch.int64)
    elif no_number and name in _NUMBERS:
        raise W2SError(f"{name} has dtype {value.dtype}; expected numbers ({name}.float())")
    return value.to(device)


def _shown(value: Any) -> str:
    kind = type(value).__name__
    return f"the {kind} {value!r}" if isinstance(value, int | float | str) else f"a {kind}"


def _expected(name: str, value: Any, size: tuple[int, int]) -> str:
    shape = {"weak_weight": f"{(size[0],)} or {size}", "weak_labels": f"{size} or (B, T, V)"}
    shape["weak_states"] = f"({size[0]}, {size[1]}, S)"
    if name in ("weak_ids", "weak_probs"):
        return f"a tensor ({size[0]}, {size[1]}, K){_fix(name, value)}"
    return f"a tensor {shape.get(name, size)}{_fix(name, value)}"


def _fix(name: str, value: Any) -> str:
    if isinstance(value, list | tuple) or hasattr(value, "__array__"):
        return f"; pass torch.as_tensor({name})"
    if isinstance(value, int | float) and name == "weak_weight":
        return f"; pass torch.full((B,), {value}) for the same weight on every row"
    return ""
