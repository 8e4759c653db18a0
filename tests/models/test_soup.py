"""Soups: the mean of weights, of LoRA updates and of files, and the members of a greedy one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.training_rows import small_model
from torch import Tensor, nn

from w2s_fast.errors import W2SError
from w2s_fast.models.soup import LoraLayer, Soup, greedy_members, lora_layers
from w2s_fast.models.weights import (
    SINGLE_PROCESS,
    load_weights,
    module_tensors,
    read_tensors,
    save_tensors,
    save_weights,
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from w2s_fast.tasks.datasets.agreement import tokenizer as agreement_tokenizer

    return agreement_tokenizer()


def test_shares_weigh_the_members() -> None:
    states = [{"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([5.0, -2.0])}]
    assert Soup(states)["w"].tolist() == [3.0, 0.0]
    assert Soup(states, [0.75, 0.25])["w"].tolist() == [2.0, 1.0]
    # Beyond the ends: a step from one set of weights to the other, and half as far again.
    assert Soup(states, [-0.5, 1.5])["w"].tolist() == [7.0, -4.0]
    assert list(Soup(states)) == ["w"] and len(Soup(states)) == 1


def test_low_precision_is_summed_in_fp32() -> None:
    """256 + 1 is not a number of bf16; the sum of 300 and 3 in bf16 would end elsewhere."""
    states = [{"w": torch.tensor([v], dtype=torch.bfloat16)} for v in (256.0, 1.0, 1.0, 254.0)]
    mean = Soup(states)["w"]
    assert mean.dtype == torch.bfloat16 and mean.tolist() == [128.0]
    wide = [{"w": torch.tensor([v], dtype=torch.float64)} for v in (1.0, 1.0 + 2**-40)]
    assert Soup(wide)["w"].item() == 1.0 + 2**-41


def test_integers_are_not_averaged() -> None:
    same = {"n": torch.tensor([1, 2])}
    assert torch.equal(Soup([same, dict(same)])["n"], same["n"])
    with pytest.raises(W2SError, match="'n' has other integers in weights 1"):
        Soup([same, {"n": torch.tensor([1, 3])}])["n"]


@pytest.mark.parametrize("transposed", [False, True])
def test_the_mean_of_lora_updates_is_that_of_products(transposed: bool) -> None:
    """By hand: the mean of B A differs from mean B mean A."""
    g = torch.Generator().manual_seed(0)
    name, states = "layer", []
    shape = (3, 4) if transposed else (4, 3)
    base = torch.randn(shape, generator=g)
    for _ in range(3):
        states.append({
            f"{name}.base_layer.weight": base,
            f"{name}.lora_A.default.weight": torch.randn(2, 3, generator=g),
            f"{name}.lora_B.default.weight": torch.randn(4, 2, generator=g),
        })  # fmt: skip
    soup = Soup(states, lora={name: LoraLayer(8.0, transposed)})
    updates = [s[f"{name}.lora_B.default.weight"] @ s[f"{name}.lora_A.default.weight"]
               for s in states]  # fmt: skip
    update = 8 * torch.stack(updates).double().mean(0)
    expected = base.double() + (update.T if transposed else update)
    torch.testing.assert_close(
        soup[f"{name}.base_layer.weight"].double(), expected, rtol=1e-5, atol=1e-5
    )
    assert not soup[f"{name}.lora_B.default.weight"].any()
    with pytest.raises(W2SError, match="lora_A.default.weight' is a part of a LoRA update"):
        Soup(states)


def _trained(tokenizer: Any, seed: int, **fields: Any) -> nn.Module:
    model = small_model(tokenizer, **fields)
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn(p.shape, generator=g))
    return model


def _logits(model: nn.Module) -> Tensor:
    ids = torch.arange(2, 14).view(2, 6)
    with torch.no_grad():
        return model.eval()(ids, torch.ones_like(ids))


def test_a_soup_of_lora_students_computes_the_mean_update(tokenizer: Any) -> None:
    """Against a model whose weights were merged by peft and then averaged."""
    pytest.importorskip("peft")
    models = [_trained(tokenizer, seed, lora_rank=2) for seed in (1, 2)]
    layers = lora_layers(models[0])
    assert layers and {layer.transposed for layer in layers.values()} == {False}
    soup = Soup([module_tensors(m) for m in models], lora=layers)
    made = small_model(tokenizer, lora_rank=2)
    made.load_state_dict({**soup}, strict=False)
    merged: list[Any] = []
    for model in models:
        part: Any = model
        part.base = part.base.merge_and_unload()
        merged.append(part)
    mean = Soup([module_tensors(m) for m in merged])
    merged[0].load_state_dict({**mean}, strict=False)
    torch.testing.assert_close(_logits(made), _logits(merged[0]), rtol=1e-4, atol=1e-5)
    apart = _trained(tokenizer, 1, lora_rank=2)
    assert (_logits(apart) - _logits(made)).abs().max() > 1e-3


def test_files_are_averaged_one_tensor_at_a_time(tokenizer: Any, tmp_path: Path) -> None:
    models = [_trained(tokenizer, seed) for seed in (1, 2, 3)]
    for i, model in enumerate(models):
        save_weights(model, tmp_path / f"{i}.safetensors", shard_bytes=5000)  # several files each
    soup = Soup([read_tensors(tmp_path / f"{i}.safetensors") for i in range(3)])
    save_tensors(soup.items(), tmp_path / "soup.safetensors", SINGLE_PROCESS, 10**9)
    made = small_model(tokenizer)
    load_weights(made, tmp_path / "soup.safetensors")
    for name, p in made.named_parameters():
        mean = torch.stack([dict(m.named_parameters())[name].detach() for m in models]).mean(0)
        torch.testing.assert_close(p.detach(), mean, rtol=1e-6, atol=1e-7)


def test_tied_weights_stay_tied() -> None:
    """They are stored under one name; both names have the mean."""

    class Tied(nn.Module):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.table = nn.Embedding(2, 2)
            self.head = nn.Linear(2, 2, bias=False)
            self.head.weight = self.table.weight
            nn.init.constant_(self.table.weight, value)

    models = [Tied(1.0), Tied(3.0)]
    soup = Soup([module_tensors(m) for m in models])
    assert list(soup) == ["table.weight"] and soup["table.weight"].unique().tolist() == [2.0]


@pytest.mark.parametrize(
    ("states", "shares", "message"),
    [
        ([], None, "states is empty; expected the weights of at least one model"),
        ([{"a": 1.0}, {"b": 1.0}], None, "weights 1 and weights 0 differ in 'a'"),
        ([{"a": 1.0}] * 2, [1.0], "shares has 1 numbers for 2 sets of weights"),
        ([{"a": 1.0}] * 2, [0.5, 0.4], r"shares is \[0.5, 0.4\]; expected finite numbers whose"),
        ([{"a": 1.0}] * 2, [float("nan"), 1.0], "expected finite numbers"),
    ],
)
def test_what_does_not_fit_is_named(states: Any, shares: Any, message: str) -> None:
    sets = [{k: torch.tensor([v]) for k, v in state.items()} for state in states]
    with pytest.raises(W2SError, match=message):
        Soup(sets, shares)


def test_another_shape_or_dtype_is_named() -> None:
    for other in (torch.ones(3), torch.ones(2, dtype=torch.bfloat16)):
        with pytest.raises(W2SError, match=r"in weights 1, torch.float32 \(2,\) in weights 0"):
            Soup([{"w": torch.ones(2)}, {"w": other}])["w"]


def test_greedy_members_by_hand() -> None:
    """Tried from best to worst; one that lowers the score stays out, one that keeps it joins."""
    table = {(2, 0): 0.9, (2, 0, 3): 0.85, (2, 0, 1): 0.9}
    asked: list[tuple[int, ...]] = []

    def score(members: tuple[int, ...]) -> float:
        asked.append(members)
        return table[members]

    assert greedy_members([0.8, 0.5, 0.9, 0.7], score) == (2, 0, 1)
    assert asked == list(table)
    assert greedy_members([0.5, 0.5], lambda _: 0.0) == (0,)  # equal ones in their order
    for scores in ([], [float("nan")]):
        with pytest.raises(W2SError, match="expected a finite number for each model"):
            greedy_members(scores, lambda _: 0.0)
