"""The recipe of a training: its settings, learning rates, and AdamW with masters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from w2s_fast.errors import W2SError
from w2s_fast.training import TrainConfig
from w2s_fast.training.optim import MasterAdamW


def test_bf16_keeps_updates_below_its_resolution() -> None:
    """AdamW at lr 1e-5 moves bf16 weights of size 1 only through an fp32 master."""
    module = nn.Module()
    module.w = nn.Parameter(torch.ones(8, 8, dtype=torch.bfloat16))
    optimizer = MasterAdamW(module, TrainConfig(lr=1e-5))
    for _ in range(400):
        module.w.grad = torch.ones_like(module.w)
        optimizer.accumulate()
        assert module.w.grad is None
        optimizer.step(1e-5)
    assert float(optimizer.tensors()["master.w"].detach().mean()) == pytest.approx(
        1 - 400e-5, abs=1e-5
    )
    assert float(module.w.detach().float().mean()) == pytest.approx(1 - 400e-5, abs=2**-8)


def test_bf16_gradients_add_up_in_fp32() -> None:
    """256 + 1 is 256 in bf16; eight times 1 must still arrive."""
    module = nn.Module()
    module.w = nn.Parameter(torch.zeros(2, 2, dtype=torch.bfloat16))
    optimizer = MasterAdamW(module, TrainConfig())
    for value in (256.0, *[1.0] * 8):
        module.w.grad = torch.full_like(module.w, value)
        optimizer.accumulate()
    assert float(optimizer.tensors()["master.w"].grad[0, 0]) == 264.0


def test_weight_decay_spares_vectors() -> None:
    module = nn.Linear(3, 3)
    optimizer = MasterAdamW(module, TrainConfig(weight_decay=0.5))
    before = module.weight.detach().clone(), module.bias.detach().clone()
    for p in module.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step(0.1)
    assert torch.allclose(module.weight, 0.95 * before[0]) and torch.equal(module.bias, before[1])


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"zero_stage": 4}, "zero_stage is 4; expected a ZeRO stage, 0 to 3"),
        ({"offload_optimizer": "cpu"}, "at zero_stage=0; it needs ZeRO stage 1 or more"),
        (
            {"zero_stage": 2, "offload_params": "cpu"},
            "at zero_stage=2; it needs ZeRO stage 3 or more",
        ),
        (
            {"zero_stage": 3, "offload_params": "nvme"},
            "it needs ZeRO stage 3 and the folder of a local",
        ),
        ({"zero_stage": 3, "offload_params": "disk"}, "expected one of none, cpu, nvme"),
        ({"deepspeed_config": "x.json"}, "at zero_stage=0, which is plain torch"),
        ({"timeout_s": 0}, "timeout_s is 0; expected seconds"),
        ({"schedule": "cosin"}, "did you mean 'cosine'"),
        ({"threshold_scope": "median"}, "expected one of exact, window, ema, microbatch"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"epochs": 0}, "epochs is 0"),
        ({"micro_batch_size": 0}, "micro_batch_size is 0"),
        ({"warmup_frac": 1.0}, "warmup_frac is 1.0"),
        ({"average_frac": -0.1}, "average_frac is -0.1"),
        ({"ema_decay": 1.0}, r"ema_decay is 1.0; expected a number in \[0, 1\)"),
        ({"interpolation": 0.0}, r"interpolation is 0.0; expected a number in \(0, 1\]"),
        ({"interpolation": 1.5}, "interpolation is 1.5"),
        ({"average_frac": 0.5, "ema_decay": 0.9}, "average_frac is 0.5 and ema_decay 0.9"),
        ({"decay_frac": 0.2}, "decay_frac is 0.2 with schedule='cosine', .* set schedule=constant"),
        (
            {"schedule": "constant", "warmup_frac": 0.7, "decay_frac": 0.4},
            "warmup_frac is 0.7 and decay_frac 0.4; expected a sum of at most 1",
        ),
        ({"clip_norm": 0.0}, "clip_norm is 0.0"),
    ],
)
def test_bad_configs(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(W2SError, match=says):
        TrainConfig(**fields)


def test_learning_rates() -> None:
    cosine = TrainConfig(lr=1.0)
    assert [round(cosine.lr_at(s, 4), 4) for s in range(4)] == [1.0, 0.8536, 0.5, 0.1464]
    warm = TrainConfig(lr=1.0, schedule="linear", warmup_frac=0.5)
    assert [warm.lr_at(s, 4) for s in range(4)] == [0.5, 1.0, 1.0, 0.5]
    assert TrainConfig(lr=2.0, schedule="constant").lr_at(3, 4) == 2.0
    large = TrainConfig(lr=1.0, schedule="constant", warmup_frac=0.2, decay_frac=0.4)
    assert [large.lr_at(s, 10) for s in range(10)] == [0.5, *[1.0] * 6, 0.75, 0.5, 0.25]
    assert TrainConfig(epochs=3, batch_size=32).steps(2000) == 188
