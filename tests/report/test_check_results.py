"""Results that are damaged, or of another version, are one line before anything is shown."""

from __future__ import annotations

import copy
import io
import json
from pathlib import Path
from typing import Any

import pytest
from helpers.run_results import add_page_parts, make_results
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from w2s_fast.cli import report
from w2s_fast.errors import W2SError
from w2s_fast.report import load_results
from w2s_fast.report.check_results import problem
from w2s_fast.report.figure import results_figure
from w2s_fast.report.model_rows import model_rows
from w2s_fast.report.page import html_page
from w2s_fast.report.terminal import print_results


def full_results() -> dict[str, Any]:
    """Return results with every block that a run may write."""
    results = make_results(control=True)
    models, scores = ("weak", "student", "ceiling"), ("worst_group", "ood", "ood_worst_group")
    for row in results["summary"]:
        row |= {f"{model}_{score}": 0.7 for model in models for score in scores}
    results["gold"] = [{"name": "xent", "use": "early stopping on true labels"}]
    results["provenance"] |= {
        "git": {"commit": "0" * 40, "dirty": True},
        "data": {s: {k: {"no": 5, "yes": 6} for k in ("weak", "transfer", "test")} for s in "01"},
    }
    results["provenance"]["config"]["task"]["path"] = "reviews.csv"
    return add_page_parts(results, sources=["rules", "words"])


def show(results: dict[str, Any]) -> None:
    """Show results as the command does, without drawing."""
    print_results(results, Console(file=io.StringIO(), width=80))
    html_page(results).encode()
    assert all(isinstance(row.mean, float) for row in model_rows(results))


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of every value in a tree."""
    if not isinstance(value, dict | list):
        return [path]
    items: Any = value.items() if isinstance(value, dict) else enumerate(value)
    return [path, *(p for key, item in items for p in places(item, (*path, key)))]


def change(results: Any, path: tuple[Any, ...], value: Any) -> Any:
    """Return a copy in which one value is another one, or missing if ``value`` is ...."""
    if not path:
        return value
    changed = copy.deepcopy(results)
    parent = changed
    for key in path[:-1]:
        parent = parent[key]
    if value is ...:
        del parent[path[-1]]
    else:
        parent[path[-1]] = value
    return changed


PLACES = places(full_results())
_VALUES = st.sampled_from(
    [..., None, True, 0, 1, -3, 10**400, 1e300, 0.25, float("nan"), float("inf"), "", "xent",
     "\udc80[/]", [], {}, [1], {"name": 1}]
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(PLACES), _VALUES)
def test_any_damage_is_found_or_can_be_shown(path: tuple[Any, ...], value: Any) -> None:
    if not path and value is ...:
        return
    results = change(full_results(), path, value)
    if reason := problem(results):
        assert "\n" not in reason
    else:
        show(results)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("runs", 1, "ceiling_name"), ..., "runs[1].ceiling_name is missing"),
        (("runs", 0, "student"), "0.9", "runs[0].student is '0.9', expected a number"),
        (("runs", 0, "weak"), float("nan"), "runs[0].weak is nan, expected a number"),
        (("runs", 0, "seed"), True, "runs[0].seed is True, expected an integer"),
        (("summary", 0, "pgr_mean"), [], "summary[0].pgr_mean is [], expected a number or null"),
        (("summary", 0, "name"), "gce", "summary[0] is of 'gce', which has no runs"),
        (("summary", 0, "pgr_low"), None, "summary[0] has an interval with one end"),
        (("runs",), [], "runs is empty"),
        (("provenance", "stages", "weak/0"), None, "provenance.stages.weak/0 is None"),
        (("provenance", "data", "1", "test"), ..., "provenance.data.1.test is missing"),
    ],
)
def test_the_message_names_place_value_and_fix(
    tmp_path: Path, path: tuple[Any, ...], value: Any, message: str
) -> None:
    results = change(full_results(), path, value)
    (tmp_path / "results.json").write_text(json.dumps(results))
    with pytest.raises(W2SError) as err:
        load_results(tmp_path)
    text = str(err.value)
    assert message in text and str(tmp_path) in text and "w2s-fast run" in text
    assert "written by w2s_fast '0.1.0'" in text and "\n" not in text


def test_whole_results_are_accepted() -> None:
    assert problem(full_results()) == problem(make_results(refused=True)) == ""
    older = full_results()
    del older["provenance"]["data"]
    older["provenance"]["git"] = None
    assert problem(older) == ""
    show(older)


@pytest.mark.parametrize("text", [None, "{", "[]", "{}", "[" * 100_000, "\xff", "1" * 5000])
def test_missing_or_unreadable_files_are_one_line(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "results.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(W2SError, match="w2s-fast run") as err:
        load_results(tmp_path)
    assert "\n" not in str(err.value)
    assert [p.name for p in tmp_path.iterdir()] == ([] if text is None else ["results.json"])


def test_the_folder_of_a_sweep_is_named_as_one(tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text("{}")
    with pytest.raises(W2SError, match="results of a sweep; name one of its runs: .*cells/NAME"):
        report.main(["--out", str(tmp_path)])


def test_numbers_at_the_limit_can_be_drawn() -> None:
    results = full_results()
    results["runs"][0] |= {"student": 9e11, "pgr": -9e11}
    results["summary"][0] |= {"pgr_mean": -9e11, "pgr_low": -9.5e11, "pgr_high": 9e11}
    assert problem(results) == "" and results_figure(results, "svg")
