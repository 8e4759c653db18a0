"""The jobs of a run, one per node and seed, with their inputs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from w2s_fast.config import RunConfig, at_seed, model_of, run_seeds
from w2s_fast.methods import Node, Plan
from w2s_fast.models.checkpoint_source import is_checkpoint
from w2s_fast.pipeline.diagnostic_nodes import card_node, diagnostic_nodes, recorded
from w2s_fast.pipeline.students import make_plan, students
from w2s_fast.tasks import EMBEDDED

FIRST_EMBEDDED = "agreement-lm"  # its jobs do not name it
CONTROL_LOSS = "xent"
TRAINED = ("weak", "intermediate", "student", "ceiling", "control")
SCORED = (
    *TRAINED,
    "labels",
    "posterior",
    "calibration",
    "trust",
    "overlap",
    "text_labels",
    "supervisor_card",
)  # what the report reads


@dataclass(frozen=True)
class Job:
    """One stage of one seed.

    Attributes:
        stage: Key of ``VERSIONS``.
        name: Unique name in the run, such as ``student/0/xent``.
        seed: Seed of the run; None for a job that all seeds share.
        settings: Settings of its node.
        inputs: Pairs (name of the input in this job, name of the job that computes it).
        gold: Uses of true labels of the transfer set, which it may read.
        weak_gold: Further uses of true labels that reports name.
    """

    stage: str
    name: str
    seed: int | None = None
    settings: tuple[tuple[str, Any], ...] = ()
    inputs: tuple[tuple[str, str], ...] = ()
    gold: tuple[str, ...] = ()
    weak_gold: tuple[str, ...] = ()

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the jobs that must be finished before this one."""
        return tuple(name for _, name in self.inputs)

    def setting(self, name: str, default: Any = None) -> Any:
        """Return one of ``settings``."""
        return dict(self.settings).get(name, default)


@dataclass(frozen=True)
class Entry:
    """The jobs of a student of one seed: its training, its ceiling's, its replicates', by name."""

    student: str
    ceiling: str
    replicates: tuple[str, ...] = ()


@dataclass(frozen=True)
class Supervisor:
    """The jobs of the weak labels of one seed, by name.

    Attributes:
        labels: Labels of the transfer set.
        test: Predictions of the test items.
        ood: Predictions of the out-of-distribution test items; None if the task has none.
    """

    labels: str
    test: str
    ood: str | None


@dataclass(frozen=True)
class JobPlan:
    """All jobs of a run.

    Attributes:
        jobs: Jobs, each after those it needs; ``report`` is the last.
        entries: Jobs of the students, by seed and name of the student.
        supervisors: Jobs of the weak labels, by seed.
    """

    jobs: list[Job]
    entries: dict[tuple[int, str], Entry]
    supervisors: dict[int, Supervisor]


def plan_jobs(cfg: RunConfig, *, labels_only: bool = False) -> JobPlan:
    """Return every job of the run, or only those that the weak labels need."""
    planner = _Planner(cfg)
    entries: dict[tuple[int, str], Entry] = {}
    everyone = [(s.name, s.nodes(cfg)) for s in students(cfg)]
    base = make_plan(cfg, CONTROL_LOSS)
    supervisors = {s: _add_supervisor(cfg, planner, base, s) for s in run_seeds(cfg)}
    if labels_only:
        return JobPlan(planner.ordered(), entries, supervisors)
    nodes = [node for _, pair in everyone for node in pair]
    for seed in run_seeds(cfg):  # before the students, so that they can be stopped in time
        planner.add(card_node(cfg, base, nodes), seed, "")
    diagnostics = diagnostic_nodes(cfg, base, nodes)
    for seed in run_seeds(cfg):
        for name, (student, ceiling) in everyone:
            plain = ceiling == base.ceiling()
            entries[seed, name] = Entry(
                ceiling=planner.add(ceiling, seed, "" if plain else name),
                student=planner.add(recorded(cfg, student), seed, name),
                replicates=tuple(
                    planner.add(_perturbed(student, i), seed, f"{name}/rounding-{i}")
                    for i in range(1, cfg.rounding_replicates + 1)
                ),
            )
        for node in diagnostics:
            planner.add(node, seed, "")
        if cfg.control:
            planner.add(base.control(base.weak_labels()), seed, CONTROL_LOSS)
    jobs = planner.ordered()
    scored = tuple((j.name, j.name) for j in jobs if j.stage in SCORED)
    return JobPlan([*jobs, Job("report", "report", inputs=scored)], entries, supervisors)


