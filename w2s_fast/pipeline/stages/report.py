"""Stage `report`: compute scores, PGR and intervals from the stored predictions of all runs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from w2s_fast import metrics
from w2s_fast.config import RunConfig, run_seeds
from w2s_fast.files import write_json
from w2s_fast.pipeline import artifacts, statistics
from w2s_fast.pipeline.artifacts import LABELS, OOD, TEST
from w2s_fast.pipeline.bases import finished_bases
from w2s_fast.pipeline.context import Context
from w2s_fast.pipeline.jobs import Entry, JobPlan, Supervisor, plan_jobs
from w2s_fast.pipeline.predictions import SCORE_NAMES, Predictions, calibrations
from w2s_fast.pipeline.stages.deception_rows import Compared, deception_row
from w2s_fast.pipeline.stages.diagnostics import (
    WeakLabels,
    fit_row,
    gain_row,
    misfit_row,
    read_weak_labels,
    trust_rows,
    weak_label_rows,
)
from w2s_fast.pipeline.stages.label_reports import label_reports
from w2s_fast.pipeline.stages.page_items import page_items
from w2s_fast.pipeline.stages.supervisor_card import read_card
from w2s_fast.pipeline.stages.supervisor_rows import supervisor_row
from w2s_fast.pipeline.stages.training_curves import training_row
from w2s_fast.pipeline.students import Student, no_conflict_of, students
from w2s_fast.pipeline.task_kinds import task_kind
from w2s_fast.report.items import load_items, write_items
from w2s_fast.report.model_rows import ceiling_title
from w2s_fast.store import StageBuild
from w2s_fast.tasks import TaskData

MODELS = ("weak", "student", "ceiling")


@dataclass(frozen=True)
class _Supervisor:
    """The weak model of one seed.

    Attributes:
        test: Its predictions of the test items.
        labels: Its labels of the transfer set.
        diagnosed: What diagnostics know about these labels.
        groups: (N,) int64, the group of each test item.
    """

    test: Predictions
    labels: Predictions
    diagnosed: WeakLabels
    groups: np.ndarray

    @property
    def n_classes(self) -> int:
        """C, or 0 for generation tasks."""
        return self.test.n_classes


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
    items = scores.pop("items")
    ctx.write(lambda: write_json(build.path / artifacts.REPORT, scores))
    ctx.write(lambda: write_items(build.path, items))


def read_report(folder: Path) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Return the scores of a finished stage, and its test items, None if it has none."""
    return json.loads((folder / artifacts.REPORT).read_bytes()), load_items(folder)


