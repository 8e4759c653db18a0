"""The committed results are consistent, and docs/results.md shows them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from scipy.stats import ttest_rel

from bench.cases import w2s
from w2s_fast import metrics

FILES = sorted(w2s.FOLDER.glob("*.json"))


def load(name: str) -> dict[str, Any]:
    return json.loads((w2s.FOLDER / f"{name}.json").read_text())


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_a_result_is_from_a_clean_tree_and_consistent(path: Any) -> None:
    results = json.loads(path.read_text())
    assert not results["environment"]["dirty"] and results["name"] == path.stem
    seeds = set(results["config"]["seeds"])
    assert len(seeds) >= 3
    for s in results["summary"]:
        rows = [r for r in results["runs"] if r["name"] == s["name"]]
        assert {r["seed"] for r in rows} == seeds
        assert s["student"] == pytest.approx(np.mean([r["student"] for r in rows]))
        reported = [r for r in rows if r["pgr"] is not None]
        for r in reported:
            assert r["pgr"] == pytest.approx(metrics.pgr(r["weak"], r["student"], r["ceiling"]))
        name = s["name"].replace("|", "\\|")
        line = next(x for x in w2s.table(results).splitlines() if x.startswith(f"| `{name}`"))
        assert f"{s['student']:.3f}" in line
        assert ("not reported" in line) == (s["pgr_mean"] is None)
        assert (s["pgr_mean"] is None) == (s["refused"] is not None)
    assert results == w2s.with_statistics(results)  # no interval is older than its rule


def test_on_the_embedded_task_pretraining_is_what_recovers_the_gap() -> None:
    """Without pretraining there is no gain; differences between losses are paired over seeds."""
    results = load("agreement")
    accuracy = {(r["name"], r["seed"]): r["student"] for r in results["runs"]}
    logconf, xent = ([accuracy[name, s] for s in range(5)] for name in ("logconf", "xent"))
    row = next(d for d in results["differences"] if d["name"] == "logconf")
    assert row["baseline"] == "xent" and row["p"] == pytest.approx(ttest_rel(logconf, xent).pvalue)
    assert row["p"] <= row["p_holm"] <= 1 and row["low"] < row["difference"] < row["high"]
    first = results["summary"][0]
    control = np.mean([c["accuracy"] for c in results["controls"]])
    assert abs(metrics.pgr(first["weak"], control, first["ceiling"])) < 0.1
    assert first["pgr_mean"] > 0.3
    names = {s["name"].partition("+")[0] for s in results["summary"]}
    assert {"bootstrap", "ensemble"} <= names


def test_the_page_names_what_remains_after_correction() -> None:
    lines = w2s.survivors().splitlines()
    for path in FILES:
        for d in load(path.stem)["differences"]:
            named = any(line.startswith(f"- {path.stem}: `{d['name']}` ") for line in lines)
            assert named == (d["p_holm"] < 0.05)
