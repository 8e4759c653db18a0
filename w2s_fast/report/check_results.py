"""Check that results.json has what table, plot and page show, before any of it is shown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from w2s_fast.report.check_page_parts import page_part_problems
from w2s_fast.report.deception_rows import AREAS
from w2s_fast.report.shapes import shape_problems

_SCORES = {f"{model}_{score}": float | None
           for model in ("weak", "student", "ceiling")
           for score in ("balanced", "f1", "auroc")}  # fmt: skip
# What only some tasks have; results of 0.2.0 have none of it.
_FURTHER_SCORES = {f"{model}_{score}": float | None
                   for model in ("weak", "student", "ceiling")
                   for score in ("worst_group", "ood", "ood_worst_group")}  # fmt: skip
_STUDENT = {
    "name": str, "ceiling_name": str, "refused": str | None,
    "weak": float, "student": float, "ceiling": float,
    "pgr_low": float | None, "pgr_high": float | None,
}  # fmt: skip

_PROVENANCE = {
    "utc": str,
    "config": {"task": {"name": str}, "seeds": [int]},
    "versions": {str: str | None, "w2s_fast": str},
    "machine": {"system": str, "cpu": str, "cores": int | None, "cuda": str | None},
    "git": dict | None,
    "backends": {str: str},
    "stages": {str: {"folder": str, "digest": str, "seconds": float | None, "reused": bool}},
}
_RESULTS = {
    "runs": [{**_STUDENT, "seed": int, "pgr": float | None, "gap": float, "gap_se": float | None,
              "n_test": int, "weak_label_accuracy": float | None}],
    "summary": [{**_STUDENT, **_SCORES, "pgr_mean": float | None,
                 "agreement": dict.fromkeys(("all", "weak_right", "weak_wrong"), float | None)}],
    "controls": [{"seed": int, "accuracy": float}],
    "gold": [{"name": str, "use": str}],
    "provenance": _PROVENANCE,
}  # fmt: skip
# What results of 0.2.0 do not have.
_LATER = {
    "design": {"bases": int, "seeds": int, "over": [str]},
    "differences": [{"name": str, "baseline": str, "difference": float, "low": float | None,
                     "high": float | None, "p": float | None, "p_holm": float | None}],
    "failed": {str: str},
    "warnings": [str],
    "weak_labels": [{"seed": int, "calibration": dict | None, "overlap": dict | None}],
    "text_labels": [{"seed": int, "name": str, "stage": str, "report": dict}],
    "merged": [{"seed": int, "name": str, "how": str}],
    "trust": [{"seed": int, "name": str, "n_right": int, "n_wrong": int, "auroc": float,
               "auroc_interval": [float], "brier_gain": float,
               "brier_gain_interval": [float]}],
    "deception": [{
        "name": str, "no_conflict": str, "accuracy": float, "no_conflict_accuracy": float,
        "tax": float,
        "thresholds": [{
            "threshold": float,
            "scores": [{"denominator": str, "score": float | None, "low": float | None,
                        "high": float | None, "expected": float | None, "n_counted": int,
                        "reason": str}],
            "areas": {name: {"items": int, "exposed": int, "taxed": int}
                      for name, _ in AREAS.values()},
        }],
    }],
    "supervisors": [{
        "seed": int,
        "independence": dict | None,
        "dropped": [str],
        "sources": [{"name": str, "coverage": float, "accuracy": float | None,
                     "estimated_accuracy": float | None}],
        **{split: {"covered": float, "accuracy": float, "covered_accuracy": float | None,
                   "constant": float} for split in ("transfer", "test")},
    }],
}  # fmt: skip
_INTERPOLATION = {"alphas": [float], "agreement": [float], "alpha": float, "held_out": int,
                  "accuracy": list | None}  # fmt: skip
_SOUP = {"members": int, "chosen": [int]}
_GREEDY = {**_SOUP, "member_agreement": [float], "agreement": float}
_INDEPENDENCE = {"refuted": bool, "pairs": int}
_SCORED = {"ece": float, "ece_noise": float, "nll": float}
_CALIBRATION = {"rule": str, "applied": bool, "accuracy": float, "before": _SCORED,
                "after": dict | None}  # fmt: skip
_OVERLAP = {"density": float | None, "reason": str | None}
_MISFIT = dict.fromkeys(("squared", "kl_student_weak", "kl_weak_student", "disagreement"),
                        float | None)  # fmt: skip
_GAIN = dict.fromkeys(("brier", "nll"), float | None)
_FIT = {"steps": [int], "alarm_step": int | None}
_GIT = {"commit": str, "dirty": bool}
_DATA = {str: {split: {str: int} for split in ("weak", "transfer", "test")}}


def problem(results: Any) -> str:
    """Return the first thing that is wrong with the contents of results.json; empty if nothing."""
    return next(_problems(results), "")


def _problems(results: Any) -> Iterator[str]:
    yield from shape_problems(results, _RESULTS, "")
    facts = results["provenance"]
    if facts["git"] is not None:
        yield from shape_problems(facts["git"], _GIT, "provenance.git")
    for name, shape in _LATER.items():
        if name in results:
            yield from shape_problems(results[name], shape, name)
    yield from _diagnostics(results)
    if any(row.keys() & _FURTHER_SCORES.keys() for row in results["summary"]):
        yield from shape_problems(results["summary"], [_FURTHER_SCORES], "summary")
    if "test_items" in facts:
        yield from shape_problems(facts["test_items"], {str: str}, "provenance.test_items")
    if "data" in facts:  # results of 0.2.0 have none
        yield from shape_problems(facts["data"], _DATA, "provenance.data")
    yield from _merged(results)
    yield from page_part_problems(results)
    yield from _contradictions(results)


def _diagnostics(results: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong with the diagnostics that are there."""
    for i, row in enumerate(results.get("weak_labels", ())):
        where = f"weak_labels[{i}]"
        if row["calibration"] is not None:
            yield from shape_problems(row["calibration"], _CALIBRATION, f"{where}.calibration")
            if (after := row["calibration"].get("after")) is not None:
                yield from shape_problems(after, _SCORED, f"{where}.calibration.after")
        if row["overlap"] is not None:
            yield from shape_problems(row["overlap"], _OVERLAP, f"{where}.overlap")
    for i, row in enumerate(results.get("supervisors", ())):
        if row["independence"] is not None:
            where = f"supervisors[{i}].independence"
            yield from shape_problems(row["independence"], _INDEPENDENCE, where)
    for i, row in enumerate(results["summary"]):
        if "misfit" in row:
            yield from shape_problems(row["misfit"], _MISFIT, f"summary[{i}].misfit")
            yield from shape_problems(row.get("gain"), _GAIN, f"summary[{i}].gain")
    for i, row in enumerate(results["runs"]):
        if row.get("fit") is not None:
            yield from shape_problems(row["fit"], _FIT, f"runs[{i}].fit")
            if not row["fit"]["steps"]:
                yield f"runs[{i}].fit.steps is empty"


