"""The penalty on drift: against a loop in plain torch, over processes, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import ranks, sharded_training
from helpers.sharded_training import RECIPE, close, fit
from helpers.training_rows import BASE, N, encoded_rows, small_model, soft_labels
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.losses import make_loss
from w2s_fast.models import ModelConfig, build_model
from w2s_fast.models.classifier import pool
from w2s_fast.training import Encoded, encode, train
from w2s_fast.training.data import RowOrder

CFG = replace(BASE, anchor=0.7, schedule="constant", lr=3e-3)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from w2s_fast.tasks.datasets.agreement import tokenizer as agreement_tokenizer

    return agreement_tokenizer()


def states(model: Any, data: Encoded, rows: np.ndarray) -> Tensor:
    """What the head reads, of a preference both completions side by side."""
    batch = data.batch(rows)
    out = model.base(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
    return pool(out.last_hidden_state, batch.attention_mask, model.pooling).view(len(rows), -1)


def loop(
    model: Any, data: Encoded, weak: np.ndarray, weight: np.ndarray | None, strength: float
) -> list[float]:
    """AdamW in plain torch; the loss of every step."""
    every = np.arange(len(data))
    with torch.no_grad():
        initial = states(model, data, every)
    scale = initial.square().sum(1).mean()
    optimizer = torch.optim.AdamW(model.parameters(), lr=CFG.lr, weight_decay=0.0)
    order = RowOrder(len(data), CFG.batch_size, CFG.epochs, 0)
    losses = []
    for step in range(CFG.steps(len(data))):
        rows = order.rows(step)
        h = states(model, data, rows)
        z = model.head(h.view(-1, model.head.in_features)).view(len(rows), -1)
        w = torch.ones(len(rows)) if weight is None else torch.tensor(weight[rows]).float()
        row = -(torch.tensor(weak[rows]).float() * z.log_softmax(1)).sum(1)
        row = row + strength * (h - initial[rows]).square().sum(1) / scale
        loss = (w * row).sum() / w.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("weighted", [False, True])
def test_it_is_the_loop_of_its_formula(tokenizer: Any, weighted: bool) -> None:
    data, weak = encoded_rows(tokenizer), soft_labels()
    weight = np.random.default_rng(2).uniform(size=N) * (np.arange(N) % 3 > 0) if weighted else None
    ours, theirs = small_model(tokenizer), small_model(tokenizer)
    log = train(ours, data, weak, make_loss("xent"), CFG, 0, weight=weight)
    expected = loop(theirs, data, weak, weight, CFG.anchor)
    assert log["losses"] == pytest.approx(expected, abs=1e-5)
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(a, b, atol=2e-5), name


def test_both_completions_of_a_preference_are_anchored(tokenizer: Any) -> None:
    words = ["the", "old", "key", "near", "boy"]
    rng = np.random.default_rng(0)

    class Pairs:
        ids = tuple(map(str, range(N)))
        texts, pairs = (
            tuple(" ".join(rng.choice(words, rng.integers(1, 6))) for _ in range(N))
            for _ in range(2)
        )

    data = encode(tokenizer, Pairs, kind="preference")
    cfg = ModelConfig("scratch", hidden=16, heads=2, head_init="small")
    ours, theirs = (build_model(cfg, 2, tokenizer, 0, "preference") for _ in range(2))
    log = train(ours, data, soft_labels(), make_loss("xent"), CFG, 0)
    assert log["losses"] == pytest.approx(
        loop(theirs, data, soft_labels(), None, CFG.anchor), abs=1e-5
    )


def drift(model: Any, tokenizer: Any) -> float:
    data = encoded_rows(tokenizer)
    with torch.no_grad():
        now, then = (states(m, data, np.arange(N)) for m in (model, small_model(tokenizer)))
    return float((now - then).square().sum() / then.square().sum())


def test_more_strength_is_less_drift(tokenizer: Any) -> None:
    drifts = []
    for strength in (0.0, 0.02, 1.0):
        model = small_model(tokenizer)
        cfg = replace(CFG, anchor=strength, epochs=8, schedule="cosine")
        train(model, encoded_rows(tokenizer), soft_labels(), make_loss("xent"), cfg, 0)
        drifts.append(drift(model, tokenizer))
        assert not model.head._forward_pre_hooks
    assert drifts[0] > 2 * drifts[1] and drifts[1] > 2 * drifts[2] > 0


def test_micro_batches_change_nothing() -> None:
    whole = fit(anchor=0.5, batch_size=16)
    close(fit(anchor=0.5, batch_size=16, micro_batch_size=4), whole)
    assert not np.allclose(whole["weights"], fit(batch_size=16)["weights"], atol=1e-3)


def test_a_resumed_training_has_the_anchor_of_its_beginning(tmp_path: Path) -> None:
    straight = fit(anchor=0.5, **RECIPE)
    assert fit(anchor=0.5, **RECIPE, directory=str(tmp_path), stop=5) == {}
    resumed = fit(anchor=0.5, **RECIPE, directory=str(tmp_path))
    assert resumed["weights"] == straight["weights"] and resumed["losses"] == straight["losses"]
    with pytest.raises(W2SError, match="anchor"):
        fit(anchor=0.25, **RECIPE, directory=str(tmp_path))


def test_checkpoints_without_an_anchor_are_those_of_before(tmp_path: Path) -> None:
    fit(**RECIPE, directory=str(tmp_path), stop=5)
    state, *_ = tmp_path.glob("step-*/state.json")
    assert "anchor" not in json.loads(state.read_text())["training"]


def test_a_head_alone_does_not_drift(tokenizer: Any) -> None:
    weights = []
    for strength in (0.0, 5.0):
        model = small_model(tokenizer, freeze="base")
        cfg = replace(CFG, anchor=strength)
        train(model, encoded_rows(tokenizer), soft_labels(), make_loss("xent"), cfg, 0)
        weights.append(model.head.weight.detach())
    assert torch.equal(*weights)


def test_the_hook_is_removed_after_an_error(tokenizer: Any) -> None:
    model = small_model(tokenizer)
    with pytest.raises(W2SError, match="the loss is"):
        train(model, encoded_rows(tokenizer), soft_labels(), make_loss("xent"),
              replace(CFG, lr=1e18), 0)  # fmt: skip
    assert not model.head._forward_pre_hooks


def test_models_without_states_are_refused(tokenizer: Any) -> None:
    model = build_model(ModelConfig("bow"), 2, tokenizer, 0)
    with pytest.raises(W2SError, match="anchor is 0.7, and BagOfWords learns Encoded; expected a"):
        train(model, encoded_rows(tokenizer), soft_labels(), make_loss("xent"), CFG, 0)
    with pytest.raises(W2SError, match="anchor is -1"):
        replace(CFG, anchor=-1.0)


@pytest.mark.slow
@pytest.mark.dist
def test_processes_and_stages_penalise_alike(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    stages = (0, 1, 2, 3) if ranks.LONG else (2, 3)
    recipe = {"anchor": 0.5, "batch_size": 8, "micro_batch_size": 2, "clip_norm": 0.5}
    out = tmp_path / "out.json"
    jobs = [{**recipe, "zero_stage": stage} for stage in stages]
    ranks.run(sharded_training.__file__, 2, {"fits": jobs, "out": str(out)})
    alone = fit(**recipe)
    for stage, got in zip(stages, json.loads(out.read_text()), strict=True):
        try:
            close(got, alone)
        except AssertionError as e:
            raise AssertionError(f"stage {stage}: {e}") from e
