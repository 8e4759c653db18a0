"""Stage `report`: compute scores, PGR and intervals from the stored predictions of all runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from w2s_fast import metrics
from w2s_fast.config import RunConfig
from w2s_fast.files import write_json
from w2s_fast.pipeline import artifacts
from w2s_fast.pipeline.artifacts import LABELS, TEST
from w2s_fast.pipeline.context import Context
from w2s_fast.pipeline.jobs import Entry, JobPlan, plan_jobs
from w2s_fast.pipeline.predictions import SCORE_NAMES, Predictions
from w2s_fast.pipeline.students import Student, students
from w2s_fast.pipeline.task_kinds import task_kind
from w2s_fast.store import StageBuild
from w2s_fast.tasks import TaskData

MODELS = ("weak", "student", "ceiling")


@dataclass(frozen=True)
class _Supervisor:
    """The weak model of one seed.

    Attributes:
        test: Its predictions of the test items.
        labels: Its labels of the transfer set.
        groups: (N,) int64, the group of each test item.
    """

    test: Predictions
    labels: Predictions
    groups: np.ndarray


@dataclass(frozen=True)
class _Trained:
    """Test predictions of a student of one seed and of its ceiling.

    Attributes:
        student: Predictions of the student.
        ceiling: Predictions of the ceiling.
        ceiling_name: Student that the ceiling belongs to; empty for the plain ceiling.
    """

    student: Predictions
    ceiling: Predictions
    ceiling_name: str


def report(ctx: Context, build: StageBuild) -> None:
    """Write the scores of all runs."""
    data = {s: ctx.read(s) for s in ctx.cfg.seeds}
    ctx.write(lambda: write_json(build.path / artifacts.REPORT, score(ctx.cfg, data, ctx.folders)))


def score(
    cfg: RunConfig, data: Mapping[int, TaskData], folders: Mapping[str, Path]
) -> dict[str, Any]:
    """Return ``runs``, ``summary``, ``controls`` and ``gold`` of results.json.

    Args:
        cfg: The run.
        data: Splits by seed.
        folders: Folder of every finished job, by name.
    """
    jobs = plan_jobs(cfg)
    supervisors = {s: _read_supervisor(s, data[s], folders) for s in cfg.seeds}
    same_items = len({data[s].test.ids for s in cfg.seeds}) == 1
    runs, summary = [], []
    for student in students(cfg):
        trained = {
            s: _read_trained(jobs.entries[s, student.name], data[s], folders) for s in cfg.seeds
        }
        outcomes = [_outcomes(supervisors[s], trained[s]) for s in cfg.seeds]
        rows = [
            _run_row(s, student, supervisors[s], trained[s], o)
            for s, o in zip(cfg.seeds, outcomes, strict=True)
        ]
        runs += rows
        n_classes = supervisors[cfg.seeds[0]].test.n_classes
        summary.append(_summary_row(student, rows, outcomes, same_items, n_classes))
    controls = [
        _control_row(s, _read_test(name, data[s], folders))
        for s in cfg.seeds
        for name in folders
        if name.startswith(f"control/{s}/")
    ]
    return {"runs": runs, "summary": summary, "controls": controls, "gold": gold_uses(jobs)}


def gold_uses(jobs: JobPlan) -> list[dict[str, str]]:
    """Return every use of true transfer labels by a job that a student depends on."""
    by_name = {job.name: job for job in jobs.jobs}
    uses: dict[str, dict[str, str]] = {}
    for (_, student), entry in jobs.entries.items():
        pending = [entry.student]
        while pending:
            job = by_name[pending.pop()]
            pending += job.needs
            for use in job.gold:
                uses[f"{student} {use}"] = {"name": student, "use": use}
    return list(uses.values())


def _read_supervisor(seed: int, data: TaskData, folders: Mapping[str, Path]) -> _Supervisor:
    return _Supervisor(
        test=_read_test(f"weak/{seed}", data, folders),
        labels=task_kind(data.kind).read(folders[f"labels/{seed}"] / LABELS, data.transfer, data),
        groups=np.unique(np.array(data.test.groups), return_inverse=True)[1],
    )


def _read_trained(entry: Entry, data: TaskData, folders: Mapping[str, Path]) -> _Trained:
    return _Trained(
        _read_test(entry.student, data, folders),
        _read_test(entry.ceiling, data, folders),
        entry.ceiling.partition("/")[2].partition("/")[2],
    )


def _read_test(job: str, data: TaskData, folders: Mapping[str, Path]) -> Predictions:
    return task_kind(data.kind).read(folders[job] / TEST, data.test, data)


def _outcomes(weak: _Supervisor, trained: _Trained) -> metrics.Outcomes:
    return metrics.Outcomes(
        weak.test.right, trained.student.right, trained.ceiling.right, weak.groups
    )


def _run_row(
    seed: int, student: Student, weak: _Supervisor, trained: _Trained, outcomes: metrics.Outcomes
) -> dict[str, Any]:
    """Return the entry of ``runs`` for one seed and student."""
    models = {"weak": weak.test, "student": trained.student, "ceiling": trained.ceiling}
    accuracy = {model: predictions.accuracy for model, predictions in models.items()}
    floor, ceiling = accuracy["weak"], accuracy["ceiling"]
    se, n_test = metrics.paired_gap_se(outcomes), len(weak.groups)
    reason = metrics.omission_reason(
        floor, ceiling, se, n_items=n_test, n_classes=weak.test.n_classes
    )
    low, high = (None, None) if reason else metrics.pgr_interval([outcomes], same_items=True)
    return {
        "seed": seed,
        "name": student.name,
        "method": student.method,
        "loss": student.loss,
        "ceiling_name": trained.ceiling_name,
        **accuracy,
        "pgr": None if reason else metrics.pgr(floor, accuracy["student"], ceiling),
        "pgr_low": low,
        "pgr_high": high,
        "refused": reason,
        "gap": ceiling - floor,
        "gap_se": se if np.isfinite(se) else None,
        "n_test": n_test,
        **{f"{model}_{k}": v for model, p in models.items() for k, v in p.scores().items()},
        "weak_label_accuracy": weak.labels.accuracy,
        "agreement": asdict(
            metrics.agreement(trained.student.chosen, weak.test.chosen, weak.test.gold)
        ),
    }


def _summary_row(
    student: Student,
    rows: list[dict[str, Any]],
    outcomes: list[metrics.Outcomes],
    same_items: bool,
    n_classes: int,
) -> dict[str, Any]:
    """Return the entry of ``summary`` for a student: means over its seeds.

    The mean PGR is over the seeds that report one; it is omitted when the pooled gap is too small.
    """
    gaps = [metrics.Gap(r["weak"], r["ceiling"], r["gap_se"], r["refused"]) for r in rows]
    reason = metrics.omission_reason_over_seeds(
        gaps, n_items=rows[0]["n_test"], n_classes=n_classes
    )
    reported = [(r["pgr"], o) for r, o in zip(rows, outcomes, strict=True) if r["pgr"] is not None]
    if reason:
        reported = []
    low, high = (None, None)
    if reported:
        low, high = metrics.pgr_interval([o for _, o in reported], same_items=same_items)
    means = [*MODELS, *(f"{m}_{k}" for m in MODELS for k in SCORE_NAMES)]
    return {
        "name": student.name,
        "method": student.method,
        "loss": student.loss,
        "ceiling_name": rows[0]["ceiling_name"],
        "pgr_mean": float(np.mean([pgr for pgr, _ in reported])) if reported else None,
        "pgr_low": low,
        "pgr_high": high,
        "level": metrics.LEVEL,
        "seeds": len(reported),
        "refused_seeds": [r["seed"] for r in rows if r["pgr"] is None],
        "refused": reason,
        **{name: _mean(r[name] for r in rows) for name in means},
        "student_sd": float(np.std([r["student"] for r in rows], ddof=1)) if rows[1:] else None,
        "agreement": {
            part: _mean(r["agreement"][part] for r in rows)
            for part in ("all", "weak_right", "weak_wrong")
        },
    }


def _control_row(seed: int, test: Predictions) -> dict[str, Any]:
    return {"seed": seed, "accuracy": test.accuracy, "auroc": test.scores()["auroc"]}


def _mean(values: Iterable[float | None]) -> float | None:
    """Return the mean of the values that are not None."""
    defined = [v for v in values if v is not None]
    return float(np.mean(defined)) if defined else None
