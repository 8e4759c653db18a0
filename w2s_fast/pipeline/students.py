"""The students of a run: every method with every loss, and the nodes to compute for each."""

from __future__ import annotations

from dataclasses import dataclass

from w2s_fast.config import RunConfig, model_of, roles
from w2s_fast.errors import W2SError
from w2s_fast.methods import (
    Conflict,
    Naive,
    Node,
    Plan,
    SupervisedPlan,
    make_steps,
    student_nodes,
)

PLAIN = "naive"


@dataclass(frozen=True)
class Student:
    """A student, trained once per seed.

    Attributes:
        method: Spec of its methods, "a|b".
        loss: Spec of its loss, as the user wrote it.
        canonical_loss: Spec of its loss with every field, for its jobs.
    """

    method: str
    loss: str
    canonical_loss: str

    @property
    def name(self) -> str:
        """Name in tables and folders: ``LOSS``, or ``METHOD+LOSS`` for methods other than naive."""
        return self.loss if self.method == PLAIN else f"{self.method}+{self.loss}"

    def nodes(self, cfg: RunConfig) -> tuple[Node, Node]:
        """Return the nodes of its training and of its ceiling's; the same for every seed."""
        writer = "student" if cfg.transcript_writer.kind == "local" else None
        return student_nodes(make_steps(self.method), make_plan(cfg, self.canonical_loss, writer))


def make_plan(cfg: RunConfig, loss: str, writer: str | None = "student") -> Plan:
    """Return the plan of a student of the run, see ``Plan`` and ``SupervisedPlan``."""
    plan = Plan(
        loss,
        len(cfg.intermediate_models),
        writer,
        "weak" if cfg.critic_writer.kind == "local" else None,
        calibration=cfg.weak_calibration,
        folds=cfg.calibration_folds,
        referenced=_needing(cfg, "reference"),
        targeted="student" in _needing(cfg, "target"),
    )
    if not cfg.supervisors.sources:
        return plan
    return SupervisedPlan(**vars(plan), supervisors=cfg.supervisors)


def _needing(cfg: RunConfig, column: str) -> tuple[str, ...]:
    """Return the roles of policies whose preference loss needs a column: "reference", "target"."""
    specs = {role: model_of(cfg, role).preference for role in roles(cfg)}
    if not any(specs.values()):
        return ()
    from w2s_fast.losses.preference import make_preference

    return tuple(r for r, spec in specs.items() if spec and column in make_preference(spec).needs)


def no_conflict_of(cfg: RunConfig) -> dict[str, str]:
    """Return the student without conflict for every student with one, by name.

    Raises:
        W2SError: The run has none that is trained alike otherwise.
    """
    plain: dict[str, str] = {}
    conflicting: dict[str, tuple[str, str]] = {}
    for student in students(cfg):
        names = [part.strip() for part in student.method.split("|")]
        steps = dict(zip(names, make_steps(student.method), strict=True))
        rest = {n: s for n, s in steps.items() if not isinstance(s, Conflict)}
        meaning = f"{[s for s in rest.values() if type(s) is not Naive]} {student.canonical_loss}"
        if len(rest) == len(steps):
            plain[meaning] = student.name
        else:
            conflicting[student.name] = meaning, "|".join(rest) or PLAIN
    for name, (meaning, method) in conflicting.items():
        if meaning not in plain:
            raise W2SError(
                f"methods: {name!r} has no student without conflict to compare with; add "
                f"{method!r} to methods, with the same loss"
            )
    return {name: plain[meaning] for name, (meaning, _) in conflicting.items()}


def students(cfg: RunConfig) -> list[Student]:
    """Return every method with every loss; ``method@loss`` is combined with that loss alone.

    Raises:
        W2SError: A spec does not fit, or two students are the same.
    """
    from w2s_fast.losses import canonical_spec

    by_meaning: dict[str, Student] = {}
    for spec in cfg.methods:
        method, at, pinned = (part.strip() for part in spec.partition("@"))
        if at and not pinned:
            raise W2SError(f"methods: {spec!r} names no loss after '@'")
        steps = repr(make_steps(method))
        for loss in (pinned,) if at else cfg.losses:
            student = Student(method, loss, canonical_spec(loss))
            same = by_meaning.setdefault(f"{steps} {student.canonical_loss}", student)
            if same is not student:
                raise W2SError(
                    f"the students {same.name!r} and {student.name!r} are the same; drop one of "
                    "losses or methods"
                )
            student.nodes(cfg)
    return list(by_meaning.values())
