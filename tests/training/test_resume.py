"""Resuming a training: bit for bit the straight run, or an error that says why not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.training_rows import BASE, encoded_rows, small_model, soft_labels
from torch import nn

from w2s_fast.errors import W2SError
from w2s_fast.losses import make_loss
from w2s_fast.models import ModelConfig, build_model
from w2s_fast.models.weights import module_tensors
from w2s_fast.tasks.datasets.agreement import tokenizer as agreement_tokenizer
from w2s_fast.training import Encoded, train
from w2s_fast.training.checkpoint import finished
from w2s_fast.training.engine import PlainEngine


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return agreement_tokenizer()


@pytest.fixture(scope="module")
def data(tokenizer: Any) -> Encoded:
    return encoded_rows(tokenizer)


@pytest.fixture(scope="module")
def soft() -> np.ndarray:
    return soft_labels()


@pytest.mark.parametrize(
    "case",
    ["plain", "bf16", "average", "moving", "interpolated", "dropout", "eleuther", "window", "ema"],
)
def test_resume_is_the_straight_run(
    case: str, tokenizer: Any, data: Encoded, soft: np.ndarray, tmp_path: Path
) -> None:
    """Stopped inside step 5 with a checkpoint at 4: same final weights and log, bit for bit."""
    cfg = replace(
        BASE,
        checkpoint_every=2,
        micro_batch_size=4,
        dropout=case == "dropout",
        average_frac=0.5 if case == "average" else 0.0,  # the last three of six steps
        ema_decay=0.7 if case == "moving" else 0.0,
        interpolation=0.4 if case == "interpolated" else 1.0,
        threshold_scope=case if case in ("window", "ema") else "exact",
    )
    loss = make_loss("logconf_eleuther" if case == "eleuther" else "logconf")

    def fresh() -> nn.Module:
        model = small_model(tokenizer, "bf16" if case == "bf16" else "fp32")
        for module in model.modules():
            if hasattr(module, "attention_dropout"):
                module.attention_dropout = 0.3
        return model

    class Killed(Exception):
        pass

    def kill(step: int, _steps: int, _loss: float) -> None:
        if step == 5:
            raise Killed

    straight = fresh()
    log = train(straight, data, soft, loss, cfg, 3)
    with pytest.raises(Killed):
        train(fresh(), data, soft, loss, cfg, 3, checkpoint_dir=tmp_path, progress=kill)
    assert [p.name for p in finished(tmp_path)] == ["step-00000002", "step-00000004"]
    torch.manual_seed(999)
    resumed, done = fresh(), []
    again = train(
        resumed, data, soft, loss, cfg, 3,
        checkpoint_dir=tmp_path, progress=lambda s, _n, _l: done.append(s),
    )  # fmt: skip
    assert done[0] == 5 and again["losses"] == log["losses"]
    assert again["agreement"] == log["agreement"]
    for name, t in module_tensors(straight).items():
        assert torch.equal(t, module_tensors(resumed)[name]), name


def test_checkpoint_of_another_training_is_refused(
    tokenizer: Any, data: Encoded, soft: np.ndarray, tmp_path: Path
) -> None:
    cfg = replace(BASE, checkpoint_every=2)
    train(small_model(tokenizer), data, soft, make_loss("xent"), cfg, 0, checkpoint_dir=tmp_path)

    def refused(match: str, targets: np.ndarray = soft, spec: str = "xent", **fields: Any) -> None:
        with pytest.raises(W2SError, match=match):
            train(
                small_model(tokenizer), data, targets, make_loss(spec), replace(cfg, **fields), 0,
                checkpoint_dir=tmp_path,
            )  # fmt: skip

    refused("lr was 0.01, now it is 0.02", lr=0.02)
    refused("loss was Xent", spec="logconf")
    refused("targets was", targets=soft[::-1].copy())
    other = small_model(tokenizer)
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(1 + 1e-5)  # another processor rounds so
    train(other, data, soft, make_loss("xent"), cfg, 0, checkpoint_dir=tmp_path)
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(1.1)
    with pytest.raises(W2SError, match="it began with other weights, which differ by up to 0"):
        train(other, data, soft, make_loss("xent"), cfg, 0, checkpoint_dir=tmp_path)
    before, newest = finished(tmp_path)
    train(
        small_model(tokenizer), data, soft, make_loss("xent"), replace(cfg, checkpoint_every=3), 0,
        checkpoint_dir=tmp_path,
    )  # fmt: skip
    assert finished(tmp_path) == [before, newest]  # the last two
    weights = newest / "state-00000.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + b"?")  # one byte
    with pytest.warns(UserWarning, match="differs from its checksum.; continuing from step"):
        refused("lr was 0.01, now it is 0.02", lr=0.02)


class Killed(Exception):
    pass


def _kill_at_three(step: int, _steps: int, _loss: float) -> None:
    if step == 3:
        raise Killed


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ({"dtype": "fp32"}, {"dtype": "bf16"}, "dtype was torch.float32, now it is torch.bfloat16"),
        ({"dtype": "bf16"}, {"dtype": "fp32"}, "dtype was torch.bfloat16, now it is torch.float32"),
        ({}, {"heads": 4}, "form.base.config.head_dim was 8, now it is 4"),
        ({}, {"pooling": "mean"}, "form.pooling was last, now it is mean"),
        ({"lora_rank": 2}, {"lora_rank": 2, "lora_alpha": 32}, "lora_alpha was 16, now it is 32"),
    ],
)
def test_a_checkpoint_of_another_model_of_the_same_shapes_is_refused(
    before: dict[str, Any],
    after: dict[str, Any],
    says: str,
    tokenizer: Any,
    data: Encoded,
    soft: np.ndarray,
    tmp_path: Path,
) -> None:
    """Its weights would fit, and the numbers would be wrong without a word."""
    if "lora_rank" in before:
        pytest.importorskip("peft")

    def fit(fields: dict[str, Any], **options: Any) -> dict[str, Any]:
        cfg = replace(BASE, checkpoint_every=2)
        model = build_model(
            ModelConfig("scratch", **{"hidden": 16, "heads": 2} | fields), 2, tokenizer, 0
        )
        return train(
            model, data, soft, make_loss("xent"), cfg, 0, checkpoint_dir=tmp_path, **options
        )

    with pytest.raises(Killed):
        fit(before, progress=_kill_at_three)
    with pytest.raises(W2SError, match=f"is of another training: .*{says}; use another directory"):
        fit(after)
    fit(before)


def test_masters_that_were_not_saved_begin_with_the_saved_weights() -> None:
    """As where a layer of a model with several dtypes was fp32, and is bf16 now."""
    torch.manual_seed(0)
    fp32, bf16 = nn.Linear(3, 2), nn.Linear(3, 2).bfloat16()
    saved = dict(PlainEngine(fp32, BASE).tensors())
    engine = PlainEngine(bf16, BASE)
    engine.load(saved.get)
    for name, master in engine.masters():
        assert torch.equal(master, fp32.state_dict()[name])
        assert torch.equal(bf16.state_dict()[name], master.bfloat16())
