"""The supervisor card says what the stored labels say, before any student is trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.supervised_runs import folder_of, supervised, write_rows
from helpers.toy_run import config
from rich.console import Console

from w2s_fast import metrics
from w2s_fast.config import RunConfig, from_dict, to_dict
from w2s_fast.pipeline import artifacts, run
from w2s_fast.pipeline.context import load_data
from w2s_fast.pipeline.jobs import plan_jobs
from w2s_fast.report.card_rows import card_lines
from w2s_fast.report.run_progress import QuietRun

Done = tuple[RunConfig, dict[str, Any]]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    """A run of one weak model, which is wrong on enough items for a probe."""
    out = tmp_path_factory.mktemp("card")
    task = {"n_weak": 40, "n_transfer": 120, "n_test": 40}
    cfg = config(out, task=task, page={"items": 30, "text_chars": 12})
    return cfg, run(cfg)


def test_scores_are_those_of_the_stored_labels(done: Done) -> None:
    cfg, results = done
    (card,) = results["supervisor_cards"]
    data = load_data(cfg.task, 0)
    labels = artifacts.read_probs(
        folder_of(results, cfg, "labels/0") / artifacts.LABELS, data.transfer.ids, 2
    )
    gold, chosen = data.transfer.labels, labels.argmax(1)
    assert card["transfer"]["accuracy"] == pytest.approx((chosen == gold).mean())
    assert card["transfer"]["calibration"]["ece"] == pytest.approx(metrics.ece(labels, gold))
    assert card["balance"]["weak"] == np.bincount(chosen, minlength=2).tolist()
    counts = [[int(((gold == t) & (chosen == p)).sum()) for p in (0, 1)] for t in (0, 1)]
    assert card["confusion"] == counts
    wrong = {(1, 0): counts[1][0], (0, 1): counts[0][1]}
    assert {(t, p): n for t, p, n in card["confused"]} == {k: n for k, n in wrong.items() if n}
    (test,) = {row["weak"] for row in results["runs"]}
    assert card["test"]["accuracy"] == pytest.approx(test) and card["test"]["n"] == 40


def test_the_probe_and_the_cost_are_named(done: Done) -> None:
    cfg, results = done
    (card,) = results["supervisor_cards"]
    assert card["probe"]["reason"] is None and card["probe"]["n"] == 120
    assert card["probe"]["features"] == "words of the texts" and card["agreement"] is None
    log = json.loads((folder_of(results, cfg, "weak/0") / artifacts.LOG).read_bytes())
    assert (
        card["cost"]["tokens"] == sum(log["tokens"]) > 0 and card["cost"]["steps"] == log["steps"]
    )
    assert card["cost"]["parameters"] > 0 and card["cost"]["stages"] == ["labels/0", "weak/0"]
    text = " ".join(card_lines(card))
    assert "accuracy" in text and "AUROC" in text and "trained parameters" in text


def test_it_is_computed_before_any_student_and_no_student_reads_it(done: Done) -> None:
    jobs = plan_jobs(done[0]).jobs
    names = [job.name for job in jobs]
    strong = [i for i, job in enumerate(jobs) if job.stage in ("student", "ceiling", "control")]
    assert names.index("supervisor_card/0") < min(strong)
    assert [job.name for job in jobs if "supervisor_card/0" in job.needs] == ["report"]


def test_it_is_printed_when_it_is_ready(done: Done, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg, _ = done
    events: list[str] = []

    class Seen(QuietRun):
        def finished(self, job: Any, seconds: float | None) -> None:
            events.append(job.name)

        def noted(self, lines: Any) -> None:
            events.extend(lines)

    monkeypatch.setattr(
        "w2s_fast.pipeline.experiment.show_run", lambda quiet: _entered(Seen(Console(quiet=True)))
    )
    run(cfg)
    at = events.index("supervisor_card/0")
    assert events[at + 1].startswith("supervisor: accuracy")


def _entered(observer: QuietRun) -> Any:
    import contextlib

    return contextlib.nullcontext(observer)


def test_items_are_the_first_ones_with_short_texts(done: Done) -> None:
    cfg, results = done
    items = json.loads((Path(cfg.output_dir) / "items.json").read_bytes())
    test = load_data(cfg.task, 0).test
    assert items["ids"] == list(test.ids[:30]) and items["n_test"] == 40
    assert all(len(text) <= 13 for text in items["texts"])
    assert items["texts"][0] == f"{test.texts[0][:12]}…"
    student = next(m for m in items["models"] if m["role"] == "student")
    stored = artifacts.read_probs(
        folder_of(results, cfg, "student/0/xent") / artifacts.TEST, test.ids, 2
    )[:30]
    assert student["chosen"] == stored.argmax(1).tolist()
    assert student["right"] == (stored.argmax(1) == test.labels[:30]).astype(int).tolist()
    assert student["confidence"] == pytest.approx(stored.max(1), abs=6e-4)


def test_curves_of_the_trainings_are_in_the_results(done: Done) -> None:
    cfg, results = done
    (row,) = results["training"]
    log = json.loads((folder_of(results, cfg, "student/0/xent") / artifacts.LOG).read_bytes())
    assert row["steps"] == len(row["at"]) == log["steps"] and "threshold" not in row
    assert row["loss"] == pytest.approx(log["losses"], rel=1e-3)
    (summary,) = results["summary"]
    assert sum(summary["calibration"]["student"]["n"]) == 40


def test_without_items_or_texts_the_page_has_none(done: Done) -> None:
    cfg, results = done
    out = Path(cfg.output_dir)
    for changes, texts in (({"texts": False}, None), ({"items": 0}, ...)):
        values = to_dict(cfg)
        again = run(from_dict({**values, "page": {**values["page"], **changes}}))
        assert again["runs"] == results["runs"]
        if texts is None:
            assert json.loads((out / "items.json").read_bytes())["texts"] is None
        else:
            assert not (out / "items.json").exists()
            assert 'id="explorer"' not in (out / "report.html").read_text()


def test_few_items_have_no_probe(tmp_path: Path) -> None:
    (card,) = run(config(tmp_path))["supervisor_cards"]
    assert card["probe"] == {"reason": "48 items are too few, 100 are needed"}
    assert "no probe of its errors: 48 items" in " ".join(card_lines(card))


@pytest.mark.slow
def test_many_supervisors_are_compared_with_one_another(tmp_path: Path) -> None:
    cfg = supervised(write_rows(tmp_path / "rows.jsonl"), ["votes"])
    (card,) = run(cfg)["supervisor_cards"]
    share = np.array(card["agreement"]["share"], dtype=float)
    assert share.shape == (5, 5) and np.allclose(share.diagonal(), 1)
    assert 0.5 < share[0, 1] < 1 and share[0, 1] == share[1, 0]
    assert card["cost"]["parameters"] is None and card["transfer"]["n"] == 120
