"""Terminal tables, figure and page show the results and omit a PGR that is not reported."""

from __future__ import annotations

import base64
import copy
import hashlib
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from helpers.run_results import WHY, add_page_parts, make_items, make_results
from rich.console import Console

from w2s_fast.report import load_results
from w2s_fast.report.figure import results_figure
from w2s_fast.report.model_rows import model_rows
from w2s_fast.report.page import html_page, write_report
from w2s_fast.report.terminal import print_results


def printed(results: dict[str, Any], width: int = 80) -> str:
    stream = io.StringIO()
    print_results(results, Console(file=stream, width=width))
    return stream.getvalue()


def page(results: dict[str, Any]) -> str:
    """Return the page; names without the places where a line may break."""
    return re.sub("</?bdi[^>]*>|<wbr>", "", html_page(results))


def test_the_table_shows_every_run_and_fits_a_terminal() -> None:
    text = printed(make_results(control=True))
    assert re.search(r"logconf:aux_coef=0.3\s+1\s+0.800\s+0.960\s+1.000\s+0.80", text)
    assert "0.70 – 0.90" in text and "0.840" in text and "0.970" in text and "0.170" in text
    assert "control, seed 1" in text and "0.810" in text
    assert max(map(len, text.splitlines())) <= 80


def test_reasons_of_one_seed_and_of_all_seeds_are_printed() -> None:
    results = make_results()
    results["runs"][0]["refused"], results["summary"][0]["refused"] = WHY, f"{WHY} (mean)"
    text = " ".join(printed(results).split())
    assert f"seed 0: {WHY}" in text and f"all seeds: {WHY} (mean)" in text
    assert "seed 1: no PGR" not in text


def test_a_pgr_that_is_not_reported_is_nowhere_a_number() -> None:
    results = make_results(refused=True)
    text = printed(results)
    assert text.count(WHY) == 2  # once a seed, not once a loss
    assert "0.50" not in text and len(re.findall(r"1\.000\s+–", text)) == 4
    html = page(results)
    assert "no PGR is reported" in html and WHY in html
    assert html.count("not reported") == 8  # a chart, and both tables
    assert results_figure(results, "svg").count(b">not reported<") == 2
    assert results_figure(results, "png").startswith(b"\x89PNG")


def test_true_labels_that_were_used_are_named() -> None:
    results = make_results()
    results["gold"] = [
        {"name": "ground_truth_early_stop+xent", "use": "early stopping on true labels"}
    ]
    note = "ground_truth_early_stop+xent used true labels: early stopping on true labels"
    assert note in " ".join(printed(results).split()) and note in page(results)


def test_a_ceiling_of_its_own_is_shown_beside_the_plain_one() -> None:
    results = make_results()
    for block in ("runs", "summary"):
        for row in results[block]:
            if row["loss"] == "xent":
                row |= {"name": "probe+xent", "ceiling_name": "probe+xent", "ceiling": 0.95}
    text = printed(results, 120)
    assert re.search(r"ceiling · probe\+xent\s+0.950", text)
    assert re.search(r"ceiling\s+1.000", text)
    names = [row.name for row in model_rows(results)]
    assert names[-2:] == ["ceiling · probe+xent", "ceiling"] and names.count("ceiling") == 1
    assert "ceiling · probe+xent" in page(results)


