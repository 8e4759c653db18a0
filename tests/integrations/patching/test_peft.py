"""peft models, patched before and after the adapters came; an adapted head is honoured."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.patched import assert_same, result
from helpers.tiny_lms import batch, tiny_lm

import w2s_fast
from w2s_fast.errors import W2SError

pytest.importorskip("peft")
BODY = ["q_proj", "v_proj"]
CASES: dict[str, dict[str, Any]] = {
    "body": {"target_modules": BODY},
    "head": {"target_modules": [*BODY, "lm_head"]},
    "copied_head": {"target_modules": BODY, "modules_to_save": ["lm_head"]},
}


def adapted(dtype: torch.dtype, first: bool = False, name: str = "phi", **lora: Any) -> Any:
    """A model with LoRA, the same every time; ``first``: patched before."""
    from peft import LoraConfig, get_peft_model

    lm = tiny_lm(name, dtype)
    if first:
        w2s_fast.patch(lm)
    return get_peft_model(lm, LoraConfig(r=2, init_lora_weights=False, **lora)).to(dtype)


@pytest.mark.parametrize("first", [True, False], ids=["patch_first", "peft_first"])
@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradients(case: str, first: bool) -> None:
    """phi: its head has a bias."""
    lora = CASES[case]
    truth, baseline = (
        result(adapted(d, **lora), **batch()) for d in (torch.float64, torch.float32)
    )
    model = adapted(torch.float32, first, **lora)
    keys = list(model.state_dict())
    if not first:
        w2s_fast.patch(model)
    assert model(**batch()).logits is None
    assert_same(result(model, **batch()), truth, baseline)
    with model.disable_adapter():
        bare = float(tiny_lm("phi")(**batch()).loss.detach())
        assert float(model(**batch()).loss.detach()) == pytest.approx(bare, rel=1e-6)
    w2s_fast.unpatch(model)
    assert not any("forward" in m.__dict__ for m in model.modules())
    assert list(model.state_dict()) == keys
    assert_same(result(model, **batch()), truth, baseline)


def test_merged_adapters() -> None:
    model = w2s_fast.patch(adapted(torch.float32, **CASES["head"]))
    before = float(model(**batch()).loss.detach())
    model.merge_adapter()
    assert float(model(**batch()).loss.detach()) == pytest.approx(before, rel=1e-5)
    plain = w2s_fast.unpatch(model).merge_and_unload()
    assert float(plain(**batch()).loss.detach()) == pytest.approx(before, rel=1e-5)


def test_weak_columns_go_through_peft() -> None:
    model = w2s_fast.patch(adapted(torch.float32, **CASES["body"]))
    half = model(**batch(), weak_weight=torch.full((3,), 0.5), num_items_in_batch=4).loss
    full = model(**batch(), num_items_in_batch=4).loss
    assert float(half.detach()) == pytest.approx(float(full.detach()) / 2, rel=1e-6)


@pytest.mark.parametrize("variant", [{"use_dora": True}, {"lora_bias": True}])
@pytest.mark.parametrize("first", [True, False])
def test_other_adapters_of_the_head(variant: dict[str, Any], first: bool) -> None:
    lora = {"name": "llama", "target_modules": ["lm_head"], **variant}
    with pytest.raises(W2SError, match="the head's LoRA is a variant"):
        model = adapted(torch.float32, first, **lora)
        model(**batch()) if first else w2s_fast.patch(model)


TIED: dict[str, dict[str, Any]] = {
    "tokens": {"target_modules": BODY, "trainable_token_indices": [3, 5, 8]},
    "tokens_alone": {"trainable_token_indices": {"embed_tokens": [3, 5]}, "target_modules": BODY},
}


def tied(dtype: torch.dtype, first: bool, lora: dict[str, Any]) -> Any:
    """A model whose head is its embeddings, a few rows of which are trained."""
    from peft import LoraConfig, get_peft_model

    lm = tiny_lm("llama", dtype, tie_word_embeddings=True)
    if first:
        w2s_fast.patch(lm)
    model = get_peft_model(lm, LoraConfig(r=2, init_lora_weights=False, **lora)).to(dtype)
    g = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "trainable_tokens_delta" in name:
                p.copy_(torch.randn(p.shape, generator=g).to(dtype))
    return model


@pytest.mark.parametrize("first", [True, False], ids=["patch_first", "peft_first"])
@pytest.mark.parametrize("case", TIED)
def test_retrained_tokens_of_a_tied_head(case: str, first: bool) -> None:
    lora = TIED[case]
    truth, baseline = (
        result(tied(d, False, lora), **batch()) for d in (torch.float64, torch.float32)
    )
    model = tied(torch.float32, first, lora)
    if not first:
        w2s_fast.patch(model)
    assert_same(result(model, **batch()), truth, baseline)
    with model.disable_adapter():
        bare = float(tiny_lm("llama", tie_word_embeddings=True)(**batch()).loss.detach())
        assert float(model(**batch()).loss.detach()) == pytest.approx(bare, rel=1e-6)


def adalora(dtype: torch.dtype, first: bool) -> Any:
    from peft import AdaLoraConfig, get_peft_model

    lm = tiny_lm("phi", dtype)
    if first:
        w2s_fast.patch(lm)
    config = AdaLoraConfig(
        init_r=3, target_r=2, total_step=10, init_lora_weights=False,
        target_modules=["q_proj", "lm_head"],
    )  # fmt: skip
    torch.manual_seed(3)
    model = get_peft_model(lm, config).to(dtype)
    g = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_" in name:
                p.copy_(torch.randn(p.shape, generator=g).to(dtype))
    return model


def trained(model: Any) -> dict[str, torch.Tensor]:
    """Without the number of ranks, which peft means to be a constant."""
    return {n: g for n, g in result(model, **batch()).items() if "ranknum" not in n}


@pytest.mark.parametrize("first", [True, False], ids=["patch_first", "peft_first"])
def test_adalora_on_the_head(first: bool) -> None:
    truth, baseline = (trained(adalora(d, False)) for d in (torch.float64, torch.float32))
    model = adalora(torch.float32, first)
    if not first:
        w2s_fast.patch(model)
    assert_same(trained(model), truth, baseline)


def test_adapters_that_are_not_served() -> None:
    from peft import IA3Config, get_peft_model

    config = IA3Config(target_modules=["lm_head"], feedforward_modules=[])
    with pytest.raises(W2SError, match="the head has adapters of type Linear; expected LoRA"):
        w2s_fast.patch(get_peft_model(tiny_lm(), config))