def score(
    cfg: RunConfig, data: Mapping[int, TaskData], folders: Mapping[str, Path]
) -> dict[str, Any]:
    """Return everything in results.json but ``provenance`` and ``failed``, and ``items``.

    Items are the content of items.json, or None.

    Args:
        cfg: The run.
        data: Splits by seed.
        folders: Folder of every finished job, by name; a base with a missing job is left out.
    """
    jobs = plan_jobs(cfg)
    bases = finished_bases(cfg, jobs, folders)
    supervisors = _read_supervisors(bases, jobs, data, folders)
    rows: list[dict[str, Any]] = []
    summary, everyone = [], {}
    for student in students(cfg):
        entries = {s: jobs.entries[s, student.name] for s in supervisors}
        trained = {s: _read_trained(e, data[s], folders) for s, e in entries.items()}
        own = [_run_row(s, student, supervisors[s], trained[s]) for s in supervisors]
        own = [{**row, "base": name} for row, name in zip(own, _name_of_run(bases), strict=True)]
        models = _runs(bases, supervisors, {s: _right(supervisors[s], trained[s]) for s in trained})
        n_classes = next(iter(supervisors.values())).n_classes
        summary.append(
            _summary_row(student, own, models, n_classes)
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
    right = {name: {s: t.student.right for s, t in own.items()} for name, own in everyone.items()}
    controls = [
        _control_row(s, _read_test(name, data[s], folders))
        for s in supervisors
        for name in folders
        if name.startswith(f"control/{s}/")
    ]
    return {
        "design": statistics.design(models) | {"base_names": list(bases)},
        "differences": _differences(students(cfg), bases, supervisors, right),
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
            training_row(s, name, own.folder)
            for name, runs in everyone.items()
            for s, own in runs.items()
        ],
        "items": _items(cfg, supervisors, everyone, data),
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


def _deception(
    cfg: RunConfig,
    bases: Mapping[str, Sequence[int]],
    supervisors: Mapping[int, _Supervisor],
    trained: Mapping[str, Mapping[int, _Trained]],
) -> list[dict[str, Any]]:
    """Return the deception of every student under a conflict; none in other runs."""

    def compared(name: str, plain: str, seed: int) -> Compared:
        weak, own = supervisors[seed], trained[name][seed]
        return Compared(
            weak=_probs(weak.test),
            ceiling=_probs(own.ceiling),
            no_conflict=_probs(trained[plain][seed].student),
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


def _runs(
    bases: Mapping[str, Sequence[int]],
    supervisors: Mapping[int, _Supervisor],
    right: Mapping[int, np.ndarray],
) -> metrics.Runs:
    """Return the runs of all bases; ``right`` has (K, N) bool by seed."""
    return metrics.runs_of(
        [[right[s] for s in seeds] for seeds in bases.values()],
        [[supervisors[s].groups for s in seeds] for seeds in bases.values()],
    )


def _differences(
    compared: Sequence[Student],
    bases: Mapping[str, Sequence[int]],
    supervisors: Mapping[int, _Supervisor],
    right: Mapping[str, Mapping[int, np.ndarray]],
) -> list[dict[str, Any]]:
    """Return the paired differences of all students to the baseline."""
    baseline = statistics.baseline_name({s.name: (s.method, s.loss) for s in compared})
    differences = {}
    for name, own in right.items():
        if name != baseline:
            pairs = {s: np.stack([own[s], right[baseline][s]]) for s in own}
            over_runs = metrics.paired_difference(_runs(bases, supervisors, pairs))
            differences[name] = (
                over_runs if len(pairs) > 1 else _single(over_runs, supervisors, pairs)
            )
    return statistics.difference_rows(differences, baseline)


def _single(
    difference: metrics.Difference,
    supervisors: Mapping[int, _Supervisor],
    pairs: Mapping[int, np.ndarray],
) -> metrics.Difference:
    """Return the difference of a single run with the interval over its test items."""
    ((seed, (first, second)),) = pairs.items()
    low, high = metrics.difference_item_interval(first, second, supervisors[seed].groups)
    return replace(difference, low=low, high=high)


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
    """Return the supervisors by seed; seeds with the same test items share their groups."""
    groups: dict[tuple[str, ...], np.ndarray] = {}
    supervisors = {}
    for seed in (s for seeds in bases.values() for s in seeds):
        one = data[seed]
        path = folders[jobs.supervisors[seed].labels] / LABELS
        labels = task_kind(one.kind).read(path, one.transfer, one)
        supervisors[seed] = _Supervisor(
            test=_read_weak_test(jobs.supervisors[seed], one, folders),
            labels=labels,
            diagnosed=read_weak_labels(seed, jobs, folders, labels, one.transfer.ids),
            groups=groups.setdefault(
                tuple(one.test.ids), np.unique(np.array(one.test.groups), return_inverse=True)[1]
            ),
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


def _right(weak: _Supervisor, trained: _Trained) -> np.ndarray:
    """Return (3, N) bool: whether weak model, student and ceiling are right."""
    return np.stack([weak.test.right, trained.student.right, trained.ceiling.right])


def _run_row(seed: int, student: Student, weak: _Supervisor, trained: _Trained) -> dict[str, Any]:
    """Return the entry of ``runs`` for one seed and student."""
    right = _right(weak, trained)
    outcomes = metrics.Outcomes(right[0], right[1], right[2], weak.groups)
    models = {"weak": weak.test, "student": trained.student, "ceiling": trained.ceiling}
    accuracy = {model: predictions.accuracy for model, predictions in models.items()}
    floor, ceiling = accuracy["weak"], accuracy["ceiling"]
    se, n_test = metrics.paired_gap_se(outcomes), len(weak.groups)
    reason = metrics.omission_reason(
        floor, ceiling, se, n_items=n_test, n_classes=weak.test.n_classes
    )
    low, high = (None, None) if reason else metrics.pgr_item_interval(outcomes)
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
        "misfit": misfit_row(trained.student, weak.test),
        "gain": gain_row(trained.student, weak.test),
        "fit": fit_row(trained.folder, weak.diagnosed),
    }


def _summary_row(
    student: Student, rows: list[dict[str, Any]], runs: metrics.Runs, n_classes: int
) -> dict[str, Any]:
    """Return the entry of ``summary`` for a student: means over all of its runs."""
    if len(rows) == 1:
        pgr = statistics.pgr_of_one_run(rows[0])
    else:
        pgr = statistics.pgr_over_runs(runs, n_items=rows[0]["n_test"], n_classes=n_classes)
    means = [*MODELS, *(f"{m}_{k}" for m in MODELS for k in SCORE_NAMES)]
    return {
        "name": student.name,
        "method": student.method,
        "loss": student.loss,
        "ceiling_name": rows[0]["ceiling_name"],
        **pgr,
        "level": metrics.LEVEL,
        "seeds": len(rows),
        "refused_seeds": [r["seed"] for r in rows if r["pgr"] is None],
        **{name: _mean(r[name] for r in rows) for name in means},
        "student_sd": float(np.std([r["student"] for r in rows], ddof=1)) if rows[1:] else None,
        "agreement": {
            part: _mean(r["agreement"][part] for r in rows)
            for part in ("all", "weak_right", "weak_wrong")
        },
        **{
            name: {key: _mean(r[name][key] for r in rows) for key in rows[0][name]}
            for name in ("misfit", "gain")
        },
    }


def _control_row(seed: int, test: Predictions) -> dict[str, Any]:
    return {"seed": seed, "accuracy": test.accuracy, "auroc": test.scores()["auroc"]}


def _mean(values: Iterable[float | None]) -> float | None:
    """Return the mean of the values that are not None."""
    defined = [v for v in values if v is not None]
    return float(np.mean(defined)) if defined else None
