"""Students trained on pairs, and policies, by several processes and after kills."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers import ranks
from helpers.process_runs import (
    Kill,
    arrays_of,
    assert_close,
    assert_kills_change_no_byte,
    run,
    write_run,
)
from helpers.search_trees import write_trees
from helpers.text_runs import SCRATCH, policy_run, text_run

pytest.importorskip("deepspeed")
pytestmark = [pytest.mark.slow, pytest.mark.dist]
CONTRAST = "helpers.text_methods:Contrast"


def tree_pairs(folder: Path) -> str:
    """Write trees of two rounds for the sums of ``text_run``, and return the method's spec."""
    cfg = text_run(folder, ["naive"])
    files = [write_trees(folder / f"{wrong}.jsonl", cfg, wrong) for wrong in "78"]
    return f"tree_pairs:files={files[0]};{files[1]}"


@pytest.mark.parametrize(
    ("kind", "stages"),
    zip(["text", "methods", "policy", "wspo policy"], [*ranks.ZERO_STAGES, (3,)], strict=True),
)
def test_two_processes_equal_one(kind: str, stages: tuple[int, ...], tmp_path: Path) -> None:
    methods = ["wspo:base=naive", "delta", "easy_to_hard", tree_pairs(tmp_path)]

    def finished(name: str, n: int, zero: int) -> dict[str, np.ndarray]:
        folder = tmp_path / name
        folder.mkdir()
        if kind == "policy":
            cfg = policy_run(folder, "dpo:beta=0.5", losses=["logconf"])
        elif kind == "wspo policy":
            cfg = policy_run(folder, "dpo:beta=0.5", student={**SCRATCH, "preference": "wspo"})
        else:
            cfg = text_run(folder, [f"{CONTRAST}:loss=dpo_norm"] if kind == "text" else methods)
        run(n, write_run(folder, cfg, zero_stage=zero))
        return arrays_of(folder)

    one = finished("one", 1, 0)
    assert len(one) >= 3
    if kind == "methods":  # the naive student and five more: of WSPO, delta, easy to hard, rounds
        assert len([name for name in one if name.endswith(" losses")]) == 6
    for zero in stages:
        assert_close(finished(f"two-{zero}", 2, zero), one, zero)


def test_kills_change_no_byte(tmp_path: Path) -> None:
    """Killed in the samples of a generator, and in a student of every method."""
    trees = tree_pairs(tmp_path)
    methods = ["delta", "easy_to_hard", trees]

    def job(folder: Path) -> list[str]:
        folder.mkdir()
        return write_run(folder, text_run(folder, methods), checkpoint_every=2)

    delta, easy, rounds = (f"{method}+xent" for method in methods)
    kills = [
        Kill(f"samples/0/{delta}/1", "part", 2),
        Kill(f"student/0/{delta}", "checkpoint"),
        Kill(f"student/0/{easy}", "checkpoint", 2),
        Kill(f"student/0/{rounds}", "checkpoint"),
    ]
    assert_kills_change_no_byte(job, kills, tmp_path)
