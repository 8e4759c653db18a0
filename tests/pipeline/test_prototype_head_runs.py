"""Heads of prototypes in a run: without a training, and as the start of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.generation_cases import checkpoint
from helpers.toy_run import config
from safetensors.torch import load_file

from w2s_fast.errors import W2SError
from w2s_fast.methods import Plan, make_steps, student_nodes
from w2s_fast.pipeline import run
from w2s_fast.pipeline.artifacts import FEATURES, LABELS, MODEL, TEST, read_probs
from w2s_fast.pipeline.context import load_data
from w2s_fast.probing import prototype_head
from w2s_fast.report.check_results import problem
from w2s_fast.report.page import html_page
from w2s_fast.tasks.datasets.agreement import tokenizer

PROTOTYPES, STARTED = "prototype_head", "prototype_head:train=true"


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path, Any]:
    out = tmp_path_factory.mktemp("run")
    source = str(checkpoint("llama", out / "llama", tokenizer()))
    methods = ["naive", PROTOTYPES, STARTED, "probe|prototype_head:train=true"]
    train = {"epochs": 1, "lr": 1e-5, "batch_size": 16}
    cfg = config(out, student={"source": source}, methods=methods, student_train=train)
    return run(cfg), out, load_data(cfg.task, 0)


def _folder(ran: Any, stage: str) -> Path:
    return ran[1] / "cache" / ran[0]["provenance"]["stages"][stage]["folder"]


def _head(ran: Any) -> torch.nn.Linear:
    """Return the head that the stored states and weak labels give."""
    stages = ran[0]["provenance"]["stages"]
    data, wide = ran[2], []
    for name in (n for n in stages if n.startswith("features/0")):
        states = load_file(_folder(ran, name) / FEATURES)["states"]
        wide += [states] if len(states) == len(data.transfer.ids) else []
    labels = read_probs(_folder(ran, "labels/0") / LABELS, data.transfer.ids, 2)
    return prototype_head(wide[0], labels)


def test_the_head_is_that_of_the_weak_labels(ran: Any) -> None:
    results, _, data = ran
    stored, expected = load_file(_folder(ran, f"student/0/{PROTOTYPES}+xent") / MODEL), _head(ran)
    assert torch.equal(stored["head.weight"], expected.weight.detach())
    assert torch.equal(stored["head.bias"], expected.bias.detach())
    probs = read_probs(
        _folder(ran, f"student/0/{PROTOTYPES}+xent") / TEST, data.test.ids, 2
    )  # fmt: skip
    assert np.ptp(probs) > 0.01
    assert problem(results) == ""
    assert f"{PROTOTYPES}+xent" not in [row["name"] for row in results["training"]]
    assert PROTOTYPES in html_page(results)


@pytest.mark.parametrize("method", [STARTED, "probe|prototype_head:train=true"])
def test_a_training_starts_from_the_head(ran: Any, method: str) -> None:
    """At this learning rate it moves little; the naive student starts from zero."""
    weights = load_file(_folder(ran, f"student/0/{method}+xent") / MODEL)
    start, naive = _head(ran), load_file(_folder(ran, "student/0/xent") / MODEL)
    for name, t in start.named_parameters():
        moved = (weights[f"head.{name}"] - t.detach()).abs().max()
        assert 0 < moved < 1e-3
        assert (naive[f"head.{name}"] - t.detach()).abs().max() > 1e-3


def test_methods_before_it_need_a_training() -> None:
    for spec in ("early_stop|prototype_head", "mixup|prototype_head"):
        with pytest.raises(W2SError, match="prototype_head trains nothing, and a method before"):
            student_nodes(make_steps(spec), Plan())
    student, _ = student_nodes(make_steps("early_stop|prototype_head:train=true"), Plan())
    assert dict(student.settings)["keep"] == "weak"
    assert "merge" not in dict(student.settings)
