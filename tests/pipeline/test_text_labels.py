"""Methods of generation tasks: samples, labels made of texts, and students trained on pairs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers.supervised_runs import folder_of
from helpers.text_runs import text_run

import w2s_fast
from w2s_fast.errors import W2SError
from w2s_fast.methods import PairLabels, TextLabels
from w2s_fast.pipeline.artifacts import LABELS, LOG, PAIR_LOGPROB, SAMPLES
from w2s_fast.pipeline.context import load_data
from w2s_fast.pipeline.stages.label_reports import _true_answers
from w2s_fast.pipeline.text_files import read_text_labels, write_text_labels

TWICE, CONTRAST = "helpers.text_methods:Twice", "helpers.text_methods:Contrast"


@pytest.mark.slow
def test_samples_labels_and_pairs_of_a_run(tmp_path: Path) -> None:
    """Two rows an item for `Twice`; `Contrast` trains on pairs, from the student of the labels."""
    cfg = text_run(tmp_path, [TWICE, CONTRAST])
    results = w2s_fast.run(cfg)
    stages = results["provenance"]["stages"]
    drawn = {
        name: pq.read_table(folder_of(results, cfg, name) / SAMPLES)["texts"].to_pylist()
        for name in stages
        if name.startswith("samples/")
    }
    assert sorted(len(texts[0]) for texts in drawn.values()) == [1, 3]
    reports = {row["name"]: row["report"] for row in results["text_labels"]}
    twice, contrast = reports[f"{TWICE}+xent"], reports[f"{CONTRAST}+xent"]
    assert twice["kept"] + len(twice["blank"]) == 96
    assert contrast["pairs"] + len(contrast["same"]) == 48 and contrast["pairs"] > 10
    uses = {(row["name"], row["use"]) for row in results["gold"]}
    assert uses == {
        (f"{TWICE}+xent", "true labels of the weak split are shown as examples in prompts")
    }
    reference = next(name for name in stages if name.startswith("pair_logprob/"))
    logprob = np.load(folder_of(results, cfg, reference) / PAIR_LOGPROB)
    assert logprob.shape == (contrast["pairs"], 2) and (logprob < 0).all()
    # The pairs start where the student of the labels has ended, and move on from there.
    student = folder_of(results, cfg, f"student/0/{CONTRAST}+xent")
    log = json.loads((student / LOG).read_text())
    assert log["losses"][0] == pytest.approx(np.log(2), abs=1e-3)
    assert log["losses"][-1] < log["losses"][0] - 0.01


@pytest.mark.slow
def test_another_loss_of_pairs_reuses_samples_and_reference(tmp_path: Path) -> None:
    cfg = text_run(tmp_path, [CONTRAST])
    w2s_fast.run(cfg)
    again = dataclasses.replace(cfg, methods=(f"{CONTRAST}:loss=ipo",))
    stages = w2s_fast.run(again)["provenance"]["stages"]
    changed = {name.partition("/")[0] for name, stage in stages.items() if not stage["reused"]}
    # The function of the method has another spec, so its labels are made again, to the same bytes.
    assert changed == {"text_labels", "student", "report"}


@pytest.mark.slow
def test_other_examples_for_another_seed_and_edited_prompts(tmp_path: Path) -> None:
    cfg = text_run(tmp_path, [TWICE])
    w2s_fast.run(cfg)
    path = Path(cfg.task.path or "")
    path.write_text(path.read_text().replace("159 + 1", "159 plus 1"))
    stages = w2s_fast.run(cfg)["provenance"]["stages"]
    assert not any(stage["reused"] for name, stage in stages.items() if "samples" in name)


def test_a_loss_that_does_not_fit_the_labels(tmp_path: Path) -> None:
    with pytest.raises(W2SError, match="pairs of completions, and its loss is 'xent'"):
        w2s_fast.run(text_run(tmp_path, [f"{CONTRAST}:loss=xent"]))


def test_files_of_labels_are_read_as_written(tmp_path: Path) -> None:
    ids = ["a", "b", "c"]
    pairs = PairLabels(
        rows=np.array([2, 0, 2]), chosen=["x", "é", ""], rejected=["1", "2", "3"],
        q=np.array([1.0, 0.25, 0.5]), report={"kept": 3},
    )  # fmt: skip
    for name, labels in {
        "pairs": pairs,
        "texts": TextLabels(rows=np.array([1, 1]), texts="pq"),
    }.items():
        folder = tmp_path / name
        folder.mkdir()
        write_text_labels(folder, ids, labels)
        again = read_text_labels(folder, ids)
        assert type(again) is type(labels) and again.rows.tolist() == labels.rows.tolist()
        if isinstance(again, PairLabels):
            assert again.chosen == pairs.chosen and again.rejected == pairs.rejected
            assert again.soft.tolist() == [[1, 0], [0.25, 0.75], [0.5, 0.5]]
        else:
            assert list(again.texts) == ["p", "q"]
        with pytest.raises(W2SError, match="labels of other items"):
            read_text_labels(folder, ["a", "b", "d"])
        assert (folder / LABELS).is_dir()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (TextLabels(rows=np.array([], dtype=int), texts=[]), "keeps none of 3"),
        (TextLabels(rows=np.array([0]), texts=["a", "b"]), "texts has 2 entries for 1 rows"),
        (TextLabels(rows=np.array([3]), texts=["a"]), "expected 0 to 2"),
        (PairLabels(rows=np.array([-1]), chosen=["a"], rejected=["b"]), "expected 0 to 2"),
        (
            PairLabels(rows=np.array([0]), chosen=["a"], rejected=["b"], q=np.array([1.5])),
            r"q\[0\] is 1.5",
        ),
        (
            PairLabels(rows=np.array([0]), chosen=["a"], rejected=["b"], q=np.array([np.nan])),
            r"q\[0\] is nan",
        ),
    ],
)  # fmt: skip
def test_labels_that_do_not_fit(labels: TextLabels | PairLabels, message: str) -> None:
    with pytest.raises(W2SError, match=message):
        labels.check(3)


def test_true_answers_are_counted_by_side(tmp_path: Path) -> None:
    """A text without a number is wrong; steps have no answers."""
    data = load_data(text_run(tmp_path, ["naive"]).task, 0)
    answers = data.transfer.answers
    assert answers is not None
    rows = np.array([4, 0, 4])
    right = [f"it is{answers[row]}" for row in rows]
    wrong = [right[0], "no number", " -7"]
    assert _true_answers(TextLabels(rows=rows, texts=[*right[:2], wrong[2]]), data) == {"texts": 2}
    pairs = PairLabels(rows=rows, chosen=right, rejected=wrong)
    assert _true_answers(pairs, data) == {"chosen": 3, "rejected": 1}
    steps = dataclasses.replace(pairs, prefixes=["", "", "first"])
    unread = dataclasses.replace(data, read=None)
    blank = dataclasses.replace(data.transfer, answers=("none",) * len(answers))
    texts = TextLabels(rows=rows, texts=["none", *right[1:]])
    assert _true_answers(texts, dataclasses.replace(data, transfer=blank)) == {"texts": 0}
    assert _true_answers(steps, data) == _true_answers(pairs, unread) == {}
