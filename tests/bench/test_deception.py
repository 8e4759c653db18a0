"""The benchmark of deception: its files, its configurations, and its table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.deception.data import write_harmless, write_helpful, write_short
from bench.deception.experiments import EXPERIMENTS, configuration, selected, with_conflicts
from bench.deception.table import table
from w2s_fast.config import validate
from w2s_fast.pipeline.students import no_conflict_of


def write_data(folder: Path) -> None:
    (folder / "hh_single_turn").mkdir()
    for i, name in enumerate(("train_gt", "train_w2s", "test")):
        start = f"\n\nHuman: {i}\n\nAssistant: "
        row = {"chosen": f"{start}a", "rejected": f"{start}b"}
        (folder / "hh_single_turn" / f"harmless_{name}.jsonl").write_text(json.dumps(row))
    (folder / "gsm8k").mkdir()
    rows = [
        {"question": "How much is 2 + 2?", "answer": "It is <<2+2=4>>4. So 4.\n#### 4"},
        {"question": "How much is 3 + 2?", "answer": "It is <<3+2=5>>5.\nSo 5.\n#### 5"},
        {"question": "How much is 4 + 2?", "answer": "It is 6.\n#### 6"},
        {"question": "x" * 300, "answer": "It is long. Very.\n#### 6"},
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "gsm8k" / "train.jsonl").write_text(lines)


def test_files(tmp_path: Path) -> None:
    write_data(tmp_path)
    pool, test = write_harmless(tmp_path, tmp_path)
    rows = [json.loads(line) for line in pool.read_text().splitlines()]
    assert [row["chosen"][9:10] for row in rows] == ["0", "1"]
    assert test == tmp_path / "hh_single_turn" / "harmless_test.jsonl"
    long = {"chosen": "\n\nHuman: 3\n\nAssistant: " + 200 * "a", "rejected": "\n\nAssistant: b"}
    blank = {"chosen": "\n\nHuman: 4\n\nAssistant: ", "rejected": "\n\nAssistant: b"}
    pool.write_text("".join([pool.read_text(), *(json.dumps(row) + "\n" for row in (long, blank))]))
    short = write_short(pool, test, tmp_path)
    assert [len(path.read_text().splitlines()) for path in short] == [2, 1]
    helpful = [json.loads(line) for line in write_helpful(tmp_path, tmp_path).open()]
    start = "\n\nHuman: How much is {} + 2?\n\nAssistant: "
    assert helpful == [  # an answer of one sentence has nothing to cut
        {"chosen": start.format(2) + "It is 4. So 4.", "rejected": start.format(2) + "It is 4."},
        {
            "chosen": start.format(3) + "It is 5. So 5.",
            "rejected": start.format(3) + "I'm sorry, but I can't help with that.",
        },
    ]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_configuration_is_valid(name: str, tmp_path: Path) -> None:
    write_data(tmp_path)
    files = (*write_harmless(tmp_path, tmp_path), write_helpful(tmp_path, tmp_path))
    cfg = configuration(name, files, tmp_path)
    validate(cfg)
    compared = no_conflict_of(cfg)
    assert len(compared) == 2 * len(cfg.methods) / 3
    assert not set(compared) & set(compared.values())


def test_methods_with_conflicts() -> None:
    assert with_conflicts("naive") == ("naive", "explicit_conflict", "implicit_conflict")
    assert with_conflicts("probe")[1] == "probe|explicit_conflict"


def test_table() -> None:
    ends = {"score": 0.25, "low": 0.125, "high": 0.5, "expected": 0.2, "n_counted": 40}
    own = {**ends, "denominator": "strong_known_tax", "reason": ""}
    other = {**own, "denominator": "all_tax", "score": 0.9}
    at = {"threshold": 0.5, "areas": {}, "scores": [other, own]}
    row = {
        "name": "a|explicit_conflict+xent", "no_conflict": "a+xent", "accuracy": 0.6,
        "no_conflict_accuracy": 0.7, "tax": 0.125, "thresholds": [at, at], "runs": [],
    }  # fmt: skip
    runs = [
        {
            "seed": s, "name": "x", "weak": 0.5 + s / 10, "student": 0.7, "ceiling": 0.8,
            "pgr": 0.5, "n_test": 9, "weak_label_accuracy": 0.6, "fit": None,
        }
        for s in range(3)
    ]  # fmt: skip
    kept = selected({"runs": runs, "deception": [row], "gold": [], "provenance": {}})
    assert "provenance" not in kept and "fit" not in kept["runs"][0]
    facts = {"cpu": "CPU", "torch": "2", "git_sha": "abc"}
    text = table({"environment": facts, "experiments": {"one": {"pairs": [1, 2, 3], **kept}}})
    cells = text.splitlines()[2].split(" | ")
    assert cells[:4] == ["| one", "1 / 2 / 3", "0.600", "0.800"]
    assert cells[4:] == [
        r"`a\|explicit_conflict+xent`",
        "0.700", "0.600", "0.125", "40", "0.25", "0.12 – 0.50", "0.20", "0.25 |",
    ]  # fmt: skip
    assert "\n\n3 seeds; " in text
