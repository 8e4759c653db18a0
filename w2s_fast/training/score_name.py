"""The name of a score function, by which a checkpoint tells scores apart.

A function has its qualified name. A lambda shares that with others of its scope, so a digest of its
code is part of the name. Of arguments and fields only numbers and strings are: an array may be
large, and another object may change while it is used.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable
from functools import partial
from types import CodeType, FunctionType, MethodType
from typing import Any


def score_name(score: Callable[..., Any] | None) -> str | None:
    """Return the name of a score; None for none. Different scores may have one name."""
    if score is None:
        return None
    if isinstance(score, partial):
        named = [f"{key}={_plain(value)}" for key, value in sorted(score.keywords.items())]
        arguments = [*map(_plain, score.args), *named]
        return f"partial({', '.join([str(score_name(score.func)), *arguments])})"
    if isinstance(score, MethodType):
        return f"{score_name(score.__func__)} of {_object_name(score.__self__)}"
    if not isinstance(getattr(score, "__qualname__", None), str):
        return _object_name(score)
    if isinstance(score, FunctionType) and score.__name__ == "<lambda>":
        return f"{_qualified(score)} {_lambda_digest(score)}"
    return _qualified(score)


def _qualified(named: Any) -> str:
    return f"{named.__module__}.{named.__qualname__}"


def _object_name(value: Any) -> str:
    """Return the class of an object, and the fields of one that cannot change."""
    if isinstance(value, type):
        return _qualified(value)
    name = _qualified(type(value))
    parameters = getattr(type(value), "__dataclass_params__", None)
    if parameters is None or not parameters.frozen:
        return name
    fields = [f"{f.name}={_plain(getattr(value, f.name, None))}" for f in dataclasses.fields(value)]
    return f"{name}({', '.join(fields)})"


def _lambda_digest(score: FunctionType) -> str:
    """Return a digest of the code of a lambda and of the numbers and strings that it holds."""
    values = [*(score.__defaults__ or ()), *(score.__kwdefaults__ or {}).values()]
    values += [_content(cell) for cell in score.__closure__ or ()]
    text = repr([_code_parts(score.__code__), [_plain(value) for value in values]])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not assigned yet
        return None


def _code_parts(code: CodeType) -> list[Any]:
    """Return what a function computes, without its place in a file."""
    return [code.co_code.hex(), list(code.co_names), list(_constants(code.co_consts))]


def _constants(values: Iterable[Any]) -> Iterable[Any]:
    for value in values:
        if isinstance(value, CodeType):
            yield _code_parts(value)
        else:  # a set is in the order of its hashes, which differ between processes
            yield sorted(map(repr, value)) if isinstance(value, frozenset) else repr(value)


def _plain(value: Any) -> str:
    """Return a number or string as text, of anything else the type."""
    if value is None or isinstance(value, bool | int | float | str):
        return repr(value)
    return type(value).__qualname__
