"""Base class of the methods: a plan of trainings and predictions, and pure functions between them.

A method never trains and never reads a file. It declares what is needed (``Plan``), and its own
functions turn arrays into arrays. So every method can be resumed, shares results with the others,
runs on many processes, and is given no true label that it does not declare. Its code is trusted: a
function that reads the data by itself is not held back.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar

import numpy as np

from w2s_fast.errors import W2SError
from w2s_fast.methods._gold import check_gold
from w2s_fast.methods._node import Node
from w2s_fast.methods._plan import Plan
from w2s_fast.specs import build

ANY_KIND = ("classification", "preference", "generation")


@dataclass(frozen=True, eq=False)
class Targets:
    """Labels that a student learns.

    Attributes:
        probs: (N, C) float32 class probabilities.
        weight: (N,) float32 row weights; 0 leaves a row out. None: all rows weigh the same.
    """

    probs: np.ndarray
    weight: np.ndarray | None = None

    @property
    def used(self) -> np.ndarray:
        """(N,) bool: rows with a weight above 0."""
        if self.weight is None:
            return np.ones(len(self.probs), dtype=bool)
        return self.weight > 0

    def keep(self, rows: np.ndarray) -> Targets:
        """Set the weight of all rows but ``rows`` (N,) bool to 0.

        Raises:
            W2SError: No row is left.
        """
        weight = np.where(rows, self.used if self.weight is None else self.weight, 0.0)
        if not weight.any():
            raise W2SError(
                f"the method keeps none of {len(rows)} rows; loosen its settings, there would be "
                "nothing to train on"
            )
        return replace(self, weight=weight.astype(np.float32))


def number(default: float, low: float, high: float = math.inf) -> Any:
    """Declare a field of a method that is a number in [low, high]."""
    span = f"at least {low:g}" if high == math.inf else f"in [{low:g}, {high:g}]"
    return _checked(default, lambda value: low <= value <= high, f"a number {span}")


def choice(default: str, names: tuple[str, ...]) -> Any:
    """Declare a field of a method that is one of ``names``."""
    return _checked(default, lambda value: value in names, f"one of {', '.join(names)}")


def preference_loss(default: str) -> Any:
    """Declare the preference loss of a method that makes pairs."""
    return _checked(default, _is_preference, "the spec of a preference loss, such as dpo:beta=0.1")


def _is_preference(spec: str) -> bool:
    from w2s_fast.losses.preference import make_preference

    try:
        make_preference(spec)
    except W2SError:
        return False
    return True


def layer_field(default: str) -> Any:
    """Declare the layer whose hidden states a method reads: "half", "last" or a number."""
    expected = "half, last, or a number, 0 for the embeddings"
    pattern = re.compile("half|last|[0-9]+")
    return _checked(default, lambda value: pattern.fullmatch(value) is not None, expected)


def _checked(default: Any, accepts: Callable[[Any], bool], expected: str) -> Any:
    return field(default=default, metadata={"accepts": accepts, "expected": expected})


@dataclass(frozen=True, kw_only=True)
class Method:
    """Base of all methods; it trains the student on the weak labels unchanged.

    Fields are hyper-parameters; ``number`` and ``choice`` declare their range. ``a|b`` in a spec
    applies ``b`` to the labels of ``a``.

    Attributes:
        kinds: Kinds of task that the method supports, see ``TaskData.kind``.
    """

    kinds: ClassVar[tuple[str, ...]] = ("classification", "preference")

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if "accepts" in f.metadata and not f.metadata["accepts"](value):
                raise W2SError(
                    f"{type(self).__name__}: {f.name} is {value!r}; expected "
                    f"{f.metadata['expected']}"
                )

    def check_task(self, n_classes: int, n_rows: int) -> None:
        """Check that the method fits a task; called before anything is computed.

        Args:
            n_classes: Number of classes.
            n_rows: Number of transfer rows, of which methods before this one may drop some.

        Raises:
            W2SError: It does not fit.
        """

    def files_read(self) -> tuple[str, ...]:
        """Return the files that its functions of texts read; an edit changes their results."""
        return ()

    def labels(self, plan: Plan, labels: Node) -> Node:
        """Return the labels that the student learns, given the input labels."""
        return labels

    def initial(self, plan: Plan, labels: Node) -> Node | None:
        """Return the trained student that the student continues from, given the input labels.

        None: the student starts from its pretrained weights.
        """
        return None

    def final(self, plan: Plan, student: Node) -> Node:
        """Return the student that is scored, given the trained one.

        It may be made of several students, see ``_merge.merged``.
        """
        return student

    def training(self, plan: Plan) -> Mapping[str, Any]:
        """Return the settings in which the student's training differs from the default.

        Keys: ``keep`` ("last"; "weak" or "gold": the weights with the highest accuracy on held-out
        rows, by their weak or their true labels), ``holdout`` (share of these rows; with "last"
        they are left to ``final``), ``shared_holdout`` (hold the same rows out for every member),
        ``freeze`` (train only the head), ``start`` (node of the model to start from), ``loss`` (a
        spec; a preference loss where ``labels`` are pairs), ``stages`` (number of stages from easy
        to hard completions), ``lr_factor`` (of the learning rate of ``student_train``),
        ``conflict`` (alpha of a simulated objective against the true labels), ``conflict_rows``
        (rows of a conflicting objective per row), ``anchor``, ``mixup`` and ``nested_dropout`` (of
        ``TrainConfig``), ``select_width`` (held-out rows select the width of the head afterwards),
        ``step_targets`` (a spec of ``training.step_targets.StepTargets``: targets made anew in
        every step).
        """
        return {}


@dataclass(frozen=True, kw_only=True)
class Naive(Method):
    """Train on the weak labels, unchanged (Burns et al. 2023, arXiv 2312.09390, §4.2)."""

    kinds = ANY_KIND


# Settings of the model rather than of its labels; intermediate students and the ceiling share them.
_MODEL_SETTINGS = ("freeze", "start", "low_rank")


# Name -> class; ``w2s_fast.methods`` fills it, because it imports every method.
METHODS: dict[str, type[Method]] = {}


def make_method(spec: str) -> Method:
    """Build one method from its spec.

    Raises:
        W2SError: A name or field is unknown, or a value does not fit.
    """
    return build(spec, METHODS, Method, "method")


def student_nodes(steps: tuple[Method, ...], plan: Plan) -> tuple[Node, Node]:
    """Return the nodes of the student after ``steps``, in order, and of its ceiling.

    Raises:
        W2SError: Two steps require different trainings, or a step learns from true labels, see
            ``check_gold``.
    """
    training: dict[str, Any] = {}
    for step in steps:
        for key, value in step.training(plan).items():
            if training.setdefault(key, value) != value:
                raise W2SError(
                    f"{type(step).__name__} trains with {key}={value}, a step before it with "
                    f"{key}={training[key]}; leave one out"
                )
    model_settings = tuple((k, training.pop(k)) for k in _MODEL_SETTINGS if k in training)
    plan = replace(plan, model_settings=model_settings)
    labels, initial = plan.weak_labels(), None
    for step in steps:
        initial = step.initial(plan, labels) or initial
        labels = step.labels(plan, labels)
    student = plan.student(labels, initial, **training)
    for step in steps:
        student = step.final(plan, student)
    check_gold(student)
    return student, plan.ceiling()
