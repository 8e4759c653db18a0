"""The accuracy of the weak labels stands in results.json, on the terminal and on the page."""

from __future__ import annotations

import io
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from helpers.toy_run import config
from rich.console import Console

from w2s_fast import run
from w2s_fast.pipeline import label
from w2s_fast.pipeline.context import load_data
from w2s_fast.report import PAGE
from w2s_fast.report.model_rows import weak_label_line
from w2s_fast.report.terminal import print_results


def test_it_is_the_share_of_right_labels(tmp_path: Path) -> None:
    cfg = config(tmp_path)
    results = run(cfg)
    (folder,) = label(cfg).values()
    data = load_data(cfg.task, 0)
    names = [data.class_names[c] for c in data.transfer.labels]
    right = [a == b for a, b in zip(pq.read_table(folder)["label"].to_pylist(), names, strict=True)]
    accuracy = sum(right) / len(right)
    assert results["runs"][0]["weak_label_accuracy"] == pytest.approx(accuracy)
    line = f"weak labels of the transfer set: accuracy {accuracy:.3f}"
    stream = io.StringIO()
    print_results(results, Console(file=stream, width=80))
    assert f"{line}\n" in stream.getvalue()
    assert f"{line.capitalize()}." in (tmp_path / PAGE).read_text()


def test_seeds_that_differ_are_a_range() -> None:
    rows = [(0, 0.7), (1, 0.9), (0, 0.7), (1, 0.9)]  # two students share the labels of a seed
    runs = [{"seed": seed, "weak_label_accuracy": value} for seed, value in rows]
    line = weak_label_line({"runs": runs})
    assert line == "weak labels of the transfer set: accuracy 0.800 (0.700 – 0.900 by seed)"


def test_results_of_files_do_not_know_the_accuracy() -> None:
    assert weak_label_line({"runs": [{"seed": 0, "weak_label_accuracy": None}]}) == ""
