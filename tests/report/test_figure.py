"""Figures hold their texts: nothing is cut, nothing overlaps, names are shown as they are."""

from __future__ import annotations

import html
import itertools
import re
from typing import Any

import matplotlib
import pytest
from helpers.figure_texts import check_texts
from helpers.run_results import make_results

from w2s_fast.report.figure import limits, results_figure
from w2s_fast.report.model_rows import DARK, GREY, PALETTE, model_rows

BAND = b"#eef2f8"
LONG = [
    f"probe_relabel:probe=logreg,neighbours=15,share=0.{i}|probe+logconf:aux_coef=0.{k},warmup_frac=0.25"
    for i, k in itertools.product((25, 35), (5, 6))
]
ODD = ["$x$", "$x_{1}^{", "[red]a[/red]", "[/]", "<b>a</b>", "a_b^c", "&amp;", "${title}", "مرحبا",
       "שלום", "好的方法" * 12, "🙂", "a\nb", "tab\there", "\udc80", "\u202eabc"]  # fmt: skip


def set_pgr(results: dict[str, Any], name: str, pgr: float, half: float) -> None:
    """Give a student another PGR at every seed, and an interval of ``half`` on both sides."""
    for row in [*results["runs"], *results["summary"]]:
        if row["name"] == name:
            row |= {"pgr_low": pgr - half, "pgr_high": pgr + half}
            row["pgr" if "seed" in row else "pgr_mean"] = pgr


def extreme() -> dict[str, Any]:
    """Return results with a PGR of -5, of 12, and with an interval that is far wider than both."""
    results = make_results(["xent", "logconf", "gce", "focal"], control=True)
    set_pgr(results, "xent", -5.0, 0.5)
    set_pgr(results, "logconf", 12.0, 1.0)
    set_pgr(results, "gce", 0.5, 500.0)
    return results


CASES = {
    "one": make_results(["xent"]),
    "six": make_results([f"method_{i}+xent" for i in range(6)], control=True),
    "forty": make_results([f"strong_to_strong_{i}+logconf:aux_coef=0.3" for i in range(40)]),
    "long": make_results(LONG),
    "odd": make_results(ODD),
    "omitted": make_results(refused=True, ceiling=0.7),
    "extreme": extreme(),
}
CASES["title"] = make_results()
CASES["title"]["provenance"]["config"]["task"]["name"] = "some.long.module.path:Task" * 9


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=[pytest.mark.slow] if c == "forty" else []) for c in CASES]
)
def test_no_text_is_cut_or_covers_another(monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    check_texts(monkeypatch, lambda: results_figure(CASES[case], "png"))


def texts(svg: bytes) -> list[str]:
    """Return the texts of a figure, in order."""
    return [html.unescape(t) for t in re.findall(r"<text[^>]*>([^<]*)</text>", svg.decode())]


def test_names_are_shown_as_they_are() -> None:
    shown = "".join(texts(results_figure(CASES["odd"], "svg"))).replace(" ", "")
    for name in ("$x$", "$x_{1}^{", "[red]a[/red]", "<b>a</b>", "&amp;", "a\\nb", "\\udc80", "🙂"):
        assert f"student·{name}" in shown


def test_specs_that_differ_in_one_setting_are_told_apart() -> None:
    shown = "".join(texts(results_figure(CASES["long"], "svg"))).replace(" ", "")
    for name in LONG:
        assert f"student·{name}" in shown


def test_a_band_is_drawn_only_where_there_is_a_gap() -> None:
    assert BAND in results_figure(make_results(), "svg")
    for ceiling in (0.8, 0.7):
        assert BAND not in results_figure(make_results(refused=True, ceiling=ceiling), "svg")


def test_an_axis_shows_all_points_and_does_not_follow_a_very_wide_interval() -> None:
    low, high = limits([0.0, 1.0, 0.3], [-0.2, 1.1])
    assert low < -0.2 and 1.1 < high < 1.3
    low, high = limits([0.0, 1.0, -5.0], [-400.0, 300.0])
    assert -9 < low < -5 and 1 < high < 5
    low, high = limits([0.9, 0.9])
    assert low < 0.9 < high


def test_settings_of_the_user_change_nothing() -> None:
    plain = results_figure(make_results(), "svg")
    with matplotlib.rc_context({"text.usetex": True, "axes.facecolor": "black", "font.size": 30}):
        assert results_figure(make_results(), "svg") == plain


def _luminance(color: str) -> float:
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_colours_of_text_are_readable_on_white() -> None:
    """WCAG 2 asks for a contrast of 4.5."""
    rows = model_rows(make_results(control=True))
    for color in {GREY, DARK, *PALETTE, *(row.color for row in rows)}:
        assert 1.05 / (_luminance(color) + 0.05) >= 4.5, color


def test_a_figure_has_a_title_that_programs_can_read() -> None:
    title = "<b>mine</b>: weak to strong, 2 seeds, 500 test items each"
    assert title.replace("<", "&lt;").replace(">", "&gt;").encode() in re.findall(
        rb"<title>(.*?)</title>", results_figure(make_results(), "svg")
    )
    assert b"tEXtTitle\0" + title.encode() in results_figure(make_results(), "png")