def _merged(results: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is missing of students made of the weights of others."""
    for i, row in enumerate(results.get("merged", ())):
        where = f"merged[{i}]"
        if row["how"] != "interpolation":
            shape = _GREEDY if "agreement" in row else _SOUP
            yield from shape_problems(row, shape, where)
            if not all(0 <= m < row["members"] for m in row["chosen"]):
                yield f"{where}.chosen has a member that is none of {row['members']}"
            if shape is _GREEDY and len(row["member_agreement"]) != row["members"]:
                yield f"{where}.member_agreement has not one number for each member"
            continue
        yield from shape_problems(row, _INTERPOLATION, where)
        n = len(row["alphas"])
        for name in ("agreement", "accuracy"):
            if row[name] is not None and len(row[name]) != n:
                yield f"{where}.{name} has {len(row[name])} numbers for {n} coefficients"
        if row["alpha"] not in row["alphas"]:
            yield f"{where}.alpha is none of its coefficients"


def _contradictions(results: Mapping[str, Any]) -> Iterator[str]:
    """Yield what no single field shows."""
    for name, items in (
        ("runs", results["runs"]),
        ("summary", results["summary"]),
        ("provenance.config.seeds", results["provenance"]["config"]["seeds"]),
    ):
        if not items:
            yield f"{name} is empty"
    names = {run["name"] for run in results["runs"]}
    for i, row in enumerate(results["summary"]):
        if row["name"] not in names:
            yield f"summary[{i}] is of {row['name']!r}, which has no runs"
    for name in ("runs", "summary"):
        for i, row in enumerate(results[name]):
            if (row["pgr_low"] is None) != (row["pgr_high"] is None):
                yield f"{name}[{i}] has an interval with one end"
    for i, row in enumerate(results.get("trust", ())):
        for name in ("auroc_interval", "brier_gain_interval"):
            if len(row[name]) != 2:
                yield f"trust[{i}].{name} has {len(row[name])} ends, expected 2"
    for i, row in enumerate(results.get("deception", ())):
        yield from _deception(row, f"deception[{i}]")
    for i, row in enumerate(results.get("differences", ())):
        if (row["low"] is None) != (row["high"] is None):
            yield f"differences[{i}] has an interval with one end"


def _deception(row: Mapping[str, Any], where: str) -> Iterator[str]:
    """Yield what is missing of an entry of ``deception``, which has two thresholds."""
    if len(row["thresholds"]) != 2:
        yield f"{where}.thresholds has {len(row['thresholds'])} entries, expected 2"
    for at in row["thresholds"]:
        name = f"{where} at threshold {at['threshold']}"
        if "strong_known_tax" not in [score["denominator"] for score in at["scores"]]:
            yield f"{name} has no score of strong_known_tax"
        if not sum(area["items"] for area in at["areas"].values()):
            yield f"{name} has no items"
        if any((score["low"] is None) != (score["high"] is None) for score in at["scores"]):
            yield f"{name} has an interval with one end"
