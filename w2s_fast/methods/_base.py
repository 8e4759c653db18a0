"""What a method is: a plan of trainings and predictions, and pure functions between them.

A method never trains and never reads a file. It says what is needed (``Plan``), and its own
functions turn arrays into arrays. So every method is resumable, shares what it can with the
others, runs on many processes, and cannot see a true label it did not name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from w2s_fast.errors import W2SError
from w2s_fast.methods._plan import Node, Plan
from w2s_fast.specs import build

ANY_KIND = ("classification", "preference", "generation")


@dataclass(frozen=True, eq=False)
class Targets:
    """What a student learns from.

    Attributes:
        probs: (N, C) float32 class probabilities.
        weight: (N,) float32 row weights, 0 leaves a row out; None: all rows alike.
    """

    probs: np.ndarray
    weight: np.ndarray | None = None

    @property
    def kept(self) -> np.ndarray:
        """(N,) bool: rows that count."""
        if self.weight is None:
            return np.ones(len(self.probs), dtype=bool)
        return self.weight > 0

    def keep(self, rows: np.ndarray) -> Targets:
        """The same with only ``rows`` (N,) bool left of those that counted.

        Raises:
            W2SError: if nothing is left.
        """
        weight = np.where(rows, self.kept if self.weight is None else self.weight, 0.0)
        if not weight.any():
            raise W2SError(
                f"the method keeps none of {len(rows)} rows; loosen its settings, there would be "
                "nothing to train on"
            )
        return replace(self, weight=weight.astype(np.float32))


@dataclass(frozen=True, kw_only=True)
class Method:
    """Base of all methods; it trains the student on the weak labels as they are.

    A method overrides what it needs. Fields are hyper-parameters. ``a|b`` in a spec does ``a``,
    then ``b`` to what ``a`` gave.

    Attributes:
        kinds: Kinds of task it can be used on, see ``TaskData.kind``.
    """

    kinds: ClassVar[tuple[str, ...]] = ("classification", "preference")

    def labels(self, plan: Plan, labels: Node) -> Node:
        """The labels that the student learns from, made of the ones that came in."""
        return labels

    def training(self, plan: Plan) -> Mapping[str, Any]:
        """How the student's training differs from a plain one.

        Keys: ``keep`` ("last"; "weak" or "gold": the moment that scores best on a part of the
        rows held out, by their weak or their true labels), ``holdout`` (share of that part),
        ``freeze`` (only the head is trained), ``start`` (a node of a model to begin from),
        ``loss`` (a spec).
        """
        return {}

    def _check(self, name: str, low: float, high: float = math.inf) -> None:
        """Raise ``W2SError`` unless field ``name`` is a number in [low, high]."""
        value = getattr(self, name)
        if not low <= value <= high:
            span = f"at least {low:g}" if high == math.inf else f"in [{low:g}, {high:g}]"
            raise W2SError(f"{type(self).__name__}: {name} is {value}; expected a number {span}")

    def _one_of(self, name: str, names: tuple[str, ...]) -> None:
        """Raise ``W2SError`` unless field ``name`` is one of ``names``."""
        if getattr(self, name) not in names:
            raise W2SError(
                f"{type(self).__name__}: {name} is {getattr(self, name)!r}; expected one of "
                f"{', '.join(names)}"
            )


@dataclass(frozen=True, kw_only=True)
class Naive(Method):
    """Train on the weak labels as they are (Burns et al. 2023, arXiv 2312.09390, §4.2)."""

    kinds = ANY_KIND


# What is done to the model and not to its labels: students on the way and the ceiling share it.
_OF_THE_BODY = ("freeze", "start")


# Name -> class; filled by ``w2s_fast.methods``, which imports every method.
METHODS: dict[str, type[Method]] = {}


def make_method(spec: str) -> Method:
    """Build one method from its spec.

    Raises:
        W2SError: for an unknown name or field, or a value that does not fit.
    """
    return build(spec, METHODS, Method, "method")


def student_nodes(steps: tuple[Method, ...], plan: Plan) -> tuple[Node, Node]:
    """The student after ``steps``, one after the other, and its ceiling.

    Raises:
        W2SError: if two steps ask for different trainings, or one learns from a ceiling.
    """
    training: dict[str, Any] = {}
    for step in steps:
        for key, value in step.training(plan).items():
            if training.setdefault(key, value) != value:
                raise W2SError(
                    f"{type(step).__name__} trains with {key}={value}, a step before it with "
                    f"{key}={training[key]}; leave one out"
                )
    body = tuple((k, training.pop(k)) for k in _OF_THE_BODY if k in training)
    plan = replace(plan, body=body)
    labels = plan.weak_labels()
    for step in steps:
        labels = step.labels(plan, labels)
    student = plan.student(labels, **training)
    _refuse_gold(student)
    return student, plan.ceiling()


def _refuse_gold(student: Node) -> None:
    """No road from the true labels of the transfer set may end in a student unnamed."""
    waiting = [student]
    while waiting:
        node = waiting.pop()
        waiting += [n for _, n in node.needs]
        if node.stage == "ceiling":
            raise W2SError(
                "the method learns from a model of stage 'ceiling', which was trained on the true "
                "labels of the same rows; use a student or the weak model"
            )
