"""Stage `report`: compute scores, PGR and intervals from the stored predictions of all runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from w2s_fast.config import RunConfig, run_seeds
from w2s_fast.files import write_json
from w2s_fast.pipeline import artifacts, statistics
from w2s_fast.pipeline.artifacts import LABELS, OOD, TEST
from w2s_fast.pipeline.bases import finished_bases
from w2s_fast.pipeline.context import Context
from w2s_fast.pipeline.jobs import Entry, JobPlan, Supervisor, plan_jobs
from w2s_fast.pipeline.predictions import Predictions, calibrations
from w2s_fast.pipeline.run_rows import (
    ScoredRun,
    difference_rows,
    right_by_model,
    run_row,
    runs_by_base,
    summary_row,
)
from w2s_fast.pipeline.stages.deception_rows import Compared, deception_row
from w2s_fast.pipeline.stages.diagnostics import (
    WeakLabels,
    fit_row,
    read_weak_labels,
    trust_rows,
    weak_label_rows,
)
from w2s_fast.pipeline.stages.label_reports import label_reports
from w2s_fast.pipeline.stages.merge_rows import merge_rows
from w2s_fast.pipeline.stages.page_items import page_items
from w2s_fast.pipeline.stages.supervisor_card import read_card
from w2s_fast.pipeline.stages.supervisor_rows import supervisor_row
from w2s_fast.pipeline.stages.training_curves import training_row
from w2s_fast.pipeline.students import Student, no_conflict_of, students
from w2s_fast.pipeline.task_kinds import task_kind
from w2s_fast.report.items import load_items, write_items
from w2s_fast.report.model_rows import ceiling_title
from w2s_fast.report.outcomes import Outcomes, group_numbers, read_outcomes, write_outcomes
from w2s_fast.store import StageBuild
from w2s_fast.tasks import TaskData


@dataclass(frozen=True)
class _Supervisor:
    """The weak model of one seed.

    Attributes:
        test: Its predictions of the test items.
        labels: Its labels of the transfer set.
        diagnosed: What diagnostics know about these labels.
        groups: (N,) int64, the group of each test item, of one number at all seeds.
    """

    test: Predictions
    labels: Predictions
    diagnosed: WeakLabels
    groups: np.ndarray


@dataclass(frozen=True)
class _Trained:
    """Test predictions of a student of one seed and of its ceiling.

    Attributes:
        student: Predictions of the student.
        ceiling: Predictions of the ceiling.
        ceiling_name: Student that the ceiling belongs to; empty for the plain ceiling.
        folder: Folder of the student's stage.
    """

    student: Predictions
    ceiling: Predictions
    ceiling_name: str
    folder: Path


def report(ctx: Context, build: StageBuild) -> None:
    """Write the scores of all runs."""
    data = {s: ctx.read(s) for s in run_seeds(ctx.cfg)}
    scores = score(ctx.cfg, data, ctx.folders)
    items, outcomes = scores.pop("items"), scores.pop("outcomes")
    ctx.write(lambda: write_json(build.path / artifacts.REPORT, scores))
    ctx.write(lambda: write_items(build.path, items))
    ctx.write(lambda: write_outcomes(build.path, outcomes))


@dataclass(frozen=True)
class Report:
    """What a finished stage has.

    Attributes:
        scores: results.json without ``failed`` and ``provenance``.
        items: The content of items.json, or None.
        outcomes: Which test items every model has right, by seed.
    """

    scores: dict[str, Any]
    items: dict[str, Any] | None
    outcomes: dict[int, Outcomes]

    def write_parts(self, out: Path) -> None:
        """Write items.json and outcomes.parquet."""
        write_items(out, self.items)
        write_outcomes(out, self.outcomes)


def read_report(folder: Path) -> Report:
    """Return what a finished stage has."""
    scores = json.loads((folder / artifacts.REPORT).read_bytes())
    return Report(scores, load_items(folder), read_outcomes(folder) or {})


def score(
    cfg: RunConfig, data: Mapping[int, TaskData], folders: Mapping[str, Path]
) -> dict[str, Any]:
    """Return everything in results.json but ``provenance`` and ``failed``, ``items``, ``outcomes``.

    Items are the content of items.json, or None; outcomes are those of ``write_outcomes``.

    Args:
        cfg: The run.
        data: Splits by seed.
        folders: Folder of every finished job, by name; a base with a missing job is left out.
    """
    jobs = plan_jobs(cfg)
    bases = finished_bases(cfg, jobs, folders)
    supervisors = _read_supervisors(bases, jobs, data, folders)
    groups = {s: own.groups for s, own in supervisors.items()}
    rows: list[dict[str, Any]] = []
    summary, everyone = [], {}
    for student in students(cfg):
        entries = {s: jobs.entries[s, student.name] for s in supervisors}
        trained = {s: _read_trained(e, data[s], folders) for s, e in entries.items()}
        scored = {s: _scored_run(supervisors[s], t) for s, t in trained.items()}
        own = [_run_row(s, student, supervisors[s], trained[s], run) for s, run in scored.items()]
        own = [{**row, "base": name} for row, name in zip(own, _name_of_run(bases), strict=True)]
        right = {s: run.right for s, run in scored.items()}
        models = runs_by_base(bases, groups, right)
        summary.append(
            summary_row(_names(student), own, models, scored[own[0]["seed"]].weak.n_classes)
            | {
                "rounding_sd": _rounding_sd(entries, trained, data, folders),
                "calibration": calibrations(
                    {
                        "weak": [supervisors[s].test for s in trained],
                        "student": [own.student for own in trained.values()],
                        "ceiling": [own.ceiling for own in trained.values()],
                    }
                ),
            }
        )
        rows += own
        everyone[student.name] = trained
    by_student = {
        name: {s: t.student.right for s, t in own.items()} for name, own in everyone.items()
    }
    controls = [
        _control_row(s, _read_test(name, data[s], folders))
        for s in supervisors
        for name in folders
        if name.startswith(f"control/{s}/")
    ]
    return {
        "design": statistics.design(models) | {"base_names": list(bases)},
        "differences": difference_rows(
            bases, groups, by_student, {s.name: (s.method, s.loss) for s in students(cfg)}
        ),
        "runs": rows,
        "summary": summary,
        "weak_labels": weak_label_rows({s: w.diagnosed for s, w in supervisors.items()}),
        "trust": trust_rows(jobs, folders, supervisors),
        "supervisors": _supervisor_rows(supervisors, jobs, data, folders),
        "text_labels": label_reports(jobs, folders, data),
        "deception": _deception(cfg, bases, supervisors, everyone),
        "supervisor_cards": [
            {"seed": s, **read_card(folders[f"supervisor_card/{s}"])} for s in supervisors
        ],
        "training": [
            row
            for name, runs in everyone.items()
            for s, own in runs.items()
            if (row := training_row(s, name, own.folder)) is not None
        ],
        "merged": [
            row
            for name, runs in everyone.items()
            for s, own in runs.items()
            for row in merge_rows(s, name, own.folder, _classes(own.student))
        ],
        "items": _items(cfg, supervisors, everyone, data),
        "outcomes": _outcomes(supervisors, everyone, data),
        "controls": controls,
        "gold": gold_uses(jobs),
    }


def _items(
    cfg: RunConfig,
    supervisors: Mapping[int, _Supervisor],
    trained: Mapping[str, Mapping[int, _Trained]],
    data: Mapping[int, TaskData],
) -> dict[str, Any] | None:
    """Return the content of items.json: the test items of the first seed; None if unwanted."""
    if not cfg.page.items:
        return None
    seed = next(iter(supervisors))
    models = [("weak supervisor", "weak", supervisors[seed].test)]
    models += [(name, "student", own[seed].student) for name, own in trained.items()]
    ceiling = {own[seed].ceiling_name: own[seed].ceiling for own in trained.values()}
    plain_last = sorted(ceiling, reverse=True)
    models += [(ceiling_title(name), "ceiling", ceiling[name]) for name in plain_last]
    return page_items(cfg.page, seed, data[seed], models)


def _outcomes(
    supervisors: Mapping[int, _Supervisor],
    trained: Mapping[str, Mapping[int, _Trained]],
    data: Mapping[int, TaskData],
) -> dict[int, Outcomes]:
    """Return which test items the models have right, by seed."""
    return {
        seed: Outcomes(
            data[seed].test.ids,
            data[seed].test.groups,
            right_by_model({n: _scored_run(weak, runs[seed]) for n, runs in trained.items()}),
        )
        for seed, weak in supervisors.items()
    }


def _deception(
    cfg: RunConfig,
    bases: Mapping[str, Sequence[int]],
    supervisors: Mapping[int, _Supervisor],
    trained: Mapping[str, Mapping[int, _Trained]],
) -> list[dict[str, Any]]:
    """Return the deception of every student under a conflict; none in other runs."""

    def compared(name: str, plain: str, seed: int) -> Compared:
        weak, own = supervisors[seed], trained[name][seed]
        plain_own = trained[plain][seed].student
        return Compared(
            weak=_probs(weak.test),
            ceiling=_probs(own.ceiling),
            no_conflict=_probs(plain_own),
            conflict=_probs(own.student),
            gold=weak.test.gold,
            groups=weak.groups,
        )

    return [
        deception_row(
            name, plain, [[(s, compared(name, plain, s)) for s in own] for own in bases.values()]
        )
        for name, plain in no_conflict_of(cfg).items()
    ]


def _classes(predictions: Predictions) -> np.ndarray | None:
    """Return the true classes of test items; None for generation tasks."""
    return None if predictions.probs is None else predictions.gold


def _probs(predictions: Predictions) -> np.ndarray:
    assert predictions.probs is not None  # conflicts are methods of tasks with classes
    return predictions.probs


def _supervisor_rows(
    supervisors: Mapping[int, _Supervisor],
    jobs: JobPlan,
    data: Mapping[int, TaskData],
    folders: Mapping[str, Path],
) -> list[dict[str, Any]]:
    """Return the scores of many supervisors by seed; none where the weak model labels alone."""
    rows = (
        supervisor_row(seed, jobs, folders, data[seed], own.labels, own.test)
        for seed, own in supervisors.items()
    )
    return [row for row in rows if row is not None]


def _name_of_run(bases: Mapping[str, Sequence[int]]) -> list[str]:
    """Return the base of every run, in order."""
    return [name for name, seeds in bases.items() for _ in seeds]


def _rounding_sd(
    entries: Mapping[int, Entry],
    trained: Mapping[int, _Trained],
    data: Mapping[int, TaskData],
    folders: Mapping[str, Path],
) -> float | None:
    """Return the standard deviation of the student's accuracy over last bits, pooled over runs."""
    if not any(entry.replicates for entry in entries.values()):
        return None
    variances = [
        np.var(
            [
                trained[s].student.accuracy,
                *(_read_test(name, data[s], folders).accuracy for name in entry.replicates),
            ],
            ddof=1,
        )
        for s, entry in entries.items()
    ]
    return float(np.sqrt(np.mean(variances)))