def _add_supervisor(cfg: RunConfig, planner: _Planner, plan: Plan, seed: int) -> Supervisor:
    """Add the jobs of the weak labels of one seed, and of the predictions that score them."""
    if not cfg.supervisors.sources:
        model = planner.add(plan.weak_model(), seed, "")
        return Supervisor(planner.add(plan.weak_labels(), seed, ""), model, model)
    labels = planner.add(plan.weak_labels(), seed, "")
    test = planner.add(plan.weak_labels(split="test"), seed, "test")
    has_ood = cfg.task.ood.n > 0
    ood = planner.add(plan.weak_labels(split="ood"), seed, "ood") if has_ood else None
    return Supervisor(labels, test, ood)


class _Planner:
    """Turn nodes into jobs; equal nodes of one seed are one job."""

    def __init__(self, cfg: RunConfig) -> None:
        self.cfg = cfg
        self.jobs: dict[str, Job] = {}
        self._names: dict[tuple[Node, int], str] = {}
        self._first: dict[str, Job] = {}  # jobs of models that need no node

    def ordered(self) -> list[Job]:
        """Return the jobs, each after those it needs; what asks an endpoint comes first.

        A reply that cannot be used then ends the run before anything is trained, where the
        transcripts do not need the weak model's predictions.
        """
        jobs = list(self.jobs.values())
        if self.cfg.transcript_writer.kind == "endpoint":
            jobs.sort(key=lambda job: job.stage != "transcripts" or bool(job.inputs))
        return [*self._first.values(), *jobs]

    def add(self, node: Node, seed: int, owner: str, *, needed: bool = False) -> str:
        """Add the job of a node and the jobs it needs; return its name.

        The name is stage/seed/owner, with a number at the end for the jobs it needs.
        """
        if (node, seed) in self._names:
            return self._names[node, seed]
        inputs = [(a, self.add(n, seed, owner, needed=True)) for a, n in node.needs]
        inputs = [*self._model_inputs(dict(node.settings).get("role"), seed), *inputs]
        name = "/".join([node.stage, str(seed), *filter(None, [owner])])
        if needed:
            name = next(n for i in range(1, 10**6) if (n := f"{name}/{i}") not in self.jobs)
        self._names[node, seed] = name
        self.jobs[name] = Job(
            node.stage, name, seed, node.settings, tuple(inputs), node.gold, node.weak_gold
        )
        return name

    def _model_inputs(self, role: str | None, seed: int) -> list[tuple[str, str]]:
        """Add the jobs that a role's model needs, and return them as inputs."""
        if role is None:
            return []
        cfg = at_seed(self.cfg, seed)
        if (source := model_of(cfg, role).source) in EMBEDDED:
            job = _pretrain_job(source, EMBEDDED[source].config(cfg.task).seed)
        elif needs_tokenizer(cfg, role):
            job = Job("tokenizer", f"tokenizer/{seed}", seed)
        else:
            return []
        self._first[job.name] = job
        return [(job.stage, job.name)]


def _pretrain_job(source: str, seed: int) -> Job:
    """Return the pretraining of an embedded model with a seed of its own."""
    settings: dict[str, Any] = {"seed": seed} if seed else {}
    if source != FIRST_EMBEDDED:
        settings["source"] = source
    name = "/".join(["pretrain", *map(str, reversed(settings.values()))])
    return Job("pretrain", name, settings=tuple(settings.items()))


def needs_tokenizer(cfg: RunConfig, role: str) -> bool:
    """Return whether a role's model has no tokenizer of its own, of the task, or of a checkpoint.

    A built-in model uses the tokenizer of the student, else of the weak model, if it has one.
    """
    if any(model.task == cfg.task.name for model in EMBEDDED.values()):
        return False
    return not any(is_checkpoint(Path(model_of(cfg, r).source)) for r in (role, "student", "weak"))


def _perturbed(node: Node, replicate: int) -> Node:
    """Return a node whose student starts from weights with other last bits, and all it needs."""
    needs = tuple((name, _perturbed(n, replicate)) for name, n in node.needs)
    settings = dict(node.settings)
    if settings.get("role") == "student":
        settings["rounding"] = replicate
    return replace(node, settings=tuple(sorted(settings.items())), needs=needs)
