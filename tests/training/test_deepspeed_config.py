"""The DeepSpeed configuration: derived, merged with a user's own, and refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import ranks, sharded_training

from w2s_fast.distributed.world import SINGLE_PROCESS, World
from w2s_fast.errors import W2SError
from w2s_fast.training import TrainConfig, engine_choice
from w2s_fast.training.deepspeed.config import deepspeed_config, precision_settings
from w2s_fast.training.deepspeed.engine import DeepSpeedEngine
from w2s_fast.training.engine_choice import make_engine

pytest.importorskip("deepspeed")
BASE = TrainConfig(batch_size=48, micro_batch_size=4, zero_stage=3, clip_norm=0.5, lr=1e-4)


def test_derived() -> None:
    got = deepspeed_config(BASE, "bf16", 4, cuda=True)
    assert got["train_batch_size"] == 48 and got["gradient_accumulation_steps"] == 3
    assert got["train_micro_batch_size_per_gpu"] == 4 and got["gradient_clipping"] == 0.5
    assert got["bf16"]["enabled"] and not got["fp16"]["enabled"]
    assert got["data_types"] == {"grad_accum_dtype": "fp32"}
    assert got["zero_optimization"]["stage"] == 3 and got["zero_optimization"]["overlap_comm"]
    assert got["optimizer"]["params"]["lr"] == 1e-4
    assert "torch_adam" not in got["optimizer"]["params"]  # FusedAdam on a GPU
    moved = replace(BASE, offload_optimizer="cpu", offload_params="nvme", nvme_path="/fast")
    zero = deepspeed_config(moved, "fp32", 4, cuda=False)["zero_optimization"]
    assert zero["offload_optimizer"] == {"device": "cpu", "pin_memory": False}
    assert zero["offload_param"]["nvme_path"] == "/fast"


@pytest.mark.parametrize(("size", "fits"), [(5, "use 45 or 50"), (64, "use 64, or another")])
def test_a_batch_that_does_not_split(size: int, fits: str) -> None:
    with pytest.raises(W2SError, match=f"does not split over {size} processes; {fits}"):
        BASE.batch_shape(size)
    with pytest.raises(W2SError, match="does not split over 5"):
        make_engine(torch.nn.Linear(2, 2), replace(BASE, zero_stage=0), World(0, 5, 0))
    assert BASE.batch_shape(2) == (4, 6)
    assert replace(BASE, batch_size=2).batch_shape(2) == (1, 1)
    assert replace(BASE, micro_batch_size=None).batch_shape(3) == (16, 1)


def _own(tmp_path: Path, **settings: Any) -> TrainConfig:
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(settings))
    return replace(BASE, deepspeed_config=str(path))


def test_a_users_own(tmp_path: Path) -> None:
    cfg = _own(
        tmp_path,
        train_batch_size="auto",
        optimizer={
            "params": {
                "lr": 1e-4,
                "betas": [0.9, 0.999],
                "adam_w_mode": True,
                "bias_correction": True,
            }
        },
        zero_optimization={"stage": 3, "overlap_comm": False, "stage3_max_live_parameters": 10**6},
        wall_clock_breakdown=True,
    )
    got = deepspeed_config(cfg, "fp32", 4, cuda=True)
    assert got["train_batch_size"] == 48 and got["wall_clock_breakdown"] is True
    assert set(got["optimizer"]["params"]) == {"lr", "betas", "eps", "weight_decay"}
    zero = got["zero_optimization"]
    assert zero["overlap_comm"] is False and zero["stage3_max_live_parameters"] == 10**6
    assert zero["reduce_bucket_size"] > 0 and got["optimizer"]["type"] == "AdamW"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"zero_optimisation": {}}, "'zero_optimisation'; did you mean 'zero_optimization'"),
        (
            {"zero_optimization": {"stage3_prefetch_bucket": 1}},
            "zero_optimization.stage3_prefetch_bucket; did you mean",
        ),
        ({"zero_optimization": {"reduce_bucket_size": -1}}, "zero_optimization.reduce_bucket_size"),
        ({"zero_optimization": []}, r"zero_optimization is \[\]; expected"),
        ({"zero_optimization": {"stage": 2}}, "stage is 2, this training needs 3; change zero"),
        ({"train_batch_size": 64}, "train_batch_size is 64, this training needs 48"),
        (
            {"optimizer": {"params": {"lr": 1.0}}},
            "lr is 1.0, this training needs 0.0001; change",
        ),
        ({"fp16": {"enabled": True}}, "fp16.enabled is True, this training needs False"),
        ({"optimizer": []}, r"optimizer is \[\]; expected"),
        ({"optimizer": {"params": []}}, r"optimizer is .*; expected"),
        (
            {"optimizer": {"settings": {"lr": 1}}},
            "leave out optimizer.settings; expected type and params",
        ),
        ({"optimizer": {"params": {"foreach": True}}}, "leave out optimizer.params.foreach"),
        ({"optimizer": {"params": {"maximize": True}}}, "leave out optimizer.params.maximize: it"),
        ({"optimizer": {"params": {"adam_w_mode": False}}}, "adam_w_mode is False; leave it out"),
        ({"optimizer": {"params": {"beta": 1}}}, "params.beta: it .* did you mean 'betas'"),
        ({"scheduler": {}}, "leave out 'scheduler': the learning rate comes from schedule"),
        ({"prescale_gradients": True}, "leave out 'prescale_gradients'"),
        ({"steps_per_print": "auto", "dump_state": "auto"}, 'dump_state is "auto"; leave it out'),
    ],
)
def test_a_users_own_refused(settings: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(W2SError, match=message) as caught:
        deepspeed_config(_own(tmp_path, **settings), "fp32", 4, cuda=True)
    assert "\n" not in str(caught.value)


def test_precision_is_part_of_what_is_trained(tmp_path: Path) -> None:
    assert precision_settings(BASE) == precision_settings(_own(tmp_path)) == {}
    plain = _own(
        tmp_path,
        wall_clock_breakdown=True,
        bf16={"enabled": True},
        fp16={"enabled": "auto", "loss_scale": "auto"},
        zero_optimization={"stage": 3, "reduce_bucket_size": 10**6},
    )
    assert precision_settings(plain) == {}
    rounded = {
        "bf16": {"bf16_master_weights_and_grads": True},
        "data_types": {"grad_accum_dtype": "bf16"},
        "communication_data_type": "fp16",
        "zero_optimization": {"zero_quantized_gradients": True},
    }
    assert precision_settings(_own(tmp_path, **rounded)) == {
        "bf16.bf16_master_weights_and_grads": True,
        "data_types.grad_accum_dtype": "bf16",
        "communication_data_type": "fp16",
        "zero_optimization.zero_quantized_gradients": True,
    }


@pytest.mark.slow
@pytest.mark.dist
def test_a_checkpoint_of_another_precision_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ds.json"
    cell = {**sharded_training.RECIPE, "zero_stage": 1, "directory": str(tmp_path / "checkpoint")}
    cell |= {"deepspeed_config": str(path)}
    out = str(tmp_path / "out.json")
    path.write_text('{"data_types": {"grad_accum_dtype": "fp32"}}')
    ranks.run(sharded_training.__file__, 1, {"fits": [{**cell, "stop": 5}], "out": out})
    path.write_text("{}")
    job = json.dumps({"fits": [cell], "out": out})
    (other,) = ranks.start(sharded_training.__file__, 1, job)
    text, _ = other.communicate(timeout=120)
    assert "another training: data_types.grad_accum_dtype was" in text, text


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(W2SError, match="cannot read the DeepSpeed configuration"):
        deepspeed_config(replace(BASE, deepspeed_config="nowhere.json"), "fp32", 4, cuda=False)
    for text, message in (("{", "is not JSON"), ("[1]", "holds no settings")):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(W2SError, match=message):
            deepspeed_config(
                replace(BASE, deepspeed_config=str(tmp_path / "x.json")), "fp32", 4, False
            )


def test_fp16_needs_a_processor_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from deepspeed.accelerator import get_accelerator

    for able in (False, True):
        monkeypatch.setattr(get_accelerator(), "is_fp16_supported", lambda able=able: able)
        if able:
            assert deepspeed_config(BASE, "fp16", 4, cuda=False)["fp16"] == {"enabled": True}
            continue
        with pytest.raises(W2SError, match="fp16, which DeepSpeed does not train on this proc"):
            deepspeed_config(BASE, "fp16", 4, cuda=False)
    assert deepspeed_config(BASE, "fp16", 4, cuda=True)["fp16"] == {"enabled": True}


def test_fp16_needs_loss_scaling() -> None:
    with pytest.raises(W2SError, match="fp16 weights need loss scaling; use zero_stage=1 or more"):
        make_engine(torch.nn.Linear(2, 2).half(), TrainConfig(), SINGLE_PROCESS)


@pytest.mark.parametrize(
    ("overflow", "norm", "expected"),
    [
        (False, -1.0, math.inf),
        (False, math.nan, math.inf),
        (False, math.inf, math.inf),
        (True, 1.0, math.inf),
        (True, None, math.inf),
        (False, 2.0, 2.0),
        (False, None, math.nan),
    ],
)
def test_norms_of_deepspeed(overflow: bool, norm: float | None, expected: float) -> None:
    """It marks an overflow by a flag, -1, NaN or inf, by stage and dtype."""
    engine: Any = object.__new__(DeepSpeedEngine)
    optimizer = SimpleNamespace(param_groups=[], overflow=overflow)
    engine._steps = 0
    engine._engine = SimpleNamespace(
        optimizer=optimizer, step=lambda: None, get_global_grad_norm=lambda: norm
    )
    assert engine.update(0.1).item() == pytest.approx(expected, nan_ok=True)


def test_layers_may_be_skipped_on_one_process_or_without_dropout(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engine_choice, "DeepSpeedEngine", lambda *_: "engine")
    model: Any = torch.nn.Linear(2, 2)
    model.layerdrop = 0.5
    cfg = TrainConfig(zero_stage=2, batch_size=4, dropout=True)
    assert make_engine(model, cfg, World(0, 1)) == "engine"
    assert make_engine(model, replace(cfg, dropout=False), World(0, 2)) == "engine"
    with pytest.raises(W2SError, match="layerdrop=0.5"):
        make_engine(model, cfg, World(0, 2))
