"""Statistics, tables, CSV and figure of a sweep."""

from __future__ import annotations

import copy
import csv
import io
import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from scipy.stats import ttest_1samp, wilcoxon

from w2s_fast.report.outcomes import Outcomes
from w2s_fast.sweeps import SweepConfig
from w2s_fast.sweeps.statistics import comparisons, medians, sign_flip
from w2s_fast.sweeps.sweep_figure import cells_without_pgr, sweep_figure
from w2s_fast.sweeps.sweep_files import to_csv
from w2s_fast.sweeps.sweep_tables import notes, print_sweep


def _cell(task: str, weak: str, accuracies: dict[str, list[float | None]]) -> dict[str, Any]:
    """Return a cell with floors .6 and .62, ceilings .8 and .84, and these student accuracies."""
    floors, tops, runs, summary = (0.6, 0.62), (0.8, 0.84), [], []
    for name, values in accuracies.items():
        student = {"name": name, "method": "naive", "loss": name}
        for seed, value in enumerate(values):
            assert value is not None
            gap = tops[seed] - floors[seed]
            runs.append(
                {**student, "seed": seed, "weak": floors[seed], "student": value, "pgr_low": None,
                 "ceiling": tops[seed], "pgr": (value - floors[seed]) / gap}
            )  # fmt: skip
        summary.append(student)
    return {"name": f"{task}--{weak}", "task": task, "weak": weak, "student": "big",
            "same": weak == "big", "runs": runs, "summary": summary}  # fmt: skip


def _outcomes(cells: list[dict[str, Any]]) -> dict[str, dict[int, Outcomes]]:
    """Return outcomes with the accuracies of these cells; tasks name other items alike."""
    outcomes: dict[str, dict[int, Outcomes]] = {}
    for cell in cells:
        by_seed: dict[int, dict[str, np.ndarray]] = {}
        for run in cell["runs"]:
            right = np.arange(200) < round(200 * run["student"])
            by_seed.setdefault(run["seed"], {})[f"student/{run['name']}"] = right
        outcomes[cell["name"]] = {
            seed: _of_items([f"{seed} {i}" for i in range(200)], right, cell["task"])
            for seed, right in by_seed.items()
        }
    return outcomes


def _of_items(names: list[str], right: dict[str, np.ndarray], task: str = "") -> Outcomes:
    """Return outcomes whose groups have these names, and whose items are those of a task."""
    return Outcomes(tuple(f"{task} {name}" for name in names), tuple(names), right)


def test_medians_omit_pgrs_that_are_not_reported() -> None:
    one = _cell("a", "small", {"xent": [0.7, 0.73]})
    two = _cell("a", "big", {"xent": [0.6, 0.62]})
    other = _cell("b", "small", {"xent": [0.8, 0.84]})
    other["runs"][0]["pgr"] = None
    a, b, everything = medians([one, two, other])
    assert (a["task"], b["task"], everything["task"]) == ("a", "b", None)
    assert a["median"] == pytest.approx(0.25) and (a["n"], a["refused"]) == (4, 0)
    # means of floor and ceiling: .61 and .82, and the pair of equal models is omitted
    assert a["median_openai"] == pytest.approx((0.09 / 0.21 + 0.12 / 0.21) / 2)
    assert a["n_openai"] == 2 and (b["n"], b["refused"]) == (1, 1) and b["n_openai"] == 2
    assert everything["median"] == pytest.approx(0.5) and everything["n"] == 5


def test_the_comparison_pairs_cells_and_seeds_and_counts_units() -> None:
    cells = [
        _cell("a", "small", {"focal": [0.71, 0.70], "xent": [0.70, 0.68]}),
        _cell("a", "other", {"focal": [0.70, 0.70], "xent": [0.69, 0.71]}),
        _cell("b", "small", {"focal": [0.75, 0.70], "xent": [0.70, 0.70]}),
    ]
    (comparison,) = comparisons(cells, _outcomes(cells))
    assert comparison["name"] == "focal"
    assert (comparison["wins"], comparison["pairs"]) == (4, 6)
    assert comparison["units"] == 4
    units = np.array([0.01, 0.005, 0.05, 0.0])  # means of (a, 0), (a, 1), (b, 0), (b, 1)
    assert comparison["difference"] == pytest.approx(units.mean())
    interval = ttest_1samp(units, 0).confidence_interval(0.95)
    assert (comparison["low"], comparison["high"]) == pytest.approx(tuple(interval))
    # sums of units: .02, .01, .05, 0; at least .08 only with the first three positive: 2 of 16
    assert comparison["p"] == pytest.approx(2 / 16)
    assert comparisons([_cell("a", "small", {"focal": [0.7, 0.7]})], {}) == []
    (two,) = comparisons(cells[:1], _outcomes(cells[:1]))
    assert (two["units"], two["low"], two["high"]) == (2, None, None)


