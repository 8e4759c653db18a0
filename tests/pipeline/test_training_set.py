"""The training set of a stage, and the rows that are held out to evaluate it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.toy_run import config

from w2s_fast.config import RunConfig
from w2s_fast.errors import W2SError
from w2s_fast.methods import Method, Node, Plan, Targets, make_method
from w2s_fast.pipeline import run
from w2s_fast.pipeline.context import load_data
from w2s_fast.pipeline.stages.training_set import group_split


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_a_share_is_held_out_by_whole_groups(share: float) -> None:
    groups = tuple(f"g{i // 2}" for i in range(1000))
    held = group_split(groups, share, seed=0)
    assert abs(held.mean() - share) < 0.01
    assert np.array_equal(held[::2], held[1::2])
    assert np.array_equal(held, group_split(groups, share, seed=0))
    assert not np.array_equal(held, group_split(groups, share, seed=1))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weigh(Method):
    """Gives the first half of the rows one weight, and the others one."""

    first: float

    def labels(self, plan: Plan, labels: Node) -> Node:
        return plan.apply(self.weigh, weak=labels)

    def weigh(self, weak: Targets, seed: int) -> Targets:
        n = len(weak.probs)
        weight = np.where(np.arange(n) < n // 2, self.first, 1.0).astype(np.float32)
        return dataclasses.replace(weak, weight=weight)


@pytest.mark.parametrize(
    ("spec", "problem"),
    [("Weigh", "has no first; add first="), ("Weigh:first=x", "expected float")],
)
def test_a_field_without_a_default(spec: str, problem: str) -> None:
    with pytest.raises(W2SError, match=problem):
        make_method(f"{__name__}:{spec}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fold(Method):
    """Labels of a supervisor that did not learn one half of its half."""

    def labels(self, plan: Plan, labels: Node) -> Node:
        return plan.labels(plan.weak_model(fold=0))


def logs(tmp_path: Path, *methods: str) -> tuple[RunConfig, list[dict[str, Any]]]:
    """What was logged of the student of each method, in batches of four."""
    cfg = config(tmp_path, methods=methods, student_train={"batch_size": 4, "lr": 0.1})
    stages = run(cfg, quiet=True)["provenance"]["stages"]
    names = ["xent" if m == "naive" else f"{m}+xent" for m in methods]
    folders = [cfg.store_dir / stages[f"student/0/{name}"]["folder"] for name in names]
    return cfg, [json.loads((folder / "log.json").read_text()) for folder in folders]


def test_rows_that_decide_when_to_stop_are_not_learned(tmp_path: Path) -> None:
    cfg, (naive, stopped) = logs(tmp_path, "naive", "early_stop")
    steps, transfer = cfg.student_train.steps, load_data(cfg.task, 0).transfer
    n, held = len(transfer.ids), int(group_split(transfer.inputs.groups, 0.1, 0).sum())
    assert naive["steps"] == steps(n) > stopped["steps"] == steps(n - held)


def test_rows_of_weight_0_cost_no_step_and_other_weights_count(tmp_path: Path) -> None:
    kinds = [f"{__name__}:Weigh:first={first}" for first in (0, 0.25, 1)]
    cfg, (naive, none, less, all_) = logs(tmp_path, "naive", *kinds)
    n = len(load_data(cfg.task, 0).transfer.ids)
    assert none["steps"] == cfg.student_train.steps(n // 2)
    assert less["steps"] == cfg.student_train.steps(n)
    assert all_["losses"] == naive["losses"] != less["losses"]


def test_a_fold_is_left_out_of_the_supervisors_half(tmp_path: Path) -> None:
    methods, recipe = ["naive", f"{__name__}:Fold"], {"batch_size": 1, "epochs": 1, "lr": 0.1}
    cfg = config(tmp_path, methods=methods, weak_train=recipe)
    stages = run(cfg, quiet=True)["provenance"]["stages"]
    folders = [cfg.store_dir / s["folder"] for name, s in stages.items() if name.startswith("weak")]
    steps = [json.loads((folder / "log.json").read_text())["steps"] for folder in folders]
    groups = load_data(cfg.task, 0).weak.groups
    n_fold = int(group_split(groups, 0.5, 0).sum())  # fold 1
    assert 0 < n_fold < len(groups) and sorted(steps) == [n_fold, len(groups)]
