"""The mean of the last weights: of which steps and which weights, and what reads it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.training_rows import BASE, encoded_rows, small_model, soft_labels
from torch import Tensor, nn

from w2s_fast.losses import make_loss
from w2s_fast.training import TrainConfig, Watch, predict, train

CFG = replace(BASE, average_frac=0.5)  # the last three of six steps
STEPS = 6


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from w2s_fast.tasks.datasets.agreement import tokenizer as agreement_tokenizer

    return agreement_tokenizer()


def _weights_of_steps(
    model: nn.Module, tokenizer: Any, cfg: TrainConfig, watch: Watch | None = None
) -> tuple[list[dict[str, Tensor]], dict[str, Any]]:
    """Train, and return the weights after every step and what ``train`` returns."""
    steps: list[dict[str, Tensor]] = []

    def record(*_: Any) -> None:
        steps.append({name: p.detach().clone() for name, p in model.named_parameters()})

    data, loss = encoded_rows(tokenizer), make_loss("xent")
    log = train(model, data, soft_labels(), loss, cfg, 0, progress=record, watch=watch)
    return steps, log


def test_training_ends_with_the_mean_of_the_last_steps(tokenizer: Any) -> None:
    model = small_model(tokenizer)
    steps, _ = _weights_of_steps(model, tokenizer, CFG)
    assert len(steps) == STEPS
    for name, p in model.named_parameters():
        mean = torch.stack([weights[name].double() for weights in steps[3:]]).mean(0)
        torch.testing.assert_close(p.detach().double(), mean, rtol=1e-6, atol=1e-8)
    assert not torch.equal(model.head.weight, steps[-1]["head.weight"])


def test_moving_average(tokenizer: Any) -> None:
    model = small_model(tokenizer)
    steps, _ = _weights_of_steps(model, tokenizer, replace(BASE, ema_decay=0.7))
    for name, p in model.named_parameters():
        mean = steps[0][name].double()
        for weights in steps[1:]:
            mean = 0.7 * mean + 0.3 * weights[name].double()
        torch.testing.assert_close(p.detach().double(), mean, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("average_frac", [0.0, 0.5])
def test_interpolation_with_the_initial_weights(tokenizer: Any, average_frac: float) -> None:
    model = small_model(tokenizer)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    cfg = replace(BASE, interpolation=0.3, average_frac=average_frac)
    steps, _ = _weights_of_steps(model, tokenizer, cfg)
    last = steps[3:] if average_frac else steps[-1:]
    for name, p in model.named_parameters():
        mean = torch.stack([weights[name].double() for weights in last]).mean(0)
        expected = 0.7 * start[name].double() + 0.3 * mean
        torch.testing.assert_close(p.detach().double(), expected, rtol=1e-6, atol=1e-8)


def test_interpolated_adapters_move_in_proportion(tokenizer: Any) -> None:
    """The change of a LoRA weight is a product of two: B alone takes the coefficient."""
    pytest.importorskip("peft")
    model = small_model(tokenizer, lora_rank=2)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    steps, _ = _weights_of_steps(model, tokenizer, replace(BASE, interpolation=0.3))
    kinds = set()
    for name, p in model.named_parameters():
        if not p.requires_grad:
            assert torch.equal(p, start[name]), name
            continue
        alpha = 1.0 if "lora_A" in name else 0.3
        kinds.add(alpha)
        expected = start[name].lerp(steps[-1][name], alpha)
        torch.testing.assert_close(p.detach(), expected, rtol=1e-5, atol=1e-7)
    assert kinds == {0.3, 1.0}


def test_averaging_does_not_change_the_steps(tokenizer: Any) -> None:
    averaged, log = _weights_of_steps(small_model(tokenizer), tokenizer, CFG)
    model = small_model(tokenizer)
    plain, plain_log = _weights_of_steps(model, tokenizer, replace(CFG, average_frac=0.0))
    assert log["losses"] == plain_log["losses"]
    for name, p in model.named_parameters():
        assert torch.equal(averaged[-1][name], plain[-1][name]), name
        assert torch.equal(p, plain[-1][name]), name  # without averaging: the last step


def test_bf16_weights_are_averaged_in_fp32(tokenizer: Any) -> None:
    """Steps below half a spacing of bf16 show in the mean of the masters, not in that of copies."""
    model = small_model(tokenizer, "bf16")
    steps, _ = _weights_of_steps(model, tokenizer, CFG)
    ends = {n: torch.stack([w[n].float() for w in steps[3:]]).mean(0) for n in steps[0]}
    differs = 0
    for name, p in model.named_parameters():
        error = (p.float() - ends[name]).abs()
        # Rounding of the copies, and of the mean itself.
        room = 2 * torch.finfo(torch.bfloat16).eps * steps[-1][name].float().abs().max()
        assert (error <= room).all(), name
        differs += int((p != ends[name].to(p.dtype)).sum())
    assert differs > 0


def test_frozen_weights_stay(tokenizer: Any) -> None:
    pytest.importorskip("peft")
    model = small_model(tokenizer, lora_rank=2)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    steps, _ = _weights_of_steps(model, tokenizer, CFG)
    for name, p in model.named_parameters():
        if not p.requires_grad:
            assert torch.equal(p, start[name]), name
            continue
        mean = torch.stack([weights[name] for weights in steps[3:]]).mean(0)
        torch.testing.assert_close(p.detach(), mean, rtol=1e-5, atol=1e-7)


def test_the_last_evaluation_is_of_the_mean(tokenizer: Any) -> None:
    """Early stopping thus compares the mean with the weights of earlier steps."""
    model, data = small_model(tokenizer), encoded_rows(tokenizer)
    _, log = _weights_of_steps(model, tokenizer, CFG, Watch(data, every=3))
    assert log["watched"] == [3, 6]
    assert np.array_equal(log["trajectory"][-1], predict(model, data))
