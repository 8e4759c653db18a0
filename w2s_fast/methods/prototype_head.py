"""A head of class prototypes, without a training or as the start of one.

``probing.prototype_head`` has the equations: prototypes of the weak labels in the untrained
student's hidden states, those of rare classes drawn to frequent ones. The student is frozen and
this is its head; with ``train`` it is the head that the student is finetuned from, in place of a
zero or random one.

Source: Wang et al. 2023 (TEEN, arXiv 2312.05229).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from w2s_fast.errors import W2SError
from w2s_fast.methods._base import Method, number
from w2s_fast.methods._node import Node, with_needs
from w2s_fast.methods._plan import Plan

_OF_HEADS = {"role", "loss", "freeze", "member"}  # settings that leave an untrained head as it is


@dataclass(frozen=True, kw_only=True)
class PrototypeHead(Method):
    """Take class prototypes, calibrated, for the head.

    Attributes:
        tau: sharpness of the softmax over frequent classes.
        alpha: share of frequent prototypes in those of rare classes, in [0, 1].
        rare: a class is rare if its share of the weak labels is below ``rare`` / C, in [0, 1].
        train: finetune the student from this head; false: the head alone is the student.
    """

    kinds = ("classification",)
    tau: float = number(16.0, 0.0, 1e6)
    alpha: float = number(0.5, 0.0, 1.0)
    rare: float = number(0.5, 0.0, 1.0)
    train: bool = False

    def initial(self, plan: Plan, labels: Node) -> Node | None:
        return self._made(plan, labels, {}) if self.train else None

    def final(self, plan: Plan, student: Node) -> Node:
        """Return the untrained student with the head; with ``train`` the trained student.

        Raises:
            W2SError: A method before it changes the training, and there is none.
        """
        if self.train:
            return student
        settings = dict(student.settings)
        if further := sorted(settings.keys() - _OF_HEADS):
            raise W2SError(
                f"prototype_head trains nothing, and a method before it sets {further[0]!r} of the "
                "training; leave it out, or set train=true"
            )
        return self._made(plan, dict(student.needs)["labels"], {"freeze": True})

    def _made(self, plan: Plan, labels: Node, training: dict[str, Any]) -> Node:
        student = plan.student(labels, **training)
        if "transfer" not in dict(student.needs):
            start = dict(student.needs).get("start")
            student = with_needs(student, transfer=plan.features("transfer", "last", start=start))
        made = {"merge": "prototype_head", "tau": self.tau, "alpha": self.alpha, "rare": self.rare}
        settings = {**dict(student.settings), **made}
        return replace(student, settings=tuple(sorted(settings.items())))
