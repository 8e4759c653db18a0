"""Losses that change over training: which do, what they are now, and where training is."""

from __future__ import annotations

import ast
import inspect
import numbers
import textwrap
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.losses import Loss


def changes(loss: Loss) -> bool:
    """Whether a loss is another one elsewhere in training, wherever it starts and ends.

    Its coefficient is read all over training, in fractions of 1/1024 and in steps that are never
    further than 1 % apart. A loss whose ``__call__`` is not of this package may have a schedule of
    another kind: it changes if the code of that does more with ``frac`` or ``step`` than pass them
    on, or if its value is another one at some of fewer places.
    """
    if type(loss).coefficient is not Loss.coefficient and _varies(loss.coefficient, _everywhere()):
        return True
    called = type(loss).__call__
    if called.__module__.startswith("w2s_fast.losses."):
        return False
    return _reads(called) or any(_varies(value, _here_and_there()) for value in _values(loss))


def _reads(function: Any) -> bool:
    """Whether the code of a function uses ``frac`` or ``step`` otherwise than in ``frac=frac``.

    False where there is no code to read.
    """
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return False
    passed = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.keyword) and getattr(node.value, "id", None) == node.arg
    }
    return any(
        isinstance(node, ast.Name)
        and node.id in ("frac", "step")
        and id(node) not in passed
        or isinstance(node, ast.Constant)
        and node.value in ("frac", "step")
        for node in ast.walk(tree)
    )


def _varies(value: Any, places: Iterator[tuple[float, int]]) -> bool:
    """Whether it gives one value everywhere; what fails somewhere knows where it is."""
    first = None
    for frac, step in places:
        try:
            now = float(value(frac, step))
        except Exception:
            return True
        if first is None:
            first = now
        if now != first:
            return True
    return False


def _everywhere() -> Iterator[tuple[float, int]]:
    """Fractions and steps, each for itself and together."""
    fracs = [i / 1024 for i in range(1025)]
    steps = [*range(1024), *np.geomspace(1024, 10**9, 1400).astype(np.int64).tolist()]
    yield from ((frac, 0) for frac in fracs)
    yield from ((0.0, step) for step in steps)
    for n in (10**2, 10**4, 10**6):
        yield from ((frac, round(frac * n)) for frac in fracs)


def _here_and_there() -> Iterator[tuple[float, int]]:
    """Few places, for what takes longer."""
    for n in (0, 64, 10**6):
        yield from ((i / 32, i * n // 32) for i in range(33))


def _values(loss: Loss) -> Iterator[Any]:
    """The loss of three rows of five classes, by hard and by soft labels, where it takes them."""
    logits = torch.linspace(-2, 2, 15).sin().view(3, 5)
    for weak in (torch.tensor([0, 3, 4]), logits.flip(0).softmax(-1)):

        def value(frac: float, step: int, weak: Tensor = weak) -> Tensor:
            return loss(logits, weak, frac=frac, step=step).loss_sum.detach()

        try:
            value(0.0, 0)
        except Exception:
            continue  # of such labels there is none
        yield value


def coefficient_at(loss: Loss, frac: float, step: int | None) -> float:
    """The coefficient of now.

    Raises:
        W2SError: if ``frac`` is out of range, or the loss counts steps and was not told them.
    """
    if not 0 <= frac <= 1:
        raise W2SError(f"frac is {frac}; expected optimizer step / number of steps, in [0, 1]")
    try:
        return loss.coefficient(frac, step)
    except TypeError as error:
        if step is not None:
            raise
        raise W2SError(
            f"{type(loss).__name__} counts optimizer steps and was told none ({error}); call "
            "set_progress(model, frac, step), or send a weak_step column"
        ) from error


def one_number(name: str, value: Any) -> float:
    """A number, or the one that a column repeats.

    Raises:
        W2SError: for what is neither.
    """
    if isinstance(value, Tensor):
        value = value.detach().flatten().tolist()
    elif isinstance(value, np.ndarray | np.generic):
        value = np.asarray(value).ravel().tolist()
    held = list(value) if isinstance(value, list | tuple) else [value]
    if not held:
        raise W2SError(f"{name} is empty; expected a number")
    for x in held:
        if not isinstance(x, numbers.Real) or isinstance(x, bool):
            raise W2SError(f"{name} is the {type(x).__name__} {x!r}; expected a number")
        if x != x:
            raise W2SError(f"{name} is nan; expected a number")
        if x != held[0]:
            raise W2SError(f"{name} holds {held[0]} and {x}; expected one number that it repeats")
    return float(held[0])


def whole_number(name: str, value: Any) -> int:
    """The same of an integer that counts something, of whatever type it is.

    Raises:
        W2SError: for a fraction and a negative number, too.
    """
    found = one_number(name, value)
    if not found.is_integer():
        raise W2SError(f"{name} is {found:g}; expected an integer")
    if found < 0:
        raise W2SError(f"{name} is {found:g}; expected an integer of at least 0")
    return int(found)


def read_progress(columns: dict[str, Any]) -> tuple[float, int | None] | None:
    """Take ``weak_frac`` and ``weak_step`` out of the columns; None if they are not there.

    Raises:
        W2SError: for a step without a fraction, and for what is no number.
    """
    frac, step = columns.pop("weak_frac", None), columns.pop("weak_step", None)
    if frac is None:
        if step is not None:
            raise W2SError("weak_step came without weak_frac; give both, or weak_frac alone")
        return None
    at = None if step is None else whole_number("weak_step", step)
    return one_number("weak_frac", frac), at
