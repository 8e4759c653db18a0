"""Read every data file once while the splits of several seeds are made.

Seeds draw other rows from the same files, and one reading makes sure that all of them saw the
same content. Nothing outlives the block: the next run reads again.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])
_results: ContextVar[dict[Any, Any] | None] = ContextVar("results", default=None)


@contextlib.contextmanager
def reading_once() -> Iterator[None]:
    """Keep what functions marked ``once`` return until the block ends."""
    token = _results.set({})
    try:
        yield
    finally:
        _results.reset(token)


def once(function: F) -> F:
    """Mark a function whose result, which nobody may change, is kept inside ``reading_once``."""

    @functools.wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        results = _results.get()
        if results is None:
            return function(*args, **options)
        key = (function, args, tuple(sorted(options.items())))
        if key not in results:
            results[key] = function(*args, **options)
        return results[key]

    return call  # type: ignore[return-value]
