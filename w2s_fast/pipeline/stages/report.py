"""Stage `report`: from the stored predictions of every run to scores, PGR and intervals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from w2s_fast import metrics
from w2s_fast.config import RunConfig
from w2s_fast.pipeline import artifacts
from w2s_fast.pipeline.artifacts import LABELS, TEST
from w2s_fast.pipeline.context import Context, load_data
from w2s_fast.pipeline.jobs import Entry, Jobs, plan
from w2s_fast.pipeline.predictions import SCORE_NAMES, Predictions
from w2s_fast.pipeline.students import Student, students
from w2s_fast.pipeline.task_kinds import task_kind
from w2s_fast.store import Building, write_json
from w2s_fast.tasks import TaskData

MODELS = ("weak", "student", "ceiling")


@dataclass(frozen=True)
class _Seed:
    """What the supervisor of one seed said of the test items and, as ``labels``, of D2."""

    weak: Predictions
    labels: Predictions
    groups: np.ndarray


@dataclass(frozen=True)
class _Trained:
    """A student of one seed and its ceiling, on the test items."""

    student: Predictions
    ceiling: Predictions
    ceiling_name: str  # the student whose ceiling it is; empty: the plain one


def report(ctx: Context, build: Building) -> None:
    """Score every run's predictions."""
    data = {s: load_data(ctx.cfg.task, s) for s in ctx.cfg.seeds}
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
    jobs = plan(cfg)
    seeds = {s: _load(s, data[s], folders) for s in cfg.seeds}
    same_items = len({data[s].test.ids for s in cfg.seeds}) == 1
    runs, summary = [], []
    for student in students(cfg):
        found = {s: _trained(jobs.entries[s, student.name], data[s], folders) for s in cfg.seeds}
        rows = [_run(s, student, seeds[s], found[s]) for s in cfg.seeds]
        runs += rows
        accepted = [
            _outcomes(seeds[s], found[s])
            for s, row in zip(cfg.seeds, rows, strict=True)
            if row["pgr"] is not None
        ]
        gaps = [metrics.Gap(r["weak"], r["ceiling"], r["gap_se"], r["refused"]) for r in rows]
        why = metrics.refusal_over_seeds(
            gaps, n_items=rows[0]["n_test"], n_classes=seeds[cfg.seeds[0]].weak.n_classes
        )
        summary.append(_summary(student, rows, [] if why else accepted, same_items, why))
    controls = [
        _control(s, _test(name, data[s], folders))
        for s in cfg.seeds
        for name in folders
        if name.startswith(f"control/{s}/")
    ]
    return {"runs": runs, "summary": summary, "controls": controls, "gold": gold_uses(jobs)}


def gold_uses(jobs: Jobs) -> list[dict[str, str]]:
    """Every use of true labels of the transfer set on the way to a student, in words."""
    by_name = {job.name: job for job in jobs.order}
    uses: dict[str, dict[str, str]] = {}
    for (_, student), entry in jobs.entries.items():
        waiting = [entry.student]
        while waiting:
            job = by_name[waiting.pop()]
            waiting += job.needs
            for use in job.gold:
                uses[f"{student} {use}"] = {"name": student, "use": use}
    return list(uses.values())


def _load(seed: int, data: TaskData, folders: Mapping[str, Path]) -> _Seed:
    return _Seed(
        weak=_test(f"weak/{seed}", data, folders),
        labels=task_kind(data.kind).read(folders[f"labels/{seed}"] / LABELS, data.transfer, data),
        groups=np.unique(np.array(data.test.groups), return_inverse=True)[1],
    )


def _trained(entry: Entry, data: TaskData, folders: Mapping[str, Path]) -> _Trained:
    return _Trained(
        _test(entry.student, data, folders),
        _test(entry.ceiling, data, folders),
        entry.ceiling.partition("/")[2].partition("/")[2],
    )


def _test(name: str, data: TaskData, folders: Mapping[str, Path]) -> Predictions:
    return task_kind(data.kind).read(folders[name] / TEST, data.test, data)


def _outcomes(seed: _Seed, found: _Trained) -> metrics.Outcomes:
    return metrics.Outcomes(seed.weak.right, found.student.right, found.ceiling.right, seed.groups)


def _run(number: int, who: Student, seed: _Seed, found: _Trained) -> dict[str, Any]:
    """Return one entry of ``runs``: a seed and a student."""
    outcomes = _outcomes(seed, found)
    said = {"weak": seed.weak, "student": found.student, "ceiling": found.ceiling}
    floor, reached, ceiling = (said[m].accuracy for m in MODELS)
    se, n_test = metrics.paired_gap_se(outcomes), len(seed.groups)
    why = metrics.refusal(floor, ceiling, se, n_items=n_test, n_classes=seed.weak.n_classes)
    low, high = (None, None) if why else metrics.pgr_interval([outcomes], same_items=True)
    return {
        "seed": number,
        "name": who.name,
        "method": who.method,
        "loss": who.loss,
        "ceiling_name": found.ceiling_name,
        "weak": floor,
        "student": reached,
        "ceiling": ceiling,
        "pgr": None if why else metrics.pgr(floor, reached, ceiling),
        "pgr_low": low,
        "pgr_high": high,
        "refused": why,
        "gap": ceiling - floor,
        "gap_se": se if np.isfinite(se) else None,
        "n_test": n_test,
        **{f"{m}_{k}": v for m in MODELS for k, v in said[m].scores().items()},
        "weak_label_accuracy": seed.labels.accuracy,
        "agreement": asdict(
            metrics.agreement(found.student.chosen, seed.weak.chosen, seed.weak.gold)
        ),
    }


def _summary(
    who: Student,
    rows: list[dict[str, Any]],
    accepted: list[metrics.Outcomes],
    same_items: bool,
    why: str | None,
) -> dict[str, Any]:
    """Return one entry of ``summary``: a student over its seeds; the PGR over those not refused."""
    pgrs = [] if why else [r["pgr"] for r in rows if r["pgr"] is not None]
    refused = [r["seed"] for r in rows if r["pgr"] is None]
    low, high = (None, None)
    if accepted:
        low, high = metrics.pgr_interval(accepted, same_items=same_items)
    means = [*MODELS, *(f"{m}_{k}" for m in MODELS for k in SCORE_NAMES)]
    return {
        "name": who.name,
        "method": who.method,
        "loss": who.loss,
        "ceiling_name": rows[0]["ceiling_name"],
        "pgr_mean": float(np.mean(pgrs)) if pgrs else None,
        "pgr_low": low,
        "pgr_high": high,
        "level": metrics.LEVEL,
        "seeds": len(pgrs),
        "refused_seeds": refused,
        "refused": why,
        **{name: _mean(r[name] for r in rows) for name in means},
        "student_sd": float(np.std([r["student"] for r in rows], ddof=1)) if rows[1:] else None,
        "agreement": {
            part: _mean(r["agreement"][part] for r in rows)
            for part in ("all", "weak_right", "weak_wrong")
        },
    }


def _control(number: int, said: Predictions) -> dict[str, Any]:
    return {"seed": number, "accuracy": said.accuracy, "auroc": said.scores()["auroc"]}


def _mean(values: Any) -> float | None:
    """Return the mean of the values that are not None."""
    kept = [v for v in values if v is not None]
    return float(np.mean(kept)) if kept else None
