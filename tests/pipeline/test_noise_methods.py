"""Students that resist noise, in runs: what their stages train and store, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.toy_run import config
from safetensors.torch import load_file

from w2s_fast.config import RunConfig
from w2s_fast.errors import W2SError
from w2s_fast.pipeline import run
from w2s_fast.pipeline.check_fit import check_fit
from w2s_fast.pipeline.context import load_data
from w2s_fast.pipeline.stages.training_set import group_split

PRETRAIN = {"hidden": 16, "layers": 2, "heads": 2, "steps": 12, "batch_size": 4, "length": 32}


def _config(out: Path, methods: list[str], **changes: Any) -> RunConfig:
    task = {"n_weak": 40, "n_transfer": 64, "n_test": 40, "pretrain": PRETRAIN}
    recipe = {"epochs": 2, "lr": 0.01, "batch_size": 8}
    student = {"source": "agreement-lm"}
    values = {"task": task, "student": student, "student_train": recipe, "methods": methods}
    return config(out, **{**values, **changes})


def _students(cfg: RunConfig) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Log and weights of every student, in order of the methods."""
    stages = run(cfg, quiet=True)["provenance"]["stages"]
    folders = [cfg.store_dir / s["folder"] for n, s in stages.items() if n.startswith("student/")]
    return [
        (json.loads((f / "log.json").read_text()), load_file(f / "model.safetensors"))
        for f in folders
    ]


@pytest.mark.slow
def test_nested_dropout_keeps_the_width_of_held_out_rows(tmp_path: Path) -> None:
    specs = ["naive", "nested_dropout:sigma=4", "probe|nested_dropout:sigma=4,holdout=0.3"]
    cfg = _config(tmp_path, [*specs, "nested_dropout:sigma=40,holdout=0"])
    (naive, _), *nested, (plain, whole) = _students(cfg)
    groups = load_data(cfg.task, 0).transfer.groups
    for (log, weights), share in zip(nested, (0.1, 0.3), strict=True):
        held = int(group_split(groups, share, 0).sum())
        assert log["steps"] == cfg.student_train.steps(len(groups) - held) < naive["steps"]
        width = log["head_width"]
        assert 1 <= width <= 16 and (weights["head.weight"][:, width:] == 0).all()
        assert (weights["head.weight"][:, :1] != 0).any()
    assert plain["steps"] == naive["steps"] and plain["losses"] != naive["losses"]
    assert "head_width" not in plain and (whole["head.weight"] != 0).any(0).all()


def test_models_without_a_head_are_refused_at_once(tmp_path: Path) -> None:
    for changes in (
        {"methods": ["nested_dropout"]},
        {"methods": ["naive"], "student_train": {"nested_dropout": 4.0}},
    ):
        with pytest.raises(W2SError, match="works on the input of a linear head.*'bow'"):
            cfg = _config(tmp_path, **{"student": {"source": "bow"}, **changes})
            check_fit(cfg, "classification", 2)
    check_fit(_config(tmp_path, ["nested_dropout"]), "classification", 2)
