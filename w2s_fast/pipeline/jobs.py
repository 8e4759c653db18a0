"""The jobs of a run, one per node and seed, and what each result depends on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from w2s_fast.config import RunConfig, at_seed, model_of, roles, run_seeds, to_dict, train_of
from w2s_fast.files import content_hash, tree_hash, tree_stamp
from w2s_fast.labeling import source_digest
from w2s_fast.methods import Node, Plan
from w2s_fast.models import ModelConfig
from w2s_fast.pipeline.diagnostic_nodes import diagnostic_nodes, recorded
from w2s_fast.pipeline.students import make_plan, students
from w2s_fast.tasks import TaskData
from w2s_fast.training.config import EXECUTION_FIELDS

# Raise a version when its stage computes something else from the same inputs: old results are then
# not reused.
VERSIONS = {
    "pretrain": 2,
    "tokenizer": 1,
    "weak": 1,
    "labels": 1,
    "calibration": 1,
    "intermediate": 1,
    "student": 1,
    "ceiling": 1,
    "control": 1,
    "tuned": 1,
    "features": 1,
    "prior": 1,
    "balance": 1,
    "transcripts": 1,
    "trajectory": 1,
    "apply": 1,
    "votes": 1,
    "generated_votes": 1,
    "posterior": 1,
    "gate": 1,
    "trust": 1,
    "overlap": 1,
    "samples": 1,
    "text_labels": 1,
    "pair_logprob": 1,
    "reference": 1,
    "report": 9,
}
EMBEDDED = "agreement-lm"  # the model source that stage `pretrain` makes
EMBEDDED_TASK = "agreement"  # has a tokenizer of its own
CONTROL_LOSS = "xent"
_SEEDED = (
    "apply",
    "generated_votes",
    "gate",
    "trust",
    "text_labels",
)  # stages without a model that draw random numbers
_NOT_CONTENT = set(EXECUTION_FIELDS)  # settings that cannot change a result
TRAINED = ("weak", "intermediate", "student", "ceiling", "control")
SCORED = (
    *TRAINED,
    "labels",
    "posterior",
    "calibration",
    "trust",
    "overlap",
    "text_labels",
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
    diagnostics = diagnostic_nodes(cfg, base, [node for _, pair in everyone for node in pair])
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
        if model_of(cfg, role).source == EMBEDDED:
            job = _pretrain_job(cfg.task.pretrain.seed)
        elif needs_tokenizer(cfg, role):
            job = Job("tokenizer", f"tokenizer/{seed}", seed)
        else:
            return []
        self._first[job.name] = job
        return [(job.stage, job.name)]


def _pretrain_job(seed: int) -> Job:
    """Return the pretraining of the embedded model with a seed of its own."""
    if not seed:
        return Job("pretrain", "pretrain")
    return Job("pretrain", f"pretrain/{seed}", settings=(("seed", seed),))


def needs_tokenizer(cfg: RunConfig, role: str) -> bool:
    """Return whether a role's model has no tokenizer of its own, of the task, or of a checkpoint.

    A built-in model uses the tokenizer of the student, else of the weak model, if one is a folder.
    """
    if cfg.task.name == EMBEDDED_TASK:
        return False
    return not any(Path(model_of(cfg, r).source).is_dir() for r in (role, "student", "weak"))


def _perturbed(node: Node, replicate: int) -> Node:
    """Return a node whose student starts from weights with other last bits, and all it needs."""
    needs = tuple((name, _perturbed(n, replicate)) for name, n in node.needs)
    settings = dict(node.settings)
    if settings.get("role") == "student":
        settings["rounding"] = replicate
    return replace(node, settings=tuple(sorted(settings.items())), needs=needs)


def config_slice(cfg: RunConfig, job: Job, n_classes: int) -> dict[str, Any]:
    """Return exactly the settings that can change the job's result."""
    cfg = at_seed(cfg, job.seed)
    common: dict[str, Any] = {"version": VERSIONS[job.stage]}
    if job.stage == "pretrain":
        model = {k: v for k, v in to_dict(cfg.task.pretrain).items() if k != "seed"}
        return common | {"language": cfg.task.language_seed, "model": model, **dict(job.settings)}
    if job.stage == "tokenizer":
        return common
    if job.stage == "report":
        specs = {"losses": list(cfg.losses), "methods": list(cfg.methods)}
        answers = {"task": cfg.task.name, "read": cfg.task.read, "scorer": cfg.task.scorer}
        bases = {"bases": list(cfg.student_bases), "rounding": cfg.rounding_replicates}
        return common | {"seeds": list(cfg.seeds), **bases, **specs, **answers}
    common |= {"classes": n_classes, "settings": dict(job.settings)}
    role = job.setting("role")
    if job.stage == "transcripts":
        common |= {"writer": cfg.transcript_writer.content, "seed": job.seed}
    if role is None:
        return common | ({"seed": job.seed} if job.stage in _SEEDED else {})
    train = train_of(cfg, role)
    model = _model_slice(model_of(cfg, role))
    if job.stage == "reference":  # the same for every preference loss
        del model["preference"]
    common |= {"model": model, "device": cfg.device}
    common |= {"answer_tokens": cfg.task.answer_tokens}
    if job.stage in TRAINED or job.stage == "tuned":
        settings = {k: v for k, v in to_dict(train).items() if k not in _NOT_CONTENT}
        return common | {"train": settings, "seed": job.seed}
    if job.stage in ("samples", "reference"):
        common |= {"seed": job.seed}
    # A transcript writer does not truncate at the max_length of its training.
    return common | ({} if job.stage == "transcripts" else {"max_length": train.max_length})


