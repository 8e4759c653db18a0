"""Chains of methods in runs: a longer chain computes what is new, and a rule picks the round."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from helpers.toy_run import config

from w2s_fast.config import RunConfig
from w2s_fast.methods._rounds import round_agreement, settled_round
from w2s_fast.pipeline import run
from w2s_fast.pipeline.artifacts import LABELS, read_probs
from w2s_fast.pipeline.context import load_data

ROUNDS = ("small_loss", "strong_to_strong", "confident:low=0.45,high=0.55", "strong_to_strong")


def chain(out: Path, *methods: str, name: str = "out") -> RunConfig:
    return config(
        out / name,
        methods=list(methods),
        cache_dir=str(out / "cache"),
        student={"source": "scratch", "hidden": 16, "heads": 2, "layers": 1},
    )


def finished(cfg: RunConfig) -> set[str]:
    return {path.name for path in cfg.store_dir.iterdir() if path.is_dir() and path.name[0] != "."}


def of_stages(folders: set[str]) -> list[str]:
    return sorted(folder.partition("-")[0] for folder in folders)


def test_a_longer_chain_computes_only_its_new_rounds(tmp_path: Path) -> None:
    run(cfg := chain(tmp_path, ROUNDS[0]))
    before = finished(cfg)
    run(chain(tmp_path, "|".join(ROUNDS[:2]), name="two"))
    two = finished(cfg)
    assert before < two
    assert of_stages(two - before) == ["labels", "report", "student"]
    run(chain(tmp_path, "|".join(ROUNDS), name="four"))
    assert of_stages(finished(cfg) - two) == [
        "apply", "labels", "report", "student", "student"
    ]  # fmt: skip
    everything = finished(cfg)
    run(chain(tmp_path, "|".join(ROUNDS), name="again"))
    assert finished(cfg) == everything


def test_the_student_learns_the_labels_of_the_round_that_settled(tmp_path: Path) -> None:
    spec = "strong_to_strong:rounds=3,stop=agreement"
    cfg = chain(tmp_path, "naive", "strong_to_strong:rounds=3", spec)
    results = run(cfg)
    assert results["gold"] == []
    stages = results["provenance"]["stages"]
    ids = load_data(cfg.task, 0).transfer.ids

    def labels(name: str) -> np.ndarray:
        return read_probs(cfg.store_dir / stages[name]["folder"] / LABELS, ids, 2)

    own = [name for name in stages if name.startswith("labels/0/strong")]
    rounds = [labels("labels/0"), *map(labels, sorted(own))]
    assert len(rounds) == 4
    best = settled_round(round_agreement(rounds, np.ones(len(ids), bool)))
    assert np.array_equal(labels(f"apply/0/{spec}+xent/1"), rounds[best])
