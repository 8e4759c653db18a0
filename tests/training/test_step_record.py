"""Every optimizer step leaves a record; its numbers are those that the step used."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from w2s_fast.files import file_hash, read_sealed, write_sealed
from w2s_fast.losses import make_loss
from w2s_fast.models import ModelConfig, build_model
from w2s_fast.models.text_tokenizer import train_tokenizer
from w2s_fast.training import StepRecord, TrainConfig, encode, train
from w2s_fast.training.checkpoint import finished
from w2s_fast.training.data import Encoded
from w2s_fast.training.step_record import step_series

N, CFG = 24, TrainConfig(epochs=2, batch_size=8, lr=0.05, warmup_frac=0.5)


class Texts:
    """Short texts of different lengths."""

    texts = tuple(" ".join(["key", "cat", "dog", "sun"][: 1 + i % 4]) for i in range(N))
    ids, pairs, prompts = texts, None, None


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer(list(Texts.texts))


@pytest.fixture(scope="module")
def data(tokenizer: Any) -> Encoded:
    return encode(tokenizer, Texts)


@pytest.fixture(scope="module")
def soft() -> np.ndarray:
    p = np.random.default_rng(0).uniform(0.1, 0.9, N)
    return np.stack([p, 1 - p], 1).astype(np.float32)


def fresh(tokenizer: Any) -> nn.Module:
    return build_model(ModelConfig("bow"), 2, tokenizer, 0)


def records_of(
    tokenizer: Any, data: Encoded, soft: np.ndarray, spec: str = "logconf", **fields: Any
) -> list[StepRecord]:
    records: list[StepRecord] = []
    cfg = replace(CFG, **fields)
    train(fresh(tokenizer), data, soft, make_loss(spec), cfg, 0, on_step=records.append)
    return records


def test_a_record_has_what_the_step_used(tokenizer: Any, data: Encoded, soft: np.ndarray) -> None:
    loss, records = make_loss("logconf"), records_of(tokenizer, data, soft)
    assert [r.step for r in records] == list(range(1, 7))
    assert [r.coefficient for r in records] == [loss.coefficient(i / 6, i) for i in range(6)]
    assert [r.lr for r in records] == [CFG.lr_at(i, 6) for i in range(6)]
    assert sum(r.tokens for r in records) == 2 * int(data.lengths.sum())  # two epochs
    assert len({r.tokens for r in records}) > 1
    seconds = [r.seconds for r in records]
    assert seconds == sorted(seconds) and seconds[0] > 0


def test_the_threshold_is_the_probability_that_the_batch_is_divided_at(
    tokenizer: Any, data: Encoded, soft: np.ndarray
) -> None:
    whole = records_of(tokenizer, data, soft, batch_size=N, epochs=1)[0]
    model, rows = fresh(tokenizer), data.batch(np.arange(N))
    with torch.no_grad():
        logits = model(rows.input_ids, rows.attention_mask)
    margin = make_loss("logconf").threshold(logits, torch.from_numpy(soft))
    assert margin is not None and whole.threshold == pytest.approx(
        float(margin.sigmoid()), abs=1e-6
    )
    parts = records_of(tokenizer, data, soft, batch_size=N, epochs=1, micro_batch_size=5)[0]
    assert parts.threshold == pytest.approx(whole.threshold, abs=1e-6)
    assert all(math.isnan(r.threshold) for r in records_of(tokenizer, data, soft, "xent"))


def test_the_gradient_norm_is_taken_before_clipping(
    tokenizer: Any, data: Encoded, soft: np.ndarray
) -> None:
    free = records_of(tokenizer, data, soft, "xent", batch_size=N)
    clipped = records_of(tokenizer, data, soft, "xent", batch_size=N, clip_norm=1e-3)
    model, rows = fresh(tokenizer), data.batch(np.arange(N))
    logits = model(rows.input_ids, rows.attention_mask)
    torch.nn.functional.cross_entropy(logits, torch.from_numpy(soft)).backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    norm = float(torch.nn.utils.get_total_norm(grads))
    assert norm > 1e-2
    assert free[0].grad_norm == pytest.approx(norm, rel=1e-4) == clipped[0].grad_norm


def _forget_columns(checkpoint: Path) -> None:
    """Make the log of a checkpoint what earlier versions wrote: loss and agreement."""
    from safetensors.torch import save_file

    path = checkpoint / "state-00000.safetensors"
    tensors = load_file(path)
    tensors["log.steps"] = tensors["log.steps"][:, :2].contiguous()
    save_file(tensors, path)
    meta = read_sealed(checkpoint / "state.json")
    meta.pop("sha256", None)
    meta["files"][path.name] = file_hash(path)
    write_sealed(checkpoint / "state.json", meta)


@pytest.mark.parametrize("earlier", [False, True], ids=["own", "earlier version"])
def test_a_resumed_training_continues_its_records(
    earlier: bool, tokenizer: Any, data: Encoded, soft: np.ndarray, tmp_path: Path
) -> None:
    class Killed(Exception):
        pass

    def kill(step: int, _steps: int, _loss: float) -> None:
        if step == 5:
            raise Killed

    loss, cfg = make_loss("logconf"), replace(CFG, checkpoint_every=2)
    straight = train(fresh(tokenizer), data, soft, loss, cfg, 0)
    with pytest.raises(Killed):
        train(fresh(tokenizer), data, soft, loss, cfg, 0, checkpoint_dir=tmp_path, progress=kill)
    newest = finished(tmp_path)[-1]
    if earlier:
        _forget_columns(newest)
    records: list[StepRecord] = []
    log = train(
        fresh(tokenizer), data, soft, loss, cfg, 0, checkpoint_dir=tmp_path, on_step=records.append
    )
    assert [r.step for r in records] == [5, 6]
    assert log["losses"] == straight["losses"] and log["agreement"] == straight["agreement"]
    for name in ("threshold", "coefficient", "grad_norm", "lr"):
        assert log[name] == ([None] * 4 + straight[name][4:] if earlier else straight[name]), name
    json.dumps(log, allow_nan=False)


def test_a_quantity_without_a_value_has_no_series() -> None:
    nan = math.nan
    records = [StepRecord(i, 1.0, nan, nan, 0.0, math.inf, 0.1, 5, 0.0) for i in (1, 2)]
    series = step_series(records)
    assert series["threshold"] == series["grad_norm"] == series["agreement"] == []
    assert series["losses"] == [1.0, 1.0] and series["tokens"] == [5, 5]
    assert "seconds" not in series  # equal trainings write equal logs
