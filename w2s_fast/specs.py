"""Build frozen dataclasses from specs, ``name:field=value,field=value``.

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
    """Build an object from its spec.

    Args:
        spec: the spec.
        table: name -> class.
        base: base class that an imported class must have.
        what: kind of object for messages, such as "loss".

    Raises:
        W2SError: A name or field is unknown, a value does not have the field's type, or a field
            without a default is missing.
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
    """Split a spec into name and settings; the name may have colons, as in a path or an import."""
    match = re.fullmatch(r"(.*?)(?::(\w+=.*))?", spec.strip(), re.DOTALL)
    assert match is not None  # the pattern matches any text
    return match[1], match[2] or ""


def settings(kind: Any, rest: str, spec: str, what: str) -> dict[str, Any]:
    """Return the values of ``rest``, "field=value,field=value", by field of a dataclass.

    Raises:
        W2SError: As ``build``.
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
    expected = _type(kind, key)
    if expected not in (bool, int, float, str):
        raise W2SError(f"{what} {spec!r}: {key} cannot be set in a spec; set it in its own block")
    try:
        return key, _BOOLS[text.lower()] if expected is bool else expected(text)
    except (KeyError, ValueError):
        raise W2SError(
            f"{what} {spec!r}: {key} is {text!r}; expected {expected.__name__}"
        ) from None


def _type(kind: Any, key: str) -> Any:
    """Return the type of a field: that of its default, else its annotation without None."""
    default = next(f.default for f in fields(kind) if f.name == key)
    if default is not None and default is not MISSING:
        return type(default)
    return without_none(typing.get_type_hints(kind)[key])


def without_none(hint: Any) -> Any:
    """Return ``T`` for the annotation ``T | None``, and any other annotation unchanged."""
    members = typing.get_args(hint)
    if types.NoneType not in members:
        return hint
    return next(t for t in members if t is not types.NoneType)


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
