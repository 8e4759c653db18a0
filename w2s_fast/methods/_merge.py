"""Students that are made of the weights of trained ones, without a training of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from w2s_fast.methods._node import Node, make_node

_TRAINED = "trained"
# What a merged student has in common with its members.
_KEPT = ("role", "loss", "freeze", "low_rank")
# What only a training reads.
_OF_TRAININGS = ("perplexity", "reference", "weak_policy", "weak_reference")


def merged(members: Sequence[Node], how: str, **settings: Any) -> Node:
    """Return the student whose weights stage `student` makes of those of trained students.

    Args:
        members: nodes of students that learn the same labels from the same initial weights.
        how: "soup", "greedy_soup" or "interpolation".
        settings: of that, see ``pipeline.stages.merge``.
    """
    first = members[0]
    kept = {key: value for key, value in first.settings if key in _KEPT}
    needs = {
        name: node
        for name, node in first.needs
        if name not in _OF_TRAININGS and not name.startswith(_TRAINED)
    }
    needs |= {f"{_TRAINED}{i}": node for i, node in enumerate(members)}
    return make_node("student", {**kept, "merge": how, **settings}, needs)


def varied(student: Node, settings: Mapping[str, Any]) -> Node:
    """Return a student with other settings of its training; of a merged one, of its members."""
    needs = tuple(
        (name, varied(node, settings) if name.startswith(_TRAINED) else node)
        for name, node in student.needs
    )
    return replace(
        student, settings=tuple(sorted({**dict(student.settings), **settings}.items())), needs=needs
    )


def members_of(student: Node) -> list[Node]:
    """Return the students that a merged one is made of, in order; none of a trained one."""
    if "merge" not in dict(student.settings):
        return []
    return [node for name, node in student.needs if name.startswith(_TRAINED)]


def trained_inputs_of(inputs: Sequence[tuple[str, str]]) -> list[str]:
    """Return the names of the inputs of a merged student that are its members, in order."""
    return sorted(
        (name for name, _ in inputs if name.startswith(_TRAINED)),
        key=lambda name: int(name.removeprefix(_TRAINED)),
    )