class _Outline(HTMLParser):
    """Check that tags close in order, and collect tags and links."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "link", "input", "wbr"):
            self.open.append(tag)
        self.links += [v or "" for k, v in attrs if k in ("src", "href", "xlink:href", "srcset")]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("results", [make_results(), make_results(refused=True, control=True)])
def test_the_page_is_one_closed_file(results: dict[str, Any]) -> None:
    html = page(results)
    outline = _Outline()
    outline.feed(html)
    assert outline.open == []
    assert outline.links == ["data:,"]  # an empty icon, so that no browser asks for one
    assert not re.search(r"https?:|url\(|@import|<script", html)
    assert "default-src 'none'" in html and "prefers-color-scheme: dark" in html
    assert "<b>mine</b>" not in html and "&lt;b&gt;mine" in html  # names are text, not markup


def test_the_page_can_be_read_on_a_phone_and_by_a_screen_reader() -> None:
    many = [f"method_{i}+xent" for i in range(28)]
    outline = _Outline()
    outline.feed(page(make_results(many)))
    order = [tag for tag, _ in outline.tags]
    assert ("html", {"lang": "en"}) in outline.tags and "title" in order
    charts = [i for i, (_, attrs) in enumerate(outline.tags) if attrs.get("class") == "rows"]
    assert len(charts) == 4 and max(charts) < order.index("table")
    labels = [str(outline.tags[i][1]["aria-label"]) for i in charts]
    assert "Accuracy" in labels[0] and "PGR" in labels[1]
    assert all("scope" in attrs for tag, attrs in outline.tags if tag == "th")
    boxes = [attrs for _, attrs in outline.tags if attrs.get("class") == "scroll"]
    assert len(boxes) == order.count("table") == 3
    assert all(b["tabindex"] == "0" and b["role"] == "region" and b["aria-label"] for b in boxes)


def test_the_means_on_the_page_have_pgr_and_interval() -> None:
    text = re.sub("<[^>]+>", " ", page(make_results()))
    assert re.search(r"student · logconf:aux_coef=0.3\s+0.960\s+0.80\s+0.70 – 0.90", text)


def test_the_page_names_the_best_loss_and_its_interval() -> None:
    html = page(make_results())
    assert "<b>logconf:aux_coef=0.3</b> reached 0.960 and recovered" in html.replace("\n", " ")
    assert "<b>80%</b>" in html and "70% to 90%" in html
    worse = make_results()
    for s in worse["summary"]:
        s["pgr_mean"], s["pgr_low"], s["pgr_high"] = -0.25, -0.5, -0.1
    assert "lost" in page(worse) and "<b>25%</b>" in page(worse)


def test_rows_run_from_floor_to_ceiling() -> None:
    results = model_rows(make_results(control=True))
    names = [r.name for r in results]
    assert names == ["weak supervisor", "control: no pretraining", "student · xent",
                     "student · logconf:aux_coef=0.3", "ceiling"]  # fmt: skip
    assert [r.pgr for r in results if r.student] == [(0.5, 0.4, 0.6), (0.8, 0.8 - 0.1, 0.8 + 0.1)]
    assert len({r.color for r in results}) == len(results)


def test_the_plot_is_reproducible_and_its_text_is_text() -> None:
    svg = results_figure(make_results(), "svg")
    assert svg == results_figure(make_results(), "svg")
    assert (
        b">student \xc2\xb7 logconf:aux_coef=0.3</text>" in svg and b">0.50  [0.40, 0.60]<" in svg
    )
    assert len(svg) < 40_000
    assert ElementTree.fromstring(svg).tag.endswith("svg")
    png = results_figure(make_results(control=True), "png")
    width, height = (int.from_bytes(png[k : k + 4], "big") for k in (16, 20))
    assert width > 1200 and height > 400


def test_reports_are_written_again_from_results(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(json.dumps(make_results()))
    write_report(tmp_path, load_results(tmp_path))
    assert (tmp_path / "report.html").read_text() == html_page(make_results())
    assert {p.name for p in tmp_path.iterdir()} == {
        "results.json", "plot.png", "plot.svg", "report.html"
    }  # fmt: skip


def test_one_seed_and_one_loss_are_enough() -> None:
    results = copy.deepcopy(make_results())
    results["runs"], results["summary"] = results["runs"][:1], results["summary"][:1]
    assert "1 seed, 500" not in page(results)
    assert printed(results) and results_figure(results, "png")


def test_an_interval_without_end_is_named_and_one_that_is_missing_is_not_made_up() -> None:
    results = make_results()
    for row, unbounded in zip(results["summary"], (True, False), strict=True):
        row |= {"pgr_low": None, "pgr_high": None, "pgr_unbounded": unbounded}
    text, html = printed(results), page(results)
    assert "unbounded" in text and "unbounded" in html and "inf" not in text
    assert re.search(r"logconf:aux_coef=0.3\s+0.960\s+0.900\s+0.80\s+–", text)
    svg = results_figure(results, "svg")
    assert b">0.50  [unbounded]<" in svg and b">0.80<" in svg
    assert results_figure(results, "png").startswith(b"\x89PNG")


def test_differences_come_before_means() -> None:
    text = printed(make_results())
    assert text.index("compared with xent") < text.index("Means over 2 seeds")
    assert re.search(r"\+0.060\s+\+0.010 – \+0.110\s+0.02\s+0.04", text)
    assert page(make_results()).index("Differences between") < page(make_results()).index("Means")
    alone = make_results(["xent"])
    assert "compared" not in printed(alone) and "Differences" not in page(alone)


@pytest.mark.parametrize(
    ("design", "note"),
    [
        ({"bases": 4, "seeds": 3, "over": ["bases", "seeds"]}, "t over 4 bases with 3 seeds each"),
        ({"bases": 1, "seeds": 3, "over": ["seeds"]}, "t over 3 seeds, conditional on this base"),
        ({"bases": 2, "seeds": 3, "over": ["seeds"]}, "conditional on these 2 bases"),
        ({"bases": 1, "seeds": 1, "over": []}, "the test items of one run"),
        ({"bases": 1, "seeds": 2, "over": []}, "No intervals: 2 seeds of this base are too few"),
    ],
)
def test_every_report_says_what_intervals_are_about(design: dict[str, Any], note: str) -> None:
    results = make_results() | {"design": design}
    assert note in " ".join(printed(results).split()) and note in page(results)


def test_bases_and_the_spread_over_last_bits_are_listed() -> None:
    results = make_results()
    for row in results["runs"]:
        row["base"] = f"models/{row['seed']}"
    results["summary"][0]["rounding_sd"] = 0.004
    results["failed"] = {"models/2": "student/20000/xent: no checkpoint that loads"}
    text = " ".join(printed(results).split())
    assert "base models/1: seeds 1" in text
    assert "base models/2 failed: student/20000/xent: no checkpoint" in text
    assert "xent: standard deviation of accuracy 0.010 over runs, 0.004 over the last bits" in text


def test_groups_and_shifted_items_are_shown_where_a_task_has_them() -> None:
    results = make_results()
    assert "worst group" not in printed(results) + page(results)
    for row in results["summary"]:
        for i, model in enumerate(("weak", "student", "ceiling")):
            row |= {f"{model}_worst_group": 0.511 + i / 10, f"{model}_ood": None}
            row |= {f"{model}_ood_worst_group": None}
    text = printed(results)
    table = text[text.index("Groups and shifted items") :]
    assert "worst group" in table and "OOD" not in table
    for name, number in (("weak", "0.511"), ("xent", "0.611"), ("ceiling", "0.711")):
        assert re.search(rf"{name} .* {number}", table), name
    assert max(map(len, text.splitlines())) <= 80
    assert all(number in page(results) for number in ("0.511", "0.611", "0.711"))


def test_results_of_an_earlier_version_can_be_shown() -> None:
    results = make_results()
    for name in ("design", "differences", "failed"):
        del results[name]
    assert "resample seeds and test items" in " ".join(printed(results).split())
    assert "resample seeds and test items" in page(results)


def test_parts_that_results_do_not_have_are_left_out(tmp_path: Path) -> None:
    results = make_results()
    for name in ("provenance", "controls", "gold", "failed", "differences"):
        del results[name]
    for row in results["runs"]:
        del row["weak_label_accuracy"]
    for row in results["summary"]:
        for score in ("auroc", "balanced", "f1"):
            del row[f"student_{score}"]
    write_report(tmp_path, results)
    html = (tmp_path / "report.html").read_text()
    assert "0.960" in html and "70% to 90%" in html
    for part in ("Provenance", "Differences", "Calibration", "Training", 'explorer"', "before any"):
        assert part not in html, part


def test_the_page_has_the_parts_that_results_have() -> None:
    html = html_page(add_page_parts(make_results(), sources=["a", "b"]), make_items(["xent"]))
    for part in ("Calibration", "Training", "before any student", "agreement of the supervisors"):
        assert part in html, part
    assert "1,234 trained parameters" in html and "AUROC 0.700 (0.600 – 0.800" in html
    assert "The first 6\nof 12 test items" in html


def test_texts_in_the_page_cannot_end_its_script() -> None:
    items = make_items(["xent"])
    items["texts"][0] = "</script><b>\u2028 \u202e \\x"
    html = html_page(make_results(), items)
    (data,) = re.findall('<script type="application/json" id="items">(.*?)</script>', html, re.S)
    assert not re.search("[<>&\u2028\u202e]", data)
    assert json.loads(data)["texts"][0] == "</script><b>\\u2028 \\u202e \\x"


def test_the_script_is_the_one_that_the_policy_allows() -> None:
    html = html_page(make_results(), make_items(["xent"]))
    (allowed,) = re.findall("script-src 'sha256-([^']+)'", html)
    scripts = re.findall("<script>(.*?)</script>", html, re.S)
    digests = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts]
    assert digests == [allowed]
