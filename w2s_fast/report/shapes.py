"""Compare JSON values with the shape that they are expected to have.

A shape is a type or a union of types (float: any finite number), a list with the shape of its
items, a dict with the shapes of its fields, or a dict whose only key is str: any fields.
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from typing import Any

_LIMIT = 1e12  # numbers of results are shares, counts and seconds
_WORDS = {int: "an integer", float: "a number", str: "text", bool: "true or false",
          dict: "an object", list: "a list",
          types.NoneType: "null"}  # fmt: skip


def shape_problems(value: Any, shape: Any, where: str) -> Iterator[str]:
    """Yield each place where a value does not have its shape."""
    if isinstance(shape, list):
        if not isinstance(value, list):
            yield f"{where} is {_brief(value)}, expected a list"
            return
        for i, item in enumerate(value):
            yield from shape_problems(item, shape[0], f"{where}[{i}]")
    elif isinstance(shape, dict):
        yield from _fields(value, shape, where)
    elif not _has_type(value, shape):
        kinds = shape.__args__ if isinstance(shape, types.UnionType) else (shape,)
        yield f"{where} is {_brief(value)}, expected {' or '.join(_WORDS[k] for k in kinds)}"


def _fields(value: Any, shape: Mapping[Any, Any], where: str) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"{where or 'it'} is {_brief(value)}, expected an object"
        return
    prefix = f"{where}." if where else ""
    for name, field in shape.items():
        if name is str:
            for key, item in value.items():
                yield from shape_problems(item, field, prefix + key)
        elif name not in value:
            yield f"{prefix}{name} is missing"
        else:
            yield from shape_problems(value[name], field, prefix + name)


def _has_type(value: Any, kind: Any) -> bool:
    if isinstance(value, bool):
        return kind is bool
    if isinstance(value, int | float):
        number = isinstance(value, kind) or isinstance(0.0, kind)
        return number and abs(value) < _LIMIT  # false for NaN
    return isinstance(value, kind)


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:39]}…"
