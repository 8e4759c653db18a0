"""peft models, patched before and after the adapters came; an adapted head is honoured."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_patch import assert_same, result
from tiny_lms import batch, tiny_lm

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
