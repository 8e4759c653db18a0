"""Results of a run as results.json holds them, without any training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

WHY = "no PGR: the ceiling is only 0.7 standard errors above the floor, 2 are needed"
AGREE = {"all": 0.84, "weak_right": 0.97, "weak_wrong": 0.17}


def make_results(
    names: Sequence[str] = ("xent", "logconf:aux_coef=0.3"),
    *,
    refused: bool = False,
    control: bool = False,
    ceiling: float = 1.0,
) -> dict[str, Any]:
    """Return results of students and two seeds, with a floor of .8 and PGR .50 and .80 in turn."""
    runs, summary = [], []
    for i, loss in enumerate(names):
        pgr = 0.8 if i % 2 else 0.5
        accuracies = {"weak": 0.8, "student": 0.8 + (ceiling - 0.8) * pgr, "ceiling": ceiling}
        models = ("weak", "student", "ceiling")
        aurocs = {f"{m}_{k}": 0.9 for m in models for k in ("auroc", "balanced", "f1")}
        for seed in (0, 1):
            runs.append({
                **_who(loss), **accuracies, "seed": seed,
                "pgr": None if refused else pgr, "pgr_low": None if refused else pgr - 0.1,
                "pgr_high": None if refused else pgr + 0.1, "refused": WHY if refused else None,
                "gap": ceiling - 0.8, "gap_se": 0.01, "n_test": 500, "weak_label_accuracy": 0.8,
                "agreement": AGREE, **aurocs,
            })  # fmt: skip
        summary.append({
            **_who(loss), "pgr_mean": None if refused else pgr, "seeds": 0 if refused else 2,
            "pgr_low": None if refused else pgr - 0.1, "pgr_high": None if refused else pgr + 0.1,
            "level": 0.95, "refused_seeds": [0, 1] if refused else [], "refused": None,
            "student_sd": 0.01, "agreement": AGREE, **accuracies, **aurocs,
        })  # fmt: skip
    facts = {
        "utc": "2026-01-01T00:00:00+00:00", "config": {"task": {"name": "<b>mine</b>"},
        "seeds": [0, 1]}, "versions": {"w2s_fast": "0.1.0", "python": "3.11", "triton": None},
        "machine": {"system": "Linux", "cpu": "a cpu", "cores": 2, "cuda": None}, "git": None,
        "backends": {"ref": "ok", "forced": ""}, "stage_versions": {}, "store": "cache",
        "stages": {"weak/0": {"folder": "weak-1", "digest": "f" * 64, "seconds": None,
                              "reused": True}},
    }  # fmt: skip
    controls = [{"seed": s, "accuracy": 0.81, "auroc": 0.9} for s in (0, 1)] if control else []
    baseline = names[0]
    differences = [
        {"name": name, "baseline": baseline, "difference": 0.06, "low": 0.01, "high": 0.11,
         "p": 0.02, "p_holm": 0.04}
        for name in names[1:]
    ]  # fmt: skip
    design = {"bases": 1, "seeds": 2, "over": [], "level": 0.95, "base_names": ["a model"]}
    blocks = {
        "design": design,
        "differences": differences,
        "failed": {},
        "runs": runs,
        "summary": summary,
        "controls": controls,
        "gold": [],
    }
    return {**blocks, "provenance": facts}


def _who(loss: str) -> dict[str, str]:
    return {"name": loss, "method": "naive", "loss": loss, "ceiling_name": ""}