def gold_uses(jobs: JobPlan) -> list[dict[str, str]]:
    """Return every named use of true labels by a job that a student depends on."""
    by_name = {job.name: job for job in jobs.jobs}
    uses: dict[str, dict[str, str]] = {}
    for (_, student), entry in jobs.entries.items():
        pending = [entry.student]
        while pending:
            job = by_name[pending.pop()]
            pending += job.needs
            for use in (*job.gold, *job.weak_gold):
                uses[f"{student} {use}"] = {"name": student, "use": use}
    return list(uses.values())


def _read_supervisors(
    bases: Mapping[str, Sequence[int]],
    jobs: JobPlan,
    data: Mapping[int, TaskData],
    folders: Mapping[str, Path],
) -> dict[int, _Supervisor]:
    """Return the supervisors by seed."""
    seeds = [s for own in bases.values() for s in own]
    groups = group_numbers({s: data[s].test.groups for s in seeds})
    supervisors = {}
    for seed in seeds:
        one = data[seed]
        path = folders[jobs.supervisors[seed].labels] / LABELS
        labels = task_kind(one.kind).read(path, one.transfer, one)
        supervisors[seed] = _Supervisor(
            test=_read_weak_test(jobs.supervisors[seed], one, folders),
            labels=labels,
            diagnosed=read_weak_labels(seed, jobs, folders, labels, one.transfer.ids),
            groups=groups[seed],
        )
    return supervisors


