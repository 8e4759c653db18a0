"""The last layer trained from a cache is the last layer trained in the model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from w2s_fast.errors import W2SError
from w2s_fast.losses import make_loss
from w2s_fast.models.classifier import Classifier
from w2s_fast.probing import cache_tokens, last_layer
from w2s_fast.probing.last_layer import CachedTokens
from w2s_fast.training import Encoded, TrainConfig, predict, train

pytest.importorskip("peft")

N, D, VOCABULARY, RANK = 40, 16, 50, 4
RECIPE = TrainConfig(epochs=3, batch_size=16, lr=3e-3)
SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": D, "intermediate_size": 32, "num_attention_heads": 2,
    "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def data() -> Encoded:
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 12, N)
    tokens = rng.integers(0, VOCABULARY, lengths.sum()).astype(np.int32)
    return Encoded(tokens, np.concatenate([[0], np.cumsum(lengths)]), None, 0)


@pytest.fixture(scope="module")
def soft() -> np.ndarray:
    p = np.random.default_rng(1).uniform(size=N)
    return np.stack([1 - p, p], 1)


def _model(kind: str, pooling: str = "last", layers: int = 3, **more: Any) -> Classifier:
    import transformers

    decoder = {} if kind in ("Bert", "GPT2") else {"num_key_value_heads": 1, "head_dim": 8}
    if kind == "Qwen2":  # its last layer sees three tokens back, the others everything
        decoder |= {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 2}
    if kind == "Gemma2":
        decoder |= {"sliding_window": 3, "query_pre_attn_scalar": 8}
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(
        **{**SIZES, **decoder, "num_hidden_layers": layers, **more}
    )
    base = getattr(transformers, f"{kind}Model")(config)
    with torch.no_grad():
        for p in base.parameters():  # the default of 0.02 leaves every layer close to nothing
            p.mul_(5.0 if p.ndim > 1 else 1.0)
    return Classifier(base, 2, pooling, "small")


def _lora_in_place(model: Classifier, student: nn.Module) -> None:
    """LoRA on the last layer of the whole model, with the student's random half."""
    from peft import LoraConfig, get_peft_model

    last = model.base.config.num_hidden_layers - 1
    linear = rf".*layers\.{last}\..*proj"
    model.base = get_peft_model(
        model.base, LoraConfig(r=RANK, lora_alpha=16, target_modules=linear)
    )
    given = {n: p for n, p in student.base.named_parameters() if p.requires_grad}
    for name, p in model.base.named_parameters():
        if p.requires_grad:
            with torch.no_grad():
                p.copy_(given.pop(name.replace(f"layers.{last}.", "layers.0.")))
    assert not given


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("kind", ["Llama", "Qwen2", "Qwen3", "Gemma2"])
def test_the_cache_trains_what_the_model_trains(
    kind: str, pooling: str, data: Encoded, soft: np.ndarray, tmp_path: Path
) -> None:
    model = _model(kind, pooling)
    states = cache_tokens(model, data, tmp_path / "states.safetensors", torch.float32)
    student = last_layer(model, data, RANK)
    assert np.allclose(predict(student, states), predict(model, data), atol=1e-6)
    first = predict(model, data)
    _lora_in_place(model, student)
    names = {n for n, p in student.named_parameters() if p.requires_grad}
    assert names and all("lora_" in n or n.startswith("head.") for n in names)
    loss = make_loss("xent")  # no threshold: scores of a small head lie within rounding of any
    cached = train(student, states, soft, loss, RECIPE, 2)
    whole = train(model, data, soft, loss, RECIPE, 2)
    assert np.allclose(cached["losses"], whole["losses"], atol=1e-4)
    got, want = predict(student, states), predict(model, data)
    assert np.abs(got - want).max() < 2e-4
    assert np.abs(want - first).max() > 0.02  # it learned something
    lora = [p for n, p in student.named_parameters() if "lora_B" in n]
    assert all(p.abs().max() > 1e-4 for p in lora)


def test_bf16_states_and_copies(data: Encoded, soft: np.ndarray, tmp_path: Path) -> None:
    """To the rounding of the states; the model itself stays as it was, seeds differ."""
    model = _model("Llama")
    states = cache_tokens(model, data, tmp_path / "states.safetensors")
    assert states.states.dtype == torch.bfloat16
    assert states.states.shape == (data.offsets[-1], D)
    before = predict(model, data)
    student, other = last_layer(model, data, RANK), last_layer(model, data, RANK, seed=1)
    assert np.abs(predict(student, states) - before).max() < 2**-8
    train(student, states, soft, make_loss("xent"), RECIPE, 0)
    assert np.abs(predict(student, states) - before).max() > 0.02
    assert np.array_equal(predict(model, data), before)
    a, b = (next(p for n, p in m.named_parameters() if "lora_A" in n) for m in (student, other))
    assert (a - b).abs().max() > 1e-3


def test_cached_tokens(data: Encoded) -> None:
    states = torch.arange(float(data.offsets[-1] * 2)).view(-1, 2)
    cached = CachedTokens(states, data.offsets)
    assert len(cached) == N and np.array_equal(cached.lengths, data.lengths)
    part = cached.rows(slice(5, 9))
    rows = np.array([2, 0, 3])
    batch, tokens = part.batch(rows), data.rows(slice(5, 9)).batch(rows)
    assert (batch.attention_mask == 0).sum() > 0
    assert torch.equal(batch.attention_mask, tokens.attention_mask)
    low = data.offsets[7]
    assert torch.equal(batch.input_ids[0, : data.lengths[7]], states[low : low + data.lengths[7]])
    assert not batch.input_ids[batch.attention_mask == 0].any()
    assert part.digest() != cached.digest()
    assert part.digest() == cached.rows(slice(5, 9)).digest()


@pytest.mark.parametrize("kind", ["Bert", "GPT2"])
def test_a_model_that_cannot_be_cut_is_refused(kind: str, data: Encoded) -> None:
    """Both add positions to whatever comes in, so stored states would get them twice."""
    with pytest.raises(W2SError, match=f"{kind}Model alone does not reproduce the model: out"):
        last_layer(_model(kind), data, RANK)


def test_short_and_long_rows_are_tried(data: Encoded) -> None:
    model, seen = _model("Llama"), []
    model.base.register_forward_pre_hook(
        lambda _m, _a, given: seen.append(given["attention_mask"].sum(1)), with_kwargs=True
    )
    last_layer(model, data, RANK)
    assert len(seen[0]) == 4
    assert seen[0].min() == data.lengths.min() and seen[0].max() == data.lengths.max()


def test_other_refusals(data: Encoded, tmp_path: Path) -> None:
    model = _model("Llama")
    with pytest.raises(W2SError, match="lora_rank is 0; expected at least 1"):
        last_layer(model, data, 0)
    model.base.layers.append(nn.Identity())
    with pytest.raises(W2SError, match="no single list of 3 layers"):
        last_layer(model, data, RANK)
    model = _model("Llama")
    _lora_in_place(model, last_layer(model, data, RANK))
    with pytest.raises(W2SError, match="without LoRA"):
        cache_tokens(model, data, tmp_path / "states.safetensors")
    with pytest.raises(W2SError, match="LastLayer has no gradient checkpointing"):
        student = last_layer(_model("Llama"), data, RANK)
        states = CachedTokens(torch.zeros(int(data.offsets[-1]), D), data.offsets)
        recipe = replace(RECIPE, gradient_checkpointing=True)
        train(student, states, np.full((N, 2), 0.5), make_loss("xent"), recipe, 0)
