"""The rows of results.json that follow from test predictions alone, wherever these come from.

Runs of the pipeline and files of other people's predictions are scored by these functions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from w2s_fast import metrics
from w2s_fast.pipeline import statistics
from w2s_fast.pipeline.predictions import SCORE_NAMES, Predictions
from w2s_fast.report.outcomes import WEAK, ceiling_model, student_model

MODELS = ("weak", "student", "ceiling")


@dataclass(frozen=True, eq=False)
class ScoredRun:
    """Test predictions of one student at one seed, beside those of its weak model and ceiling.

    Attributes:
        weak: Predictions of the weak model.
        student: Predictions of the student.
        ceiling: Predictions of the ceiling.
        groups: (N,) int64, the group of each test item.
        ceiling_name: Student that the ceiling belongs to; empty for the plain ceiling.
    """

    weak: Predictions
    student: Predictions
    ceiling: Predictions
    groups: np.ndarray
    ceiling_name: str

    @property
    def right(self) -> np.ndarray:
        """(3, N) bool: whether weak model, student and ceiling are right."""
        return np.stack([self.weak.right, self.student.right, self.ceiling.right])


def run_row(
    seed: int, names: Mapping[str, str], run: ScoredRun, weak_label_accuracy: float | None
) -> dict[str, Any]:
    """Return the entry of ``runs`` for one seed and student.

    Args:
        seed: Seed of the run.
        names: ``name``, ``method`` and ``loss`` of the student.
        run: The predictions.
        weak_label_accuracy: Accuracy of the weak labels of the transfer set; None: not known.
    """
    right = run.right
    outcomes = metrics.Outcomes(right[0], right[1], right[2], run.groups)
    models = {"weak": run.weak, "student": run.student, "ceiling": run.ceiling}
    accuracy = {model: predictions.accuracy for model, predictions in models.items()}
    floor, ceiling = accuracy["weak"], accuracy["ceiling"]
    se, n_test = metrics.paired_gap_se(outcomes), len(run.groups)
    reason = metrics.omission_reason(
        floor, ceiling, se, n_items=n_test, n_classes=run.weak.n_classes
    )
    low, high = (None, None) if reason else metrics.pgr_item_interval(outcomes)
    return {
        "seed": seed,
        **names,
        "ceiling_name": run.ceiling_name,
        **accuracy,
        "pgr": None if reason else metrics.pgr(floor, accuracy["student"], ceiling),
        "pgr_low": low,
        "pgr_high": high,
        "refused": reason,
        "gap": ceiling - floor,
        "gap_se": se if np.isfinite(se) else None,
        "n_test": n_test,
        **{f"{model}_{k}": v for model, p in models.items() for k, v in p.scores().items()},
        "weak_label_accuracy": weak_label_accuracy,
        "agreement": asdict(metrics.agreement(run.student.chosen, run.weak.chosen, run.weak.gold)),
        "misfit": _misfit_row(run.student, run.weak),
        "gain": _gain_row(run.student, run.weak),
    }


def _misfit_row(student: Predictions, weak: Predictions) -> dict[str, float | None]:
    """Return the misfit on the test items; for generation tasks the disagreement alone."""
    if student.probs is None or weak.probs is None:
        fields = dict.fromkeys(metrics.Misfit.__dataclass_fields__)
        return {**fields, "disagreement": float((student.chosen != weak.chosen).mean())}
    return asdict(metrics.misfit(student.probs, weak.probs))


def _gain_row(student: Predictions, weak: Predictions) -> dict[str, float | None]:
    """Return the measured gain over the weak model in Brier score and NLL on the test items."""
    scores = {"brier": metrics.brier, "nll": metrics.nll}
    if student.probs is None or weak.probs is None:
        return dict.fromkeys(scores)
    return {
        name: score(weak.probs, weak.gold) - score(student.probs, weak.gold)
        for name, score in scores.items()
    }


def summary_row(
    names: Mapping[str, str], rows: Sequence[Mapping[str, Any]], runs: metrics.Runs, n_classes: int
) -> dict[str, Any]:
    """Return the entry of ``summary`` for a student: means over all of its runs.

    Args:
        names: ``name``, ``method`` and ``loss`` of the student.
        rows: Its ``run_row`` of every run.
        runs: Accuracies of (weak, student, ceiling) in these runs.
        n_classes: C, or 0 for generation tasks.
    """
    if len(rows) == 1:
        pgr = statistics.pgr_of_one_run(rows[0])
    else:
        pgr = statistics.pgr_over_runs(runs, n_items=rows[0]["n_test"], n_classes=n_classes)
    means = [*MODELS, *(f"{m}_{k}" for m in MODELS for k in SCORE_NAMES)]
    return {
        **names,
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


def right_by_model(runs: Mapping[str, ScoredRun]) -> dict[str, np.ndarray]:
    """Return (N,) bool by model, as ``Outcomes`` has them, given the runs of all students at one
    seed."""
    right: dict[str, np.ndarray] = {}
    for name, run in runs.items():
        right[WEAK] = run.weak.right
        right[student_model(name)] = run.student.right
        right[ceiling_model(run.ceiling_name)] = run.ceiling.right
    return right


def runs_by_base(
    bases: Mapping[str, Sequence[int]],
    groups: Mapping[int, np.ndarray],
    right: Mapping[int, np.ndarray],
) -> metrics.Runs:
    """Return the runs of all bases.

    Args:
        bases: Seeds of each base, by name.
        groups: (N,) int64 by seed; a group has one number at all seeds.
        right: (K, N) bool by seed, whether each of K models is right.
    """
    return metrics.runs_of(
        [[right[s] for s in seeds] for seeds in bases.values()],
        [[groups[s] for s in seeds] for seeds in bases.values()],
    )


def difference_rows(
    bases: Mapping[str, Sequence[int]],
    groups: Mapping[int, np.ndarray],
    right: Mapping[str, Mapping[int, np.ndarray]],
    specs: Mapping[str, tuple[str, str]],
    baseline: str | None = None,
) -> list[dict[str, Any]]:
    """Return ``differences`` of results.json: all students compared with the baseline.

    Args:
        bases, groups: As in ``runs_by_base``.
        right: (N,) bool by student and seed.
        specs: Method and loss of every student, by name.
        baseline: Name of the baseline; None: plain cross-entropy, else the first.
    """
    baseline = baseline or statistics.baseline_name(specs)
    differences = {
        name: paired_difference(
            bases, groups, {s: np.stack([own[s], right[baseline][s]]) for s in own}
        )
        for name, own in right.items()
        if name != baseline
    }
    return statistics.difference_rows(differences, baseline)


def paired_difference(
    bases: Mapping[str, Sequence[int]],
    groups: Mapping[int, np.ndarray],
    pairs: Mapping[int, np.ndarray],
) -> metrics.Difference:
    """Return the difference of two models over runs; of a single run, over its test items.

    Args:
        bases, groups: As in ``runs_by_base``.
        pairs: (2, N) bool by seed, whether the two models are right.
    """
    over_runs = metrics.paired_difference(runs_by_base(bases, groups, pairs))
    if len(pairs) > 1:
        return over_runs
    ((seed, (first, second)),) = pairs.items()
    low, high = metrics.difference_item_interval(first, second, groups[seed])
    return replace(over_runs, low=low, high=high)


def _mean(values: Iterable[float | None]) -> float | None:
    """Return the mean of the values that are not None."""
    defined = [v for v in values if v is not None]
    return float(np.mean(defined)) if defined else None
