"""The line between two sets of weights: its points, its ends, LoRA, and low precision."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.training_rows import small_model
from torch import Tensor, nn

from w2s_fast.errors import W2SError
from w2s_fast.models.weights import module_tensors
from w2s_fast.training.weight_path import WeightPath


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from w2s_fast.tasks.datasets.agreement import tokenizer as agreement_tokenizer

    return agreement_tokenizer()


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: t.detach().clone() for name, t in module_tensors(model).items()}


def _ends(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the weights of a model, and others in what it trains."""
    start, g = _weights(model), torch.Generator().manual_seed(3)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    end = {
        name: t + torch.randn(t.shape, generator=g).to(t.dtype) if name in trained else t
        for name, t in start.items()
    }
    return start, end


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_every_point_follows_from_the_ends_alone(tokenizer: Any, dtype: str) -> None:
    """In any order and as often as wanted; both ends bit for bit."""
    model = small_model(tokenizer, dtype)
    start, end = _ends(model)
    path = WeightPath(model, end)
    assert all(torch.equal(t, end[name]) for name, t in _weights(model).items())
    for alpha in (0.3, 1.0, 0.0, 0.7, 0.3, 0.0, 1.0, 1.5):
        path.move(alpha)
        for name, t in _weights(model).items():
            expected = (1 - alpha) * start[name].double() + alpha * end[name].double()
            if alpha in (0.0, 1.0):
                assert torch.equal(t, end[name] if alpha else start[name]), name
            eps = torch.finfo(t.dtype).eps
            torch.testing.assert_close(t.double(), expected, rtol=2 * eps, atol=4 * eps)


def test_lora_updates_move_in_proportion(tokenizer: Any) -> None:
    pytest.importorskip("peft")
    model = small_model(tokenizer, lora_rank=2)
    _, end = _ends(model)
    path = WeightPath(model, end)
    path.move(0.25)
    now = _weights(model)
    for name, t in now.items():
        if "lora_B" in name:
            a = name.replace("lora_B", "lora_A")
            update = end[name].double() @ end[a].double()
            torch.testing.assert_close(
                t.double() @ now[a].double(), 0.25 * update, rtol=1e-5, atol=1e-6
            )


def test_lora_updates_that_do_not_start_from_zero_are_refused(tokenizer: Any) -> None:
    pytest.importorskip("peft")
    model = small_model(tokenizer, lora_rank=2)
    _, end = _ends(model)
    model.load_state_dict(end, strict=False)
    _, further = _ends(model)
    with pytest.raises(W2SError, match="is not zero in the initial weights; expected a student"):
        WeightPath(model, further)


def test_wrong_values_are_named(tokenizer: Any) -> None:
    model = small_model(tokenizer)
    _, end = _ends(model)
    with pytest.raises(W2SError, match="alpha is nan; expected a finite number"):
        WeightPath(model, end).move(float("nan"))
    del end["head.weight"]
    with pytest.raises(W2SError, match="do not fit the model at 'head.weight'"):
        WeightPath(model, end)
