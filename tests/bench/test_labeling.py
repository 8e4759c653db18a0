"""The benchmark of labeling functions: it reads texts, measures, and makes the tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench.labeling import command, data, measure, table
from w2s_fast.models.text_tokenizer import train_tokenizer

WORDS = {0: ("song", "beat", "music", "bad", "dull"), 1: ("subscribe", "win", "free", "great")}
FILLER = [f"w{i}" for i in range(30)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three data sets in which words give the class away; function 0 of two right in 90 %."""
    root = tmp_path_factory.mktemp("data")
    for seed, name in enumerate(data.DATA_SETS):
        rng = np.random.default_rng(seed)
        labels = (rng.random(260) < 0.4).astype(int)
        texts = [" ".join([*rng.choice(FILLER, 4), *rng.choice(WORDS[int(y)], 2)]) for y in labels]
        place = root / ("wrench" if name != "sst2" else "") / name
        place.mkdir(parents=True)
        if name == "sst2":
            lines = [f"{t}\t{y}\n" for t, y in zip(texts, labels, strict=True)]
            (place / "train.tsv").write_text("".join(lines))
            continue
        right = rng.random(260) < 0.9
        votes = np.stack([np.where(right, labels, 1 - labels), np.full(260, -1)], 1)
        votes[:130, 0] = -1
        items = {
            str(i): {"label": int(y), "weak_labels": v, "data": {"text": t}}
            for i, (t, y, v) in enumerate(zip(texts, labels, votes.tolist(), strict=True))
        }
        (place / "train.json").write_text(json.dumps(items))
    return root


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder with random weights and a tokenizer of the words."""
    import transformers

    path = tmp_path_factory.mktemp("encoder")
    tokenizer = train_tokenizer([" ".join([*FILLER, *WORDS[0], *WORDS[1]])] * 3)
    config = transformers.BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, pad_token_id=tokenizer.pad_token_id, initializer_range=0.5,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.BertModel(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def run(tmp_path: Path, folder: Path, *options: str) -> list[dict[str, Any]]:
    out = tmp_path / "rows.jsonl"
    assert command.main(["--data", str(folder), "--out", str(out), *options]) == 0
    return [json.loads(line) for line in out.read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*functions abstain")  # the toy texts lack their words
def test_rows_and_tables(tmp_path: Path, folder: Path, encoder: Path) -> None:
    rows = run(
        tmp_path, folder, "--student", str(encoder), "--seeds", "3", "--sets", "youtube,sst2"
    )
    by: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        by.setdefault((row["data"], row["features"], row["method"]), []).append(row)
    assert all(len(group) == 3 and group[0]["n"] == 160 for group in by.values())
    assert len(by) == 2 * (4 + 1 + 2 * (1 + len(measure.GENERATORS) + 2) + 2)

    texts = data.read("youtube", folder)
    for row in by["youtube", "none", "constant"]:
        rest = measure.draw(texts, row["seed"], 100).rest
        share = texts.labels[rest].mean()
        assert row["accuracy"] == pytest.approx(1 - share, abs=1e-4)
    hand = by["youtube", "none", "hand-written"][0]
    split = measure.draw(texts, 0, 100)
    votes, gold = texts.votes[split.rest, 0].numpy(), texts.labels[split.rest]
    covered = votes >= 0
    assert hand["coverage"] == pytest.approx(covered.mean(), abs=1e-4)
    right = np.where(covered, votes, 0) == gold  # class 0 is the largest
    assert hand["accuracy"] == pytest.approx(right.mean(), abs=1e-4)
    assert hand["covered_accuracy"] == pytest.approx(right[covered].mean(), abs=1e-4)
    for method in ("few-shot", "logistic", "stumps", "neighbors"):
        group = by["sst2", "tf-idf", method]
        constant = by["sst2", "none", "constant"]
        assert all(
            a["accuracy"] > b["accuracy"] + 0.1 for a, b in zip(group, constant, strict=True)
        )

    text = table.table([{**row, "git_sha": "abc"} for row in rows], "sst2")
    shown = [line.split(" | ") for line in text.splitlines()[2:] if line.startswith("|")]
    assert len(shown) == len(by) / 2
    few = next(line for line in shown if line[0] == "| few-shot")
    mean = np.mean([row["accuracy"] for row in by["sst2", "tf-idf", "few-shot"]])
    assert few[5] == f"{mean:.3f}" and few[2] == "–"
    assert "160 rows, 100 labeled ones beside them, 3 seeds, commit abc." in text


def test_without_an_encoder(tmp_path: Path, folder: Path) -> None:
    rows = run(tmp_path, folder, "--sets", "sms", "--seeds", "1", "--rows", "200")
    assert {row["features"] for row in rows} == {"none", "tf-idf"} and rows[0]["n"] == 100


def test_intervals_of_a_known_mean() -> None:
    facts = {"data": "sms", "n": 9, "labeled": 3, "git_sha": "abc", "features": "none"}
    scores = {"coverage": 0.5, "covered_accuracy": 0.75, "functions": 2, "majority_accuracy": 0.7}
    rows = [
        {**facts, **scores, "seed": s, "method": m, "accuracy": a}
        for m, values in (("few-shot", (0.6, 0.7, 0.8)), ("stumps", (0.65, 0.75, 0.85)))
        for s, a in enumerate(values)
    ]
    lines = table.table(rows, "sms").splitlines()
    # 0.1 * t(0.975, 2) / sqrt(3) = 0.248
    assert lines[2] == "| few-shot | – | – | – | – | 0.700 | 0.452 – 0.948 | – | – | – |"
    assert lines[3].startswith(
        "| stumps | – | 2 | 0.500 | 0.750 | 0.750 | 0.502 – 0.998 | +0.050 |"
    )
    assert "No rows have been recorded" in table.table(rows, "youtube")


def test_the_penalty_is_chosen_by_cross_validation(folder: Path) -> None:
    texts = data.read("youtube", folder)
    split = measure.draw(texts, 0, 100)
    x = data.tf_idf(texts)[0]
    right = measure.few_shot(x, split).numpy() == texts.labels[split.rest]
    assert right.mean() > 0.9  # 0.6 is the larger class


def test_wrong_options(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--data", str(folder), "--sets", "imdb"]) == 2
    assert "set 'imdb'; expected" in capsys.readouterr().err
    assert command.main(["--data", str(folder), "--record"]) == 2
    assert "--record needs a clean tree, and --student" in capsys.readouterr().err


def test_committed_rows_are_complete() -> None:
    rows = command.load()
    by: dict[str, set[tuple[str, str, int]]] = {name: set() for name in data.DATA_SETS}
    for row in rows:
        by[row["data"]].add((row["features"], row["method"], row["seed"]))
        assert not row["dirty"] and row["labeled"] == measure.LABELED
    ways = {name: {way[:2] for way in found} for name, found in by.items()}
    assert ways["youtube"] == ways["sms"] == ways["sst2"]
    for name, found in by.items():
        assert len(found) == len(measure.SEEDS) * len(ways[name]) > 50


def mean_accuracy(name: str, features: str, method: str) -> float:
    way = (name, features, method)
    rows = [r for r in command.load() if (r["data"], r["features"], r["method"]) == way]
    return float(np.mean([row["accuracy"] for row in rows]))


def test_committed_rows_show_what_the_page_says() -> None:
    for name in ("youtube", "sst2"):
        for features in ("tf-idf", "encoder"):
            few = mean_accuracy(name, features, "few-shot")
            assert all(mean_accuracy(name, features, g) < few for g in measure.GENERATORS)
    for name in data.DATA_SETS:
        line = next(x for x in table.table(command.load(), name).splitlines() if "all func" in x)
        low, high = (float(x) for x in line.split(" | ")[8].split(" – "))
        assert low < 0 < high, "not distinguishable from few-shot on all features"
    few_words = mean_accuracy("sms", "tf-idf", "few-shot")
    assert all(mean_accuracy("sms", "tf-idf", g) > few_words for g in measure.GENERATORS)
    best = {
        features: max(mean_accuracy("sst2", features, g) for g in measure.GENERATORS)
        for features in ("tf-idf", "encoder")
    }
    assert (round(best["encoder"], 2), round(best["tf-idf"], 2)) == (0.7, 0.58)
    for name, features in (("youtube", "tf-idf"), ("youtube", "encoder"), ("sms", "encoder")):
        ten = mean_accuracy(name, features, f"affinity, {measure.CLUSTERS} clusters")
        assert ten > mean_accuracy(name, features, "affinity") + 0.1
        assert abs(ten - mean_accuracy(name, features, "few-shot")) < 0.05
