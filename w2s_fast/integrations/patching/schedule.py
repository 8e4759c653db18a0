"""Losses that change over training: detect them, and read where training is."""

from __future__ import annotations

import ast
import inspect
import numbers
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.losses import Loss

_PROGRESS = ("step_frac", "step")  # fields of ``LossContext`` that say where training is


def has_schedule(loss: Loss) -> bool:
    """Return whether a loss depends on the progress of training.

    The coefficient is evaluated all over training, at fractions of 1/1024 and at steps at most 1 %
    apart. A ``forward`` defined outside this package may have a schedule of another kind: the loss
    has one if that code does more with ``step_frac`` or ``step`` than pass them on, or if its value
    differs at some of fewer points.
    """
    overridden = type(loss).coefficient is not Loss.coefficient
    if overridden and _varies(loss.coefficient, _dense_points()):
        return True
    forward = type(loss).forward
    if forward.__module__.startswith("w2s_fast.losses."):
        return False
    return _reads_progress(forward) or any(_varies(f, _few_points()) for f in _loss_values(loss))


def _reads_progress(function: Any) -> bool:
    """Return whether a function uses ``step_frac`` or ``step`` other than as ``step=ctx.step``.

    False if the source code is not available.
    """
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return False
    passed_on = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.keyword) and _progress_name(node.value) == node.arg
    }
    return any(_progress_name(node) and id(node) not in passed_on for node in ast.walk(tree))


def _progress_name(node: ast.AST) -> str | None:
    """Return the name in ``_PROGRESS`` that ``ctx.step``, ``step`` or ``"step"`` stands for."""
    if isinstance(node, ast.Attribute):
        name: Any = node.attr
    elif isinstance(node, ast.Name):
        name = node.id
    else:
        name = node.value if isinstance(node, ast.Constant) else None
    return name if isinstance(name, str) and name in _PROGRESS else None


def _varies(function: Callable[[float, int], Any], points: Iterator[tuple[float, int]]) -> bool:
    """Return whether a function of (step_frac, step) is not constant; one that raises is not."""
    first = None
    for step_frac, step in points:
        try:
            value = float(function(step_frac, step))
        except Exception:
            return True
        if first is None:
            first = value
        if value != first:
            return True
    return False


def _dense_points() -> Iterator[tuple[float, int]]:
    """Yield fractions and steps, each alone and both together."""
    fracs = [i / 1024 for i in range(1025)]
    steps = [*range(1024), *np.geomspace(1024, 10**9, 1400).astype(np.int64).tolist()]
    yield from ((frac, 0) for frac in fracs)
    yield from ((0.0, step) for step in steps)
    for n in (10**2, 10**4, 10**6):
        yield from ((frac, round(frac * n)) for frac in fracs)


def _few_points() -> Iterator[tuple[float, int]]:
    """Yield fewer points, for functions that take longer."""
    for n in (0, 64, 10**6):
        yield from ((i / 32, i * n // 32) for i in range(33))


def _loss_values(loss: Loss) -> Iterator[Callable[[float, int], Tensor]]:
    """Yield the loss of three rows of five classes for each kind of label that it accepts."""
    logits = torch.linspace(-2, 2, 15).sin().view(3, 5)
    for weak in (torch.tensor([0, 3, 4]), logits.flip(0).softmax(-1)):

        def value(step_frac: float, step: int, weak: Tensor = weak) -> Tensor:
            return loss(logits, weak, step_frac=step_frac, step=step).loss_sum.detach()

        try:
            value(0.0, 0)
        except Exception:
            continue  # the loss does not accept labels of this kind
        yield value


def coefficient_at(loss: Loss, step_frac: float, step: int | None) -> float:
    """Return the coefficient at a point of training.

    Raises:
        W2SError: if ``step_frac`` is out of range, or the loss counts steps and ``step`` is None.
    """
    if not 0 <= step_frac <= 1:
        raise W2SError(
            f"step_frac is {step_frac}; expected optimizer step / number of steps, in [0, 1]"
        )
    try:
        return loss.coefficient(step_frac, step)
    except TypeError as error:
        if step is not None:
            raise
        raise W2SError(
            f"{type(loss).__name__} counts optimizer steps, and step is missing ({error}); call "
            "set_progress(model, step_frac, step), or send a weak_step column"
        ) from error


def one_number(name: str, value: Any) -> float:
    """Return a number, or the one number that a column repeats.

    Raises:
        W2SError: for anything else.
    """
    if isinstance(value, Tensor):
        value = value.detach().flatten().tolist()
    elif isinstance(value, np.ndarray | np.generic):
        value = np.asarray(value).ravel().tolist()
    entries = list(value) if isinstance(value, list | tuple) else [value]
    if not entries:
        raise W2SError(f"{name} is empty; expected a number")
    for x in entries:
        if not isinstance(x, numbers.Real) or isinstance(x, bool):
            raise W2SError(f"{name} is the {type(x).__name__} {x!r}; expected a number")
        if x != x:
            raise W2SError(f"{name} is nan; expected a number")
        if x != entries[0]:
            raise W2SError(f"{name} holds {entries[0]} and {x}; expected one number, repeated")
    return float(entries[0])


def whole_number(name: str, value: Any) -> int:
    """Return the count that ``value`` holds, as ``one_number`` does.

    Raises:
        W2SError: also for a fraction and for a negative number.
    """
    number = one_number(name, value)
    if not number.is_integer():
        raise W2SError(f"{name} is {number:g}; expected an integer")
    if number < 0:
        raise W2SError(f"{name} is {number:g}; expected an integer of at least 0")
    return int(number)


def pop_progress(columns: dict[str, Any]) -> tuple[float, int | None] | None:
    """Take ``weak_frac`` and ``weak_step`` out of the columns; None if they are absent.

    Raises:
        W2SError: for a step without a fraction, and for values that are not numbers.
    """
    step_frac, step = columns.pop("weak_frac", None), columns.pop("weak_step", None)
    if step_frac is None:
        if step is not None:
            raise W2SError("weak_step came without weak_frac; give both, or weak_frac alone")
        return None
    return (
        one_number("weak_frac", step_frac),
        None if step is None else whole_number("weak_step", step),
    )
