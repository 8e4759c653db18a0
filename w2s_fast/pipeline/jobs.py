"""What has to be computed: one job a stage, seed and loss, and what each result depends on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from w2s_fast.config import RunConfig, to_dict
from w2s_fast.engine.config import CARRIED_OUT
from w2s_fast.models import ModelConfig
from w2s_fast.store import content_hash, tree_hash
from w2s_fast.tasks import Examples, TaskData

# Raised when a stage computes something else from the same inputs, so old results are left alone.
VERSIONS = {
    "pretrain": 1,
    "weak": 1,
    "labels": 1,
    "student": 1,
    "ceiling": 1,
    "control": 1,
    "report": 1,
}
EMBEDDED = "agreement-lm"  # the model source that stage `pretrain` makes
CONTROL_LOSS = "xent"
_NOT_CONTENT = set(CARRIED_OUT)  # settings that cannot change a result


@dataclass(frozen=True)
class Job:
    """One stage of one seed (and loss).

    Attributes:
        stage: Key of ``VERSIONS``.
        seed: Seed of the run; None for what all seeds share.
        loss: Spec of the student's loss; None elsewhere.
        needs: Names of the jobs whose results go in.
    """

    stage: str
    seed: int | None = None
    loss: str | None = None
    needs: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """A name unique in the run, e.g. ``student/0/xent``."""
        return "/".join(str(p) for p in (self.stage, self.seed, self.loss) if p is not None)


def plan(cfg: RunConfig, *, labels_only: bool = False) -> list[Job]:
    """Return every job of the run in an order that respects ``needs``; stage `report` is last."""

    def base(model: ModelConfig) -> tuple[str, ...]:
        return ("pretrain",) if model.source == EMBEDDED else ()

    roles = (cfg.weak,) if labels_only else (cfg.weak, cfg.student)
    jobs = [Job("pretrain")] if any(base(m) for m in roles) else []
    for s in cfg.seeds:
        jobs += [Job("weak", s, None, base(cfg.weak))]
        jobs += [Job("labels", s, None, (*base(cfg.weak), f"weak/{s}"))]
    if labels_only:
        return jobs
    for s in cfg.seeds:
        labels = (f"labels/{s}",)
        jobs += [Job("ceiling", s, None, base(cfg.student))]
        jobs += [Job("student", s, loss, base(cfg.student) + labels) for loss in cfg.losses]
        if cfg.control:
            jobs += [Job("control", s, CONTROL_LOSS, base(cfg.student) + labels)]
    return [*jobs, Job("report", needs=tuple(j.name for j in jobs if j.stage != "pretrain"))]


def config_slice(cfg: RunConfig, job: Job, n_classes: int) -> dict[str, Any]:
    """Return the settings that can change the job's result, and nothing else."""
    from w2s_fast.losses import make_loss

    common: dict[str, Any] = {"version": VERSIONS[job.stage]}
    if job.stage == "pretrain":
        task = cfg.task
        return common | {"language": task.language_seed, "model": to_dict(task.pretrain)}
    if job.stage == "report":
        return common | {"seeds": list(cfg.seeds), "losses": list(cfg.losses)}
    weak = job.stage in ("weak", "labels")
    model, train = (cfg.weak, cfg.weak_train) if weak else (cfg.student, cfg.student_train)
    common |= {"model": _model_slice(model), "classes": n_classes, "device": cfg.device}
    if job.stage == "labels":
        return common | {"max_length": train.max_length}
    settings = {k: v for k, v in to_dict(train).items() if k not in _NOT_CONTENT}
    loss = repr(make_loss(job.loss)) if job.loss else None
    return common | {"train": settings, "loss": loss, "seed": job.seed}


def _model_slice(model: ModelConfig) -> dict[str, Any]:
    """Return a model's settings; a folder counts by its content, which is an input, not by name."""
    return to_dict(model) | ({"source": "folder"} if Path(model.source).is_dir() else {})


def data_digests(data: TaskData) -> dict[str, str]:
    """Return a digest of the inputs and of the gold labels of each split."""
    splits: dict[str, Examples] = {
        "weak": data.weak,
        "transfer": data.transfer,
        "test": data.test,
    }
    found = {}
    for name, split in splits.items():
        found[f"{name}.inputs"] = content_hash([split.ids, split.texts, split.pairs])
        found[f"{name}.labels"] = content_hash([split.labels.tolist(), split.groups])
    return found


_DATA_INPUTS = {
    "weak": ("weak.inputs", "weak.labels", "test.inputs"),
    "labels": ("transfer.inputs",),
    "student": ("transfer.inputs", "test.inputs"),
    "control": ("transfer.inputs", "test.inputs"),
    "ceiling": ("transfer.inputs", "transfer.labels", "test.inputs"),
}


def input_digests(
    cfg: RunConfig,
    job: Job,
    results: Mapping[str, str],
    data: Mapping[int, Mapping[str, str]],
    folders: Mapping[str, str],
) -> dict[str, str]:
    """Return the digests of everything the job reads.

    Args:
        cfg: The run.
        job: The job.
        results: Digest of each finished job it needs, by name.
        data: ``data_digests`` by seed.
        folders: Digest of each checkpoint folder, by role.
    """
    found = {name: results[name] for name in job.needs}
    if job.stage == "report":
        kept = ("test.inputs", "test.labels", "transfer.labels")
        return found | {f"{k}/{s}": data[s][k] for s in cfg.seeds for k in kept}
    if job.seed is not None:
        found |= {k: data[job.seed][k] for k in _DATA_INPUTS[job.stage]}
        role = "weak" if job.stage in ("weak", "labels") else "student"
        own = [role] if role in folders else list(folders)  # else the tokenizer may be the other's
        found |= {f"folder.{r}": folders[r] for r in own}
    return found


def folder_digests(cfg: RunConfig) -> dict[str, str]:
    """Return a digest of each model that is a folder, by role."""
    roles = {"weak": cfg.weak, "student": cfg.student}
    return {r: tree_hash(Path(m.source)) for r, m in roles.items() if Path(m.source).is_dir()}
