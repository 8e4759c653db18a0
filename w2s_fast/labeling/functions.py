"""Define labeling functions: a text in, a class or an abstention out.

    @labeling_function()
    def asks_to_subscribe(text):
        return SPAM if "subscribe" in text.lower() else ABSTAIN

Source: data programming, Ratner et al. 2016 (arXiv 1605.07723); the decorator is that of Snorkel.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from w2s_fast.errors import W2SError

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class LabelingFunction:
    """A function of a text, or of a text and its pair, that returns a class or ``ABSTAIN``.

    Attributes:
        name: Name in summaries and messages.
        function: What is called.
        takes_pair: It is called with (text, pair), otherwise with the text alone.
        defined_in: Name of the module of a decorated function; None if it was made by a call.
    """

    def __init__(self, name: str, function: Callable[..., int], defined_in: str | None = None):
        if not isinstance(name, str) or not name.strip():
            raise W2SError(f"name of a labeling function is {name!r}; expected a text")
        self.name = name
        self.function = function
        self.takes_pair = _takes_pair(name, function)
        self.defined_in = defined_in
        self.__doc__ = function.__doc__

    def __call__(self, text: str, pair: str | None = None) -> int:
        """Return what the function returns for a text, and its pair if it takes one."""
        return self.function(text, pair) if self.takes_pair else self.function(text)

    def __repr__(self) -> str:
        return f"LabelingFunction({self.name!r})"

    def __reduce__(self) -> Any:
        """Pickle a decorated function by its place, since its name there is this object."""
        if self.defined_in is None:
            return LabelingFunction, (self.name, self.function)
        return _find, (self.defined_in, self.function.__qualname__)


def labeling_function(
    name: str | None = None,
) -> Callable[[Callable[..., int]], LabelingFunction]:
    """Make a function a ``LabelingFunction``, as a decorator with parentheses.

    The function takes a text, or a text and the second text of its row, and returns a class
    0 .. K-1 or ``ABSTAIN``. A second parameter with a default is passed only if it is named "pair".

    Args:
        name: Name of the labeling function; None takes that of the function.

    Raises:
        W2SError: The parentheses are missing, or the function takes neither one nor two texts.
    """
    if callable(name):
        raise W2SError("labeling_function is used without parentheses; write @labeling_function()")

    def decorate(function: Callable[..., int]) -> LabelingFunction:
        if not callable(function):
            raise W2SError(f"labeling_function() decorates {function!r}; expected a function")
        own = getattr(function, "__name__", type(function).__name__)
        return LabelingFunction(name or own, function, getattr(function, "__module__", None))

    return decorate


def check_functions(functions: Any) -> tuple[LabelingFunction, ...]:
    """Return labeling functions as a tuple.

    Raises:
        W2SError: There is none, one is no ``LabelingFunction``, or two have the same name.
    """
    listed = (functions,) if isinstance(functions, LabelingFunction) else tuple(functions)
    if not listed:
        raise W2SError("there are no labeling functions; expected at least one")
    first: dict[str, int] = {}
    for position, function in enumerate(listed):
        if not isinstance(function, LabelingFunction):
            raise W2SError(
                f"functions[{position}] is {function!r:.80}; expected a LabelingFunction: decorate "
                "it with @labeling_function()"
            )
        if function.name in first:
            raise W2SError(
                f"functions {first[function.name]} and {position} are both named "
                f"{function.name!r}; expected different names: pass name= to one of them"
            )
        first[function.name] = position
    return listed


def check_texts(name: str, texts: Any) -> Sequence[str]:
    """Return texts as a sequence.

    Raises:
        W2SError: They are a single text, there are none, or one is no text.
    """
    if isinstance(texts, str | bytes):
        raise W2SError(f"{name} are a single text; expected a sequence of texts: [text]")
    listed = texts if isinstance(texts, list | tuple) else list(texts)
    if not listed:
        raise W2SError(f"{name} are empty; expected at least one text")
    for row, text in enumerate(listed):
        if not isinstance(text, str):
            raise W2SError(f"{name}[{row}] is {text!r:.80}; expected a text")
    return listed


def _takes_pair(name: str, function: Callable[..., int]) -> bool:
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except ValueError:  # some built-in functions have none
        raise W2SError(
            f"labeling function {name!r} has no signature; wrap it in a function of (text)"
        ) from None
    positional = [p for p in parameters if p.kind in _POSITIONAL]
    required = [p for p in parameters if p.default is p.empty and p.kind in _POSITIONAL]
    keyword = [p for p in parameters if p.default is p.empty and p.kind is p.KEYWORD_ONLY]
    if keyword or len(required) > 2 or not positional:
        shown = ", ".join(p.name for p in required + keyword) or "nothing"
        raise W2SError(
            f"labeling function {name!r} requires {shown}; expected (text) or (text, pair)"
        )
    return len(required) == 2 or (len(positional) > 1 and positional[1].name == "pair")


def _find(module: str, qualname: str) -> LabelingFunction:
    """Return a decorated function by its place, in another process too."""
    import importlib

    place: Any = importlib.import_module(module)
    for part in qualname.split("."):
        place = getattr(place, part)
    assert isinstance(place, LabelingFunction)
    return place
