"""The students of a run: every method with every loss, and what each of them needs computed."""

from __future__ import annotations

from dataclasses import dataclass

from w2s_fast.config import RunConfig
from w2s_fast.errors import W2SError
from w2s_fast.methods import Node, Plan, make_steps, student_nodes

PLAIN = "naive"


@dataclass(frozen=True)
class Student:
    """One student of every seed.

    Attributes:
        method: Its spec.
        loss: Spec of its loss, as the user wrote it.
        canonical_loss: The same with every field written out; what its jobs carry.
    """

    method: str
    loss: str
    canonical_loss: str

    @property
    def name(self) -> str:
        """What tables and folders call it: the loss, with any method but the plain one before."""
        return self.loss if self.method == PLAIN else f"{self.method}+{self.loss}"

    def nodes(self, cfg: RunConfig) -> tuple[Node, Node]:
        """Its training and that of its ceiling; the same for every seed."""
        writer = "student" if cfg.transcript_writer.kind == "local" else None
        return student_nodes(
            make_steps(self.method), Plan(self.canonical_loss, len(cfg.intermediate_models), writer)
        )


def students(cfg: RunConfig) -> list[Student]:
    """Every method with every loss; ``method@loss`` goes with that loss alone.

    Raises:
        W2SError: A spec does not fit, or two students are the same.
    """
    from w2s_fast.losses import canonical_spec

    found: dict[str, Student] = {}
    for spec in cfg.methods:
        method, at, pinned = (part.strip() for part in spec.partition("@"))
        if at and not pinned:
            raise W2SError(f"methods: {spec!r} names no loss after '@'")
        steps = repr(make_steps(method))
        for loss in (pinned,) if at else cfg.losses:
            student = Student(method, loss, canonical_spec(loss))
            same = found.setdefault(f"{steps} {student.canonical_loss}", student)
            if same is not student:
                raise W2SError(
                    f"the students {same.name!r} and {student.name!r} are the same; drop one of "
                    "losses or methods"
                )
            student.nodes(cfg)
    return list(found.values())


def check_kind(cfg: RunConfig, kind: str) -> None:
    """Refuse a method that cannot be used on the task's kind, before anything is computed.

    Raises:
        W2SError: naming it.
    """
    for student in students(cfg):
        for step in make_steps(student.method):
            if kind not in step.kinds:
                raise W2SError(
                    f"method {student.method!r} works on tasks of kind {', '.join(step.kinds)}; "
                    f"{cfg.task.name!r} is of kind {kind!r}"
                )