def _drawn(
    rng: np.random.Generator,
    n_seeds: int,
    n_items: int,
    share: float,
    tasks: tuple[str, ...] = ("",),
) -> dict[str, Any]:
    """Compare two equally good students whose seeds have a share of their test items in common.

    An item suits one of them in the cells of all tasks; a task with a name of its own leaves out
    its first item, so its test set is another one.
    """
    n_common = int(share * n_items)
    common = rng.random((2, n_common)) < 0.7  # every seed errs alike on these
    summary = [{"name": n, "method": "naive", "loss": n} for n in ("xent", "focal")]
    cells: dict[str, Any] = {
        f"cell {i}": {"task": f"a:n_weak={i}{task}", "runs": [], "summary": summary}
        for i, task in enumerate(tasks)
    }
    outcomes: dict[str, dict[int, Outcomes]] = {name: {} for name in cells}
    for seed in range(n_seeds):
        own = rng.random((2, n_items - n_common)) < 0.7
        names = [f"{i}" if i < n_common else f"{seed} {i}" for i in range(n_items)]
        right = np.concatenate([common, own], axis=1)
        for (name, cell), task in zip(cells.items(), tasks, strict=True):
            first = 1 if task else 0
            models = {
                f"student/{model}": np.where(
                    rng.random(n_items) < 0.1, rng.random(n_items) < 0.7, row
                )
                for model, row in zip(("xent", "focal"), right, strict=True)
            }
            kept = {model: row[first:] for model, row in models.items()}
            outcomes[name][seed] = _of_items(names[first:], kept)
            cell["runs"] += [{"name": n, "seed": seed} for n in ("xent", "focal")]
    (entry,) = comparisons([{**cell, "name": name} for name, cell in cells.items()], outcomes)
    return entry


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_methods_without_an_effect_seldom_differ(share: float) -> None:
    """Also where seeds have test items in common, whose errors say little by being repeated."""
    rng = np.random.default_rng(2)
    entries = [_drawn(rng, 6, 400, share) for _ in range(400)]
    assert np.mean([entry["p"] <= 0.05 for entry in entries]) < 0.08
    covered = np.mean([entry["low"] <= 0 <= entry["high"] for entry in entries])
    assert 0.91 < covered < 0.99


@pytest.mark.parametrize("tasks", [("", "", ""), ("", ",n_test=1", ",n_test=2")], ids=str)
def test_tasks_of_one_file_are_not_independent(tasks: tuple[str, ...]) -> None:
    """Tasks that differ in training rows have one test set; others share a part of theirs."""
    rng = np.random.default_rng(3)
    entries = [_drawn(rng, 5, 200, 0.0, tasks) for _ in range(200)]
    assert {entry["units"] for entry in entries} == {5 if tasks[1] == "" else 10}
    assert {entry["pairs"] for entry in entries} == {15}
    assert np.mean([entry["p"] <= 0.05 for entry in entries]) < 0.08
    covered = np.mean([entry["low"] <= 0 <= entry["high"] for entry in entries])
    assert 0.91 < covered < 0.99


def test_units_that_are_equal_on_common_items_have_their_error() -> None:
    """Six seeds of one test set and equal models are one draw of the items, not six."""
    entry = _drawn(np.random.default_rng(1), 6, 400, 1.0)
    width = (entry["high"] - entry["low"]) / 2
    assert width == pytest.approx(1.96 * np.sqrt(2 * 0.7 * 0.3 / 400), rel=0.15)


def test_sign_flips_against_scipy_and_by_hand() -> None:
    """The sum of signed ranks is the Wilcoxon statistic, whose exact p scipy computes."""
    ranks = np.array([1, -2, 3, 4, -5, 6, 7, 8], dtype=float)
    expected = wilcoxon(ranks, alternative="greater", method="exact").pvalue
    assert sign_flip(ranks.tolist()) == pytest.approx(expected)
    assert sign_flip([0.1] * 5) == pytest.approx(1 / 32)
    assert sign_flip([0.1]) == 0.5 and sign_flip([-0.1]) == sign_flip([0.0]) == 1
    rng = np.random.default_rng(0)
    sums = rng.normal(0.2, 1, 4)
    every = [np.dot(signs, sums) for signs in itertools.product((1, -1), repeat=4)]
    by_hand = np.mean([v >= sums.sum() - 1e-12 for v in every])
    assert sign_flip(sums.tolist()) == pytest.approx(by_hand)
    many = rng.normal(0.2, 1, 40)
    assert sign_flip(many.tolist()) == sign_flip(many.tolist()) > 0


