"""The figure of a sweep holds its texts and tells methods apart, also without colours."""

from __future__ import annotations

import copy
import html
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from helpers.figure_texts import check_texts

from w2s_fast.sweeps.sweep_figure import sweep_figure

SWEEP = Path(__file__).parents[2] / "bench" / "results" / "sweep.json"
LONG = [
    f"probe_relabel:probe=logreg,neighbours=15,share=0.{i}|probe+logconf:aux_coef=0.5,warmup_frac=0.25"
    for i in range(4)
]
ODD = ["$x$", "$x_{1}^{", "[red]a[/red]", "<b>a</b>", "好的方法" * 12, "🙂", "a\nb"]


def results(names: Sequence[str]) -> dict[str, Any]:
    """Return the committed sweep with other names; no two methods have the same PGR."""
    changed = copy.deepcopy(json.loads(SWEEP.read_text()))
    for cell in changed["cells"]:
        summary, runs = cell["summary"][0], [r for r in cell["runs"] if r["name"] == "xent"]
        cell["summary"], cell["runs"] = [], []
        for i, name in enumerate(names):
            pgrs = {k: summary[k] - i / 10 for k in ("pgr_mean", "pgr_low", "pgr_high")}
            cell["summary"].append({**summary, **pgrs, "name": name})
            cell["runs"] += [{**r, "name": name, "pgr": r["pgr"] - i / 10} for r in runs]
    return changed


def extreme() -> dict[str, Any]:
    """Return a sweep with a cell without PGR, and with very wide intervals elsewhere."""
    changed = results(["xent", "logconf"])
    first, second, _ = changed["cells"]
    first["task"] = "local:path=/a/very/long/folder/with/reviews.csv,label=$stars$"
    first["summary"][0]["pgr_mean"] = None
    second["summary"][0] |= {"pgr_low": -80.0, "pgr_high": 90.0}
    return changed


CASES = {
    "one": results(["xent"]),
    "twelve": results([f"strong_to_strong_{i}+xent" for i in range(12)]),
    "long": results(LONG),
    "odd": results(ODD),
    "extreme": extreme(),
}


@pytest.mark.parametrize("case", CASES)
def test_no_text_is_cut_or_covers_another(monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    check_texts(monkeypatch, lambda: sweep_figure(CASES[case], "png"))


def test_specs_that_differ_in_one_setting_are_told_apart() -> None:
    svg = sweep_figure(CASES["long"], "svg").decode()
    shown = "".join(re.findall(r"<text[^>]*>([^<]*)</text>", svg)).replace(" ", "")
    for i in range(4):
        assert shown.count(f"share=0.{i}") == 1


def test_names_are_shown_as_they_are() -> None:
    svg = sweep_figure(CASES["odd"], "svg").decode()
    shown = [html.unescape(t) for t in re.findall(r"<text[^>]*>([^<]*)</text>", svg)]
    assert {"$x$", "$x_{1}^{", "[red]a[/red]", "<b>a</b>", "🙂", r"a\nb"} <= set(shown)
    note = sweep_figure(CASES["extreme"], "svg").decode()
    assert "label=$stars$" in note


def test_methods_of_a_small_sweep_have_different_markers() -> None:
    """Each kind of marker is a path of its own in the file."""

    def markers(names: Sequence[str]) -> int:
        svg = sweep_figure(results(names), "svg").decode()
        return len(set(re.findall(r'<path id="m\w+" d="([^"]+)"', svg)))

    assert markers(["a", "b", "c"]) >= markers(["a"]) + 2


def test_an_interval_that_leaves_the_axes_has_an_arrow_head() -> None:
    plain = results(["xent", "logconf"])
    cut = copy.deepcopy(plain)
    cut["cells"][1]["summary"][0] |= {"pgr_low": -80.0, "pgr_high": 90.0}
    heads = [sweep_figure(r, "svg").count(b'<use xlink:href="#m') for r in (plain, cut)]
    assert heads[1] >= heads[0] + 2
