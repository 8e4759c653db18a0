"""Language models with more than a head, LoRA, and completions that cannot be used."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.generation_cases import KINDS, RECIPE, N, checkpoint, small_lm, texts, whole_rows

from w2s_fast.errors import W2SError
from w2s_fast.losses import make_loss
from w2s_fast.models import ModelConfig, build_model, load_weights, save_weights
from w2s_fast.models.weights import module_tensors
from w2s_fast.tasks.datasets.agreement import tokenizer as agreement_tokenizer
from w2s_fast.training import encode_completions, train
from w2s_fast.training.likelihood import completion_logprob


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return agreement_tokenizer()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> dict[str, Path]:
    return {k: checkpoint(k, tmp_path_factory.mktemp(k), tokenizer) for k in KINDS}


@pytest.mark.parametrize("kind", ["llama", "gpt2-tied"])
def test_lora_trains_the_body_alone(
    kind: str, folders: dict[str, Path], tokenizer: Any, tmp_path: Path
) -> None:
    pytest.importorskip("peft")
    data = encode_completions(tokenizer, *texts())
    model = small_lm(folders, kind, tokenizer, lora_rank=2)
    before = {n: t.detach().clone() for n, t in module_tensors(model).items()}
    log = train(model, data, data.labels, make_loss("xent"), replace(RECIPE, epochs=5), 0)
    assert log["losses"][-1] < log["losses"][0]
    for name, t in module_tensors(model).items():
        assert torch.equal(t, before[name]) != ("lora_" in name), name
    save_weights(model, tmp_path / "m.safetensors")
    again = small_lm(folders, kind, tokenizer, lora_rank=2)
    load_weights(again, tmp_path / "m.safetensors")
    assert np.array_equal(completion_logprob(again, data), completion_logprob(model, data))


def test_models_with_more_than_a_head(tokenizer: Any, tmp_path: Path) -> None:
    """Soft-cap and scale are read from the configuration; what is not known is refused."""
    from transformers import (
        CohereConfig,
        CohereForCausalLM,
        Gemma2Config,
        Gemma2ForCausalLM,
        GPT2LMHeadModel,
        GraniteConfig,
        GraniteForCausalLM,
    )

    small: dict[str, Any] = {
        "vocab_size": len(tokenizer), "hidden_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 24,
        "initializer_range": 0.5, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
    }  # fmt: skip
    torch.manual_seed(0)
    models = {
        "gemma2": Gemma2ForCausalLM(Gemma2Config(**small, head_dim=8, final_logit_softcapping=2.0)),
        "cohere": CohereForCausalLM(CohereConfig(**small, logit_scale=0.3)),
        "granite": GraniteForCausalLM(GraniteConfig(**small, logits_scaling=4.0)),
    }
    for name, lm in models.items():
        lm.save_pretrained(tmp_path / name)
        cfg = ModelConfig(str(tmp_path / name))
        model: Any = build_model(cfg, 2, tokenizer, 0, kind="generation")
        data = encode_completions(tokenizer, *texts())
        ids, mask, labels = whole_rows(data, tokenizer.eos_token_id)
        z = model.lm.eval()(input_ids=ids, attention_mask=mask).logits[:, :-1].detach()
        want = -F.cross_entropy(z.transpose(1, 2), labels[:, 1:], reduction="none").sum(1)
        assert np.allclose(completion_logprob(model, data), want, atol=1e-4), name

    from w2s_fast.models.causal_lm import GenerativeModel

    class Scaled(GPT2LMHeadModel):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            out = super().forward(*args, **kwargs)
            out.logits = out.logits * 1.5
            return out

    from transformers import GPT2Config

    with pytest.raises(W2SError, match="the logits of Scaled are more than its head"):
        GenerativeModel(Scaled(GPT2Config(vocab_size=99, n_embd=16, n_layer=1, n_head=2)))


def test_bad_answers(folders: dict[str, Path], tokenizer: Any) -> None:
    data = encode_completions(tokenizer, *texts())
    model = small_lm(folders, "llama", tokenizer)
    loss = make_loss("xent")

    def refused(match: str, targets: np.ndarray, spec: str = "xent", **fields: Any) -> None:
        with pytest.raises(W2SError, match=match):
            train(model, data, targets, make_loss(spec), replace(RECIPE, **fields), 0)

    refused(r"shape \(13,\); expected \(\d+,\)", np.zeros(N, dtype=np.int64))
    refused(r"expected token ids \(L,\)", np.zeros((len(data.labels), 2)))
    refused("weak label 999 in row 0", np.full(len(data.labels), 999))
    for mode in ("window", "ema"):
        refused("use 'exact' or 'microbatch'", data.labels, "logconf_paper", threshold_scope=mode)
    train(
        model, data, data.labels, loss, replace(RECIPE, threshold_scope="ema"), 0
    )  # none is needed
    for fields in ({"source": "bow"}, {"freeze": "base"}):
        with pytest.raises(W2SError, match="cannot generate text"):
            build_model(ModelConfig(**fields), 2, tokenizer, 0, kind="generation")  # type: ignore
    long = encode_completions(tokenizer, [" ".join(["the"] * 70)], [" key"])
    with pytest.raises(W2SError, match="the model has 64 positions; set max_length=64"):
        completion_logprob(small_lm(folders, "gpt2", tokenizer), long)