def _model_slice(model: ModelConfig) -> dict[str, Any]:
    """Return a model's settings without the name of its folder, whose content is an input."""
    values = {k: v for k, v in to_dict(model).items() if k != "preference" or v}
    return values | ({"source": "folder"} if Path(model.source).is_dir() else {})


def data_digests(data: TaskData) -> dict[str, str]:
    """Return a digest of the inputs (texts, ids, groups) and of the true labels of each split."""
    digests = {"question": content_hash([data.kind, data.class_names, data.prompt, data.words])}
    for name, split in data.splits.items():
        digests[f"{name}.inputs"] = content_hash(
            [data.kind, split.ids, split.texts, split.pairs, split.groups]
        )
        subgroups = [] if split.subgroups is None else [split.subgroups]
        if split.prompts is not None:
            digests[f"{name}.inputs"] = content_hash([digests[f"{name}.inputs"], split.prompts])
        if split.votes is not None:
            digests[f"{name}.votes"] = content_hash(split.votes.tolist())
        digests[f"{name}.labels"] = content_hash([split.labels.tolist(), split.answers, *subgroups])
    return digests


def data_digest(data: TaskData) -> str:
    """Return one digest over ``data_digests``."""
    return content_hash(data_digests(data))


def data_of_job(
    cfg: RunConfig, job: Job, digests: Mapping[int, Mapping[str, str]]
) -> dict[str, str]:
    """Return ``data_digest`` by seed for the seeds whose data the job may read.

    Args:
        cfg: Configuration of the run.
        job: Job to compute.
        digests: ``data_digests`` by seed.
    """
    seeds = run_seeds(cfg) if job.stage == "report" else [s for s in [job.seed] if s is not None]
    return {str(seed): content_hash(dict(digests[seed])) for seed in seeds}