def _omit_pgr(results: dict[str, Any], at: int) -> dict[str, Any]:
    """Return results in which one cell has no PGR and every other PGR is 0.5."""
    changed = copy.deepcopy(results)
    for i, cell in enumerate(changed["cells"]):
        value = None if i == at else 0.5
        for row in cell["runs"]:
            row |= {"pgr": value, "pgr_low": value, "pgr_high": value, "refused": None}
        for row in cell["summary"]:
            reason = {"refused": "no PGR: why" if i == at else None, "seeds": 0 if i == at else 2}
            row |= {"pgr_mean": value, "pgr_low": value, "pgr_high": value, **reason}
    return {**changed, "medians": medians(changed["cells"])}


def test_tables_print_the_results(serial: tuple[SweepConfig, dict[str, Any]]) -> None:
    results = _omit_pgr(serial[1], 0)
    results["failed"] = {"agreement--x--y": "weak/0: no space"}
    stream = io.StringIO()
    print_sweep(results, Console(file=stream, width=80))
    text = stream.getvalue()
    table = text.partition("* agreement with")[0]
    assert len(re.findall(r"\d\s+–\s+–\s+\d", table)) == 2 and table.count("0.50 – 0.50") == 2
    row = results["cells"][1]["summary"][0]
    numbers = [row[k] for k in ("weak", "student", "ceiling")]
    numbers += [row["agreement"]["weak_right"], row["agreement"]["weak_wrong"]]
    cell = table.split("agreement, scratch")[1]
    line = next(line for line in cell.splitlines() if "xent" in line)
    assert re.findall(r"\d\.\d{3}", line) == [f"{v:.3f}" for v in numbers]
    assert notes(results) == ["agreement, bow → bow: no PGR: why"] and notes(results)[0] in text
    assert "failed: agreement--x--y: weak/0: no space" in text
    (against,) = results["comparisons"]
    assert f"{against['difference']:+.3f}" in text and f"{against['p']:.2g}" in text
    assert max(len(line) for line in table.splitlines()) <= 80


def test_the_csv_has_a_row_per_run(serial: tuple[SweepConfig, dict[str, Any]]) -> None:
    cfg, results = serial
    text = (Path(cfg.output_dir) / "sweep.csv").read_text()
    assert text == to_csv(results)
    rows = list(csv.DictReader(io.StringIO(text)))
    runs = [(cell, run) for cell in results["cells"] for run in cell["runs"]]
    assert len(rows) == len(runs) == 8
    for row, (cell, run) in zip(rows, runs, strict=True):
        assert (row["weak_model"], row["name"]) == (cell["weak"], run["name"])
        assert int(row["seed"]) == run["seed"] and float(row["student"]) == run["student"]
        assert row["pgr"] == ("" if run["pgr"] is None else str(run["pgr"]))
        assert float(row["agreement_all"]) == run["agreement"]["all"]
        assert float(row["misfit_squared"]) == run["misfit"]["squared"]
        assert not any(value.startswith("{") for value in row.values())


@pytest.mark.slow
@pytest.mark.parametrize("cells", [2, 40])
def test_the_figure_lists_cells_without_pgr(
    serial: tuple[SweepConfig, dict[str, Any]], cells: int
) -> None:
    results = _omit_pgr(serial[1], 0)
    results["cells"] = results["cells"] * (cells // 2)
    image = sweep_figure(results, "png")
    assert image.startswith(b"\x89PNG") and len(image) > 20_000
    assert sweep_figure(results, "svg") == sweep_figure(results, "svg")
    text = cells_without_pgr(results["cells"])
    assert text.startswith("PGR not reported, the gap is too small: agreement, bow → bow")
    assert ("and 14 more" in " ".join(text.split())) == (cells == 40)
    nothing = {**results, "cells": results["cells"][:1]}
    assert sweep_figure(nothing, "png") != image
    shown = {**results, "cells": results["cells"][1:2]}
    assert cells_without_pgr(shown["cells"]) == ""
