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


def add_page_parts(results: dict[str, Any], *, sources: Sequence[str] = ()) -> dict[str, Any]:
    """Add what the page alone shows: calibration, training curves, supervisor cards."""
    record = {"ece": 0.05, "ece_noise": 0.01, "n": [20, 80], "confidence": [0.6, 0.9],
              "accuracy": [0.5, 0.95]}  # fmt: skip
    for row in results["summary"]:
        row["calibration"] = dict.fromkeys(("weak", "student", "ceiling"), record)
    results["training"] = [
        {"seed": run["seed"], "name": run["name"], "steps": 8, "at": [2, 4, 6, 8],
         "loss": [0.9, 0.6, 0.5, 0.45], "agreement": [0.5, 0.7, 0.8, 0.85],
         "threshold": [None, 0.5, 0.45, 0.5], "coefficient": [0.0, 0.2, 0.5, 0.5]}
        for run in results["runs"]
    ]  # fmt: skip
    m = len(sources)
    probe = {"reason": None, "features": "words of the texts", "n": 100, "accuracy": 0.82,
             "base_rate": 0.8, "gain": 0.02, "gain_interval": [-0.01, 0.05], "auroc": 0.7,
             "auroc_interval": [0.6, 0.8], "learnable": True}  # fmt: skip
    results["supervisor_cards"] = [
        {
            "seed": seed, "classes": ["no", "yes"], "probe": probe,
            "transfer": {"n": 100, "accuracy": 0.8, "calibration": record},
            "test": {"n": 500, "accuracy": 0.79, "calibration": record},
            "balance": {"true": [50, 50], "weak": [54, 46]},
            "confusion": [[42, 8], [12, 38]], "confused": [[1, 0, 12], [0, 1, 8]],
            "agreement": {"names": list(sources), "omitted": 2,
                          "share": [[1.0 if i == j else None for j in range(m)] for i in range(m)],
                          "n": [[9] * m] * m} if sources else None,
            "cost": {"stages": [f"weak/{seed}"], "parameters": 1234, "steps": 10, "tokens": 5678},
        }
        for seed in (0, 1)
    ]  # fmt: skip
    return results


def make_items(names: Sequence[str], n: int = 6, *, texts: bool = True) -> dict[str, Any]:
    """Return test items; item i is wrong for the supervisor if 4 divides i, for student k if 5 + k
    divides it."""

    def model(name: str, role: str, period: int, low: float) -> dict[str, Any]:
        right = [int(i % period != 0) for i in range(n)]
        gold = [i % 2 for i in range(n)]
        return {
            "name": name, "role": role, "right": right,
            "chosen": [g if r else 1 - g for g, r in zip(gold, right, strict=True)],
            "confidence": [round(low + (i * 37 % 100) * (1 - low) / 100, 3) for i in range(n)],
        }  # fmt: skip

    students = [model(name, "student", 5 + k, 0.6) for k, name in enumerate(names)]
    return {
        "seed": 0, "n_test": 2 * n, "classes": ["no", "yes"], "text_chars": 400,
        "ids": [f"id-{i:05d}" for i in range(n)], "gold": [i % 2 for i in range(n)],
        "texts": [f"the text of item {i}" for i in range(n)] if texts else None,
        "models": [model("weak supervisor", "weak", 4, 0.5), *students,
                   model("ceiling", "ceiling", n, 0.7)],
    }  # fmt: skip