_SCORED = ("test.inputs", "ood.inputs")
_TRANSFER = ("transfer.inputs", *_SCORED)
_DATA_INPUTS = {
    "tokenizer": ("weak.inputs", "transfer.inputs"),
    "weak": ("weak.inputs", "weak.labels", *_SCORED),
    "calibration": ("weak.inputs", "weak.labels"),
    "trust": ("weak.inputs", "weak.labels", "transfer.inputs"),
    "overlap": ("transfer.inputs",),
    "intermediate": _TRANSFER,
    "student": _TRANSFER,
    "control": _TRANSFER,
    "ceiling": (*_TRANSFER, "transfer.labels"),
    "tuned": ("transfer.inputs",),
    "prior": ("question",),
    "features": ("question",),
    "transcripts": ("question",),
    "balance": ("transfer.labels",),
    "generated_votes": ("weak.inputs", "weak.labels"),
    "gate": ("weak.inputs", "weak.labels"),
    "text_labels": ("transfer.inputs",),
    "pair_logprob": ("transfer.inputs",),
}


def data_inputs(job: Job) -> tuple[str, ...]:
    """Return the keys of ``data_digests`` that the job reads if the task has them."""
    reads = _DATA_INPUTS.get(job.stage, ())
    if job.setting("shots"):
        reads = (*reads, "weak.inputs", "weak.labels")
    if split := job.setting("split"):
        column = (f"{split}.votes",) if job.setting("source") == "VoteColumn" else ()
        return (*reads, f"{split}.inputs", *column)
    if job.setting("conflict_rows"):
        reads = (*reads, "conflict.inputs", "conflict.labels")
    return (*reads, "transfer.labels") if job.gold and job.stage == "student" else reads


def input_digests(
    cfg: RunConfig,
    job: Job,
    results: Mapping[str, str],
    data: Mapping[int, Mapping[str, str]],
    folders: Mapping[str, str],
) -> dict[str, str]:
    """Return the digests of everything the job reads.

    Args:
        cfg: Configuration of the run.
        job: Job to compute.
        results: Digests of the finished jobs it needs, by name.
        data: ``data_digests`` by seed.
        folders: Digests of the checkpoint folders, by role.
    """
    digests = {argument: results[name] for argument, name in job.inputs}
    if job.setting("source") == "Functions":
        digests["functions"] = source_digest(job.setting("path"))
    if job.stage == "report":
        keys = (*_SCORED, "test.labels", "ood.labels", "transfer.labels")
        return digests | {
            f"{k}/{s}": data[s][k] for s in run_seeds(cfg) for k in keys if k in data[s]
        }
    if job.seed is not None:
        own = data[job.seed]
        digests |= {k: own[k] for k in data_inputs(job) if k in own}
        role = job.setting("role")
        if role is not None:
            # A model without a folder uses the tokenizer of the student, else of the weak model.
            source = next((r for r in (role, "student", "weak") if r in folders), None)
            digests |= {} if source is None else {f"folder.{source}": folders[source]}
    return digests


class Folders:
    """Digests of checkpoint folders; each is read once."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[str, str]] = {}  # by absolute path

    def digests(self, cfg: RunConfig) -> dict[str, str]:
        """Return a digest of each model that is a folder, by role."""
        return {role: self._facts(path)[0] for role, path in _folders(cfg).items()}

    def stamps(self, cfg: RunConfig, inputs: Mapping[str, str]) -> dict[str, str]:
        """Return ``tree_stamp`` by path, as it was before the folder was read.

        Args:
            cfg: Configuration of the run.
            inputs: ``input_digests`` of a job; only the folders it names are returned.
        """
        paths = {p for role, p in _folders(cfg).items() if f"folder.{role}" in inputs}
        return {path: self._facts(path)[1] for path in sorted(paths)}

    def _facts(self, path: str) -> tuple[str, str]:
        if path not in self._known:
            stamp = tree_stamp(Path(path))
            self._known[path] = tree_hash(Path(path)), stamp
        return self._known[path]


def _folders(cfg: RunConfig) -> dict[str, str]:
    sources = {role: Path(model_of(cfg, role).source) for role in roles(cfg)}
    return {role: str(path.absolute()) for role, path in sources.items() if path.is_dir()}
