"""Weak-to-strong reasoning in a run: both stages, their reports, and what is computed once."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers.reasoning_runs import STAGE_ONE, STAGE_TWO, language_model, reasoning_run
from helpers.supervised_runs import folder_of
from rich.console import Console

import w2s_fast
from w2s_fast.config import RunConfig
from w2s_fast.methods import TextLabels
from w2s_fast.pipeline.artifacts import LABELS, SAMPLES, read_texts
from w2s_fast.pipeline.jobs import plan_jobs
from w2s_fast.pipeline.text_files import read_samples, read_text_labels
from w2s_fast.reasoning import contrastive_pairs, select_agreeing
from w2s_fast.report import PAGE
from w2s_fast.report.label_rows import label_lines
from w2s_fast.report.terminal import print_results
from w2s_fast.tasks import get_task

pytestmark = pytest.mark.slow
BOTH = f"{STAGE_ONE}|{STAGE_TWO}"
SHOWN = "true labels of the weak split are shown as examples in prompts"
Finished = tuple[RunConfig, dict[str, Any], Path]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Finished]:
    """A run with both stages; tests run it again with other settings, on its store."""
    folder = tmp_path_factory.mktemp("reasoning")
    model = language_model(folder / "lm")
    cfg = reasoning_run(folder, model, ["naive", STAGE_ONE, BOTH])
    yield cfg, w2s_fast.run(cfg), model


def recomputed(results: dict[str, Any]) -> set[str]:
    stages = results["provenance"]["stages"]
    return {name.partition("/")[0] for name, stage in stages.items() if not stage["reused"]}


def stages_of(results: dict[str, Any], stage: str) -> list[str]:
    return [n for n in results["provenance"]["stages"] if n.startswith(f"{stage}/")]


def test_both_stages_are_what_the_functions_make_of_the_texts(finished: Finished) -> None:
    cfg, results, _ = finished
    transfer = get_task(cfg.task.name).load(cfg.task, 0).transfer
    ids, prompts = transfer.ids, transfer.texts
    settings = {job.name: job.settings for job in plan_jobs(cfg).jobs}
    texts = {}
    for name in stages_of(results, "samples"):
        own = read_samples(folder_of(results, cfg, name) / SAMPLES, ids)
        texts[name] = own if len(own[0]) > 1 else [t for [t] in own]
    weak = list(read_texts(folder_of(results, cfg, "labels/0") / LABELS, ids).values())
    [prompted] = [t for n, t in texts.items() if dict(settings[n])["shots"]]
    first = select_agreeing(ids, prompts, weak, prompted, rule="number")
    assert 5 < len(first.report.kept) < 43 and first.report.different
    reports = [row for row in results["text_labels"] if row["name"] == f"{STAGE_ONE}+xent"]
    by_set: dict[str, list[dict[str, Any]]] = {}
    for row in reports:
        by_set.setdefault(row["report"]["set"], []).append(row["report"])
    assert sorted(by_set) == ["hybrid", "in context", "weak"]
    for name in ("weak", "in context"):  # of the first iteration
        assert by_set[name][0]["kept"] == list(first.report.kept)
    own = {n: read_text_labels(folder_of(results, cfg, n), ids)
           for n in stages_of(results, "text_labels")}  # fmt: skip
    sets = [labels for labels in own.values() if isinstance(labels, TextLabels)]
    assert sorted(len(s.rows) for s in sets)[:2] == [len(first.report.kept)] * 2
    [pairs] = [labels for labels in own.values() if not isinstance(labels, TextLabels)]
    [drawn] = [t for t in texts.values() if isinstance(t[0], list)]
    expected = contrastive_pairs(ids, prompts, weak, drawn, confidence=0.5,
                                 override_confidence=0.6, rule="number")  # fmt: skip
    assert pairs.chosen == [row["chosen"] for row in expected.rows]
    assert pairs.rejected == [row["rejected"] for row in expected.rows]
    assert [ids[row] for row in pairs.rows] == [row["id"] for row in expected.rows]


def test_what_became_of_every_item_is_in_results_terminal_and_page(finished: Finished) -> None:
    cfg, results, _ = finished
    stored = json.loads((Path(cfg.output_dir) / "results.json").read_text())
    assert stored["text_labels"] == json.loads(json.dumps(results["text_labels"]))
    for row in stored["text_labels"]:
        fates = [len(v) for k, v in row["report"].items()
                 if isinstance(v, list) and k != "unreadable_rejected"]  # fmt: skip
        assert sum(fates) == cfg.task.n_transfer
        kept = len(row["report"].get("kept", ()))  # of texts; items of random answers are wrong
        assert not kept or 0 < row["report"]["true answers"]["texts"] <= 2 * kept
    lines = label_lines(stored)
    kept = len(stored["text_labels"][0]["report"]["kept"])
    assert any(f"{kept} kept" in line and "set hybrid" in line for line in lines)
    assert any("weak chosen" in line and "below override" in line for line in lines)
    out = io.StringIO()
    print_results(stored, Console(file=out, width=400))
    page = (Path(cfg.output_dir) / PAGE).read_text()
    for line in lines:
        assert line in out.getvalue() and line.replace("|", "|") in page
    uses = {(row["name"], row["use"]) for row in stored["gold"]}
    assert uses == {(f"{name}+xent", SHOWN) for name in (STAGE_ONE, BOTH)}
    assert SHOWN in out.getvalue() and SHOWN in page


def test_students_continue_from_the_hybrid_student_and_learn_the_pairs(finished: Finished) -> None:
    cfg, results, _ = finished
    losses = json.loads(
        (folder_of(results, cfg, f"student/0/{BOTH}+xent") / "log.json").read_text()
    )["losses"]
    assert losses[0] == pytest.approx(np.log(2), abs=1e-3) and losses[-1] < losses[0] - 0.01
    # naive, weak and in-context students of iteration 1, the hybrid one, and that of the pairs
    assert len(stages_of(results, "student")) == 5


def test_settings_recompute_what_depends_on_them(finished: Finished) -> None:
    cfg, _, _ = finished

    def again(*methods: str) -> set[str]:
        return recomputed(w2s_fast.run(dataclasses.replace(cfg, methods=methods)))

    assert again(STAGE_ONE, BOTH) == {"report"}
    assert again(STAGE_ONE.replace("iterations=2", "iterations=2,sets=weak")) == {
        "text_labels", "student", "report",
    }  # fmt: skip
    orpo = f"{STAGE_ONE}|{STAGE_TWO},loss=orpo"
    results = w2s_fast.run(dataclasses.replace(cfg, methods=(orpo,)))
    assert recomputed(results) == {"text_labels", "student", "report"}
    trained = [n for n in stages_of(results, "student")
               if not results["provenance"]["stages"][n]["reused"]]  # fmt: skip
    assert trained == [f"student/0/{orpo}+xent"]
    assert again(BOTH.replace("n=6", "n=5")) == {"samples", "text_labels", "pair_logprob",
                                                 "student", "report"}  # fmt: skip


def test_other_true_labels_of_the_transfer_split_change_no_student(
    finished: Finished, tmp_path: Path
) -> None:
    cfg, results, _ = finished
    path = Path(cfg.task.path or "")
    transfer = set(get_task(cfg.task.name).load(cfg.task, 0).transfer.texts)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    changed = [
        {**r, "answer": "\n#### 9" if r["prompt"] in transfer else r["answer"]} for r in rows
    ]
    other = tmp_path / "items.jsonl"
    other.write_text("".join(json.dumps(r) + "\n" for r in changed))
    task = dataclasses.replace(cfg.task, path=str(other))
    flipped = w2s_fast.run(
        dataclasses.replace(cfg, task=task, output_dir=str(tmp_path / "out"), cache_dir=None)
    )
    before, after = (r["provenance"]["stages"] for r in (results, flipped))
    assert before.keys() == after.keys()
    differ = {n for n in before if before[n]["digest"] != after[n]["digest"]}
    assert differ == {"supervisor_card/0", "ceiling/0", "report"}  # scores, for readers


def test_samples_have_a_file_a_part_and_ids(finished: Finished) -> None:
    cfg, results, _ = finished
    for name in stages_of(results, "samples"):
        table = pq.read_table(folder_of(results, cfg, name) / SAMPLES)
        assert table.num_rows == 48 and len(set(table["id"].to_pylist())) == 48
