"""Paths as users write them: ``~`` is a home folder, and an empty path is an error.

A configuration field that holds a path is annotated as ``PathText``, and its dataclass calls
``expand_paths`` when it is made; functions and commands call ``user_path``.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import typing
from pathlib import Path
from typing import Annotated, Any

from w2s_fast.errors import W2SError

_IS_PATH = "a path"
PathText = Annotated[str, _IS_PATH]


def user_path(value: str | Path, name: str) -> Path:
    """Return a path with ``~`` and ``~user`` replaced by the home folder.

    Args:
        value: The path as the user wrote it.
        name: Name of the option, field or argument, for messages.

    Raises:
        W2SError: It is no path, is empty, has a null character, or there is no such user.
    """
    try:
        text = os.fspath(value)
    except TypeError as err:
        raise W2SError(f"{name} is {value!r}; expected a path") from err
    if not text.strip():
        raise W2SError(f"{name} is empty; expected a path, or leave it out")
    if "\0" in text:
        raise W2SError(f"{name} is {text!r}; expected a path, which has no null character")
    expanded = os.path.expanduser(text)
    if expanded.startswith("~"):
        user = expanded.partition("/")[0]
        raise W2SError(
            f"{name} is {text!r}, and there is no user {user[1:]!r}; expected a path, such as "
            f"./{text} for a folder of that name"
        )
    return Path(expanded)


def expand_paths(cfg: Any, block: str = "") -> None:
    """Expand every path of a frozen dataclass in place.

    Args:
        cfg: The object, in its ``__post_init__``.
        block: Prefix of the names in messages, such as "task.".

    Raises:
        W2SError: As ``user_path``.
    """
    for name in path_fields(type(cfg)):  # type: ignore[arg-type]
        value = getattr(cfg, name)
        if value is not None:
            object.__setattr__(cfg, name, str(user_path(value, block + name)))


@functools.cache
def path_fields(cls: type) -> tuple[str, ...]:
    """Return the fields of a dataclass that are annotated as ``PathText``."""
    hints = typing.get_type_hints(cls, include_extras=True)
    names = (f.name for f in dataclasses.fields(cls))
    return tuple(name for name in names if _is_path(hints[name]))


def _is_path(hint: Any) -> bool:
    metadata = getattr(hint, "__metadata__", ())
    return _IS_PATH in metadata or any(map(_is_path, typing.get_args(hint)))