def _read_trained(entry: Entry, data: TaskData, folders: Mapping[str, Path]) -> _Trained:
    return _Trained(
        _read_test(entry.student, data, folders),
        _read_test(entry.ceiling, data, folders),
        entry.ceiling.partition("/")[2].partition("/")[2],
        folders[entry.student],
    )


def _read_weak_test(jobs: Supervisor, data: TaskData, folders: Mapping[str, Path]) -> Predictions:
    """Return the predictions of the weak model, or of many supervisors."""
    if jobs.test == jobs.ood:
        return _read_test(jobs.test, data, folders)
    kind = task_kind(data.kind)
    test = kind.read(folders[jobs.test] / LABELS, data.test, data)
    if jobs.ood is None or data.ood is None:
        return test
    return replace(test, ood=kind.read(folders[jobs.ood] / LABELS, data.ood, data))


def _read_test(job: str, data: TaskData, folders: Mapping[str, Path]) -> Predictions:
    kind = task_kind(data.kind)
    test = kind.read(folders[job] / TEST, data.test, data)
    if data.ood is None:
        return test
    return replace(test, ood=kind.read(folders[job] / OOD, data.ood, data))


def _names(student: Student) -> dict[str, str]:
    return {"name": student.name, "method": student.method, "loss": student.loss}


def _scored_run(weak: _Supervisor, trained: _Trained) -> ScoredRun:
    return ScoredRun(weak.test, trained.student, trained.ceiling, weak.groups, trained.ceiling_name)


def _run_row(
    seed: int, student: Student, weak: _Supervisor, trained: _Trained, run: ScoredRun
) -> dict[str, Any]:
    """Return the entry of ``runs`` for one seed and student."""
    fit = fit_row(trained.folder, weak.diagnosed)
    return {**run_row(seed, _names(student), run, weak.labels.accuracy), "fit": fit}


def _control_row(seed: int, test: Predictions) -> dict[str, Any]:
    return {"seed": seed, "accuracy": test.accuracy, "auroc": test.scores()["auroc"]}
