"""Convert lists and arrays of NumPy, torch, Arrow or pandas to tensors.

Containers are recognised by their methods, so no library is imported to test a type.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from w2s_fast.errors import W2SError, one_line

TensorTree = Tensor | list[Any]


def to_tensors(name: str, value: Any) -> TensorTree:
    """Convert to a tensor on the CPU, or to nested lists of tensors if the parts differ in shape.

    Python floats become fp64, other dtypes are kept; an empty list is fp64 (0,).

    Raises:
        W2SError: for values that are not numbers; ``name`` begins the message.
    """
    try:
        return _convert(value)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise W2SError(f"{name} not a table of numbers ({one_line(error)})") from error


def _convert(value: Any) -> TensorTree:
    if isinstance(value, Tensor):
        return _check_strided(value).detach().cpu()
    if isinstance(value, list | tuple):
        return _convert_list(value)
    _check_unmasked(value)
    for unwrap in ("as_py", "to_pylist"):  # a scalar of Arrow, an array of Arrow
        if hasattr(value, unwrap):
            return _convert(getattr(value, unwrap)())
    if isinstance(value, int | float) or hasattr(value, "__array__"):
        array = np.asarray(value)
        if array.dtype == object and array.ndim:
            return _convert_list(list(array))
        # Copied: Arrow arrays are read-only, and torch has no negative strides.
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), order="C"))
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return _convert_list(list(value))
    if is_missing(value):
        shown = "None" if value is None else f"a {type(value).__name__}"
        raise TypeError(f"it holds {shown}: a value is missing")
    raise TypeError(f"it holds a {type(value).__name__}")


def _check_strided(x: Tensor) -> Tensor:
    if x.is_nested:
        raise TypeError("it is a nested tensor; expected a list of its parts, x.unbind()")
    if x.layout != torch.strided:
        raise TypeError("it is a sparse tensor; expected x.to_dense()")
    return x


def _check_unmasked(value: Any) -> None:
    """Raise ``TypeError`` for a NumPy array with masked entries, whose data would be read."""
    if isinstance(value, np.ma.MaskedArray) and bool(np.ma.getmaskarray(value).any()):
        raise TypeError("it holds masked entries: a value is missing")


def _convert_list(values: list[Any] | tuple[Any, ...]) -> TensorTree:
    if all(isinstance(v, int | float | np.generic) for v in values):
        return torch.from_numpy(np.array(values))
    table = _table(values)
    if table is not None:
        return table
    parts = [_convert(v) for v in values]
    tensors = [p for p in parts if isinstance(p, Tensor)]
    if len(tensors) < len(parts) or len({p.shape for p in tensors}) > 1:
        return parts
    nonempty = [p for p in tensors if p.numel()] or tensors
    dtype = nonempty[0].dtype
    for part in nonempty[1:]:
        dtype = torch.promote_types(dtype, part.dtype)
    return torch.stack([p.to(dtype) for p in tensors])


def _table(values: list[Any] | tuple[Any, ...]) -> Tensor | None:
    """Convert rectangular nested lists of Python numbers at once; None for anything else."""
    leaf = values[0]
    while isinstance(leaf, list | tuple) and leaf:
        leaf = leaf[0]
    if not isinstance(leaf, int | float):
        return None
    try:
        array = np.array(values)
    except ValueError:
        return None
    return torch.from_numpy(array) if array.dtype.kind in "biuf" else None


def tensor(name: str, value: Any, dtype: torch.dtype, *, booleans: bool = False) -> Tensor:
    """Convert to a tensor of a dtype, on the CPU.

    Raises:
        W2SError: for ragged lists, fractions in place of integers, integers that are too large,
            NaN, and booleans unless they are allowed.
    """
    x = to_tensors(f"{name} is", value)
    if isinstance(x, list):
        raise W2SError(f"{name} is not a table of numbers (its rows differ in length)")
    expected = "numbers" if dtype.is_floating_point else "integers"
    if x.is_complex() or (x.dtype == torch.bool and not booleans):
        found = "complex numbers" if x.is_complex() else "booleans"
        raise W2SError(f"{name} holds {found}; expected {expected}")
    if x.is_floating_point() and not dtype.is_floating_point and x.numel():
        if bool(x.isnan().any()):
            raise W2SError(f"{name} holds NaN: a value is missing; expected integers")
        raise W2SError(f"{name} holds {x.flatten()[:1].tolist()}; expected integers")
    if x.dtype == torch.uint64 and bool((x.view(torch.int64) < 0).any()):
        raise W2SError(f"{name} holds {max(x.flatten().tolist())}; expected integers below 2**63")
    if x.is_floating_point() and bool(x.isnan().any()):
        raise W2SError(f"{name} holds NaN; the supervisor diverged, or a value is missing")
    return x.to(dtype)


def numbers(name: str, value: Any) -> np.ndarray:
    """Convert to an fp32 array; NumPy's own fp32 arrays are not copied. NaN is not checked.

    Raises:
        W2SError: for values that are not a table of real numbers.
    """
    if type(value) is np.ndarray and value.dtype.kind in "fiu":
        return np.asarray(value, dtype=np.float32)
    x = to_tensors(name, value)
    if isinstance(x, list):
        raise W2SError(f"{name} not a table of numbers (its rows differ in length)")
    if x.is_complex():
        raise W2SError(f"{name} not a table of numbers (they are complex)")
    return x.to(torch.float32).numpy()


def items(values: Any) -> list[Any]:
    """Return the Python values of a list, array or tensor of one dimension."""
    for unwrap in ("to_pylist", "tolist"):
        if hasattr(values, unwrap):
            return list(getattr(values, unwrap)())
    return list(values)


def rows_of(batch: Any) -> list[Mapping[str, Any]]:
    """Return the rows of a batch as mappings from column to value; Arrow and pandas tables too.

    Raises:
        W2SError: for rows that are not mappings.
    """
    if hasattr(batch, "to_pylist"):
        batch = batch.to_pylist()
    elif hasattr(batch, "to_dict") and hasattr(batch, "columns"):
        batch = batch.to_dict("records")
    if isinstance(batch, Mapping | str) or not isinstance(batch, Iterable):
        raise W2SError(
            f"rows are a {type(batch).__name__}; expected a list of mappings from column to value"
        )
    return [_row(i, row) for i, row in enumerate(batch)]


def _row(i: int, row: Any) -> Mapping[str, Any]:
    """Return a row as a mapping; a table of one row counts as that row."""
    if isinstance(row, Mapping):
        return row
    if hasattr(row, "as_py"):
        row = row.as_py()
    elif hasattr(row, "to_pylist") and hasattr(row, "column_names"):
        row = _only(i, row.to_pylist())
    elif hasattr(row, "to_dict"):  # pandas: a table, or a row of one
        row = _only(i, row.to_dict("records")) if hasattr(row, "columns") else row.to_dict()
    if not isinstance(row, Mapping):
        raise W2SError(
            f"row {i} of the batch is a {type(row).__name__}; expected a mapping from column to "
            "value"
        )
    return row


def _only(i: int, rows: list[Any]) -> Any:
    if len(rows) != 1:
        raise W2SError(f"row {i} of the batch is a table of {len(rows)} rows; expected one")
    return rows[0]


def is_missing(value: Any) -> bool:
    """Return whether a value marks a missing entry."""
    missing = value is None or getattr(value, "is_valid", True) is False
    return missing or type(value).__name__ in ("NAType", "NaTType")  # pandas
