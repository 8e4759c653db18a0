"""Frozen dataclasses from their spec: ``name:field=value,field=value``, the same everywhere.

A name with a dot, ``package.module:Class``, is imported.
"""

from __future__ import annotations

import importlib
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, TypeVar

from w2s_fast.errors import W2SError, nearest

T = TypeVar("T")
_BOOLS = {"true": True, "1": True, "false": False, "0": False}


def build(spec: str, table: Mapping[str, type[T]], base: type[T], what: str) -> T:
    """An object from its spec.

    Args:
        spec: what the user wrote.
        table: name -> class.
        base: what an imported class must be.
        what: names the kind of object in messages, "loss".

    Raises:
        W2SError: for an unknown name or field, a value that is not of the field's type, or a field
            without a default that is not given.
    """
    name, _, rest = spec.strip().partition(":")
    if "." in name:
        attribute, _, rest = rest.partition(":")
        kind = _imported(name, attribute, base, what)
    elif name in table:
        kind = table[name]
    else:
        raise W2SError(
            f"unknown {what} {name!r}; expected one of {', '.join(table)}{nearest(name, table)}"
        )
    given = settings(kind, rest, spec, what)
    for f in fields(kind):  # type: ignore[arg-type]
        if f.name not in given and f.default is MISSING and f.default_factory is MISSING:
            raise W2SError(f"{what} {spec!r} has no {f.name}; add {f.name}=value")
    return kind(**given)


def split(spec: str) -> tuple[str, str]:
    """A name, which may hold colons as a path or an import does, and the settings behind it."""
    found = re.fullmatch(r"(.*?)(?::(\w+=.*))?", spec.strip(), re.DOTALL)
    assert found is not None  # the pattern takes any text
    return found[1], found[2] or ""


def settings(kind: Any, rest: str, spec: str, what: str) -> dict[str, Any]:
    """The fields of a dataclass that ``rest``, "field=value,field=value", names.

    Raises:
        W2SError: as ``build``.
    """
    given = [part.strip() for part in rest.split(",") if part.strip()]
    return dict(_setting(kind, part, spec, what) for part in given)


def _setting(kind: Any, part: str, spec: str, what: str) -> tuple[str, bool | int | float | str]:
    key, equals, text = (s.strip() for s in part.partition("="))
    names = tuple(f.name for f in fields(kind))
    if not equals:
        raise W2SError(f"{what} {spec!r}: {part!r} is not a setting; expected field=value")
    if key not in names:
        raise W2SError(
            f"{what} {spec!r} has no field {key!r}; it has "
            f"{', '.join(names) or 'none'}{nearest(key, names)}"
        )
    wanted = _type(kind, key)
    if wanted not in (bool, int, float, str):
        raise W2SError(f"{what} {spec!r}: {key} has no place here; set it in its own block")
    try:
        return key, _BOOLS[text.lower()] if wanted is bool else wanted(text)
    except (KeyError, ValueError):
        raise W2SError(f"{what} {spec!r}: {key} is {text!r}; expected {wanted.__name__}") from None


def _type(kind: Any, key: str) -> Any:
    """What a field takes, by its default; by its annotation, without None, where that says more."""
    default = next(f.default for f in fields(kind) if f.name == key)
    if default is not None and default is not MISSING:
        return type(default)
    hint = typing.get_type_hints(kind)[key]
    if not isinstance(hint, types.UnionType):
        return hint
    return next(t for t in hint.__args__ if t is not types.NoneType)


def _imported(module: str, attribute: str, base: type[T], what: str) -> type[T]:
    try:
        kind = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as e:
        raise W2SError(f"{what} {module}:{attribute} cannot be imported: {e}") from None
    if not (isinstance(kind, type) and issubclass(kind, base)):
        raise W2SError(
            f"{module}:{attribute} is not a subclass of "
            f"{base.__module__.partition('._')[0]}.{base.__name__}"
        )
    return kind
