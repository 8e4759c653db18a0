"""Models whose loss or logits differ from the usual, and how results are compared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.architectures.tiny_models import tiny as tiny_class
from helpers.tiny_lms import SIZES, tiny_lm

MOE = {
    "num_key_value_heads": 2,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "router_aux_loss_coef": 0.5,
}


Build = Callable[[], Any]


def tiny(name: str, **fields: Any) -> Any:
    """A model of any class of transformers with the fields of ``SIZES`` that it has."""
    import transformers

    kind = getattr(transformers, name)
    default = kind.config_class()
    sizes = {k: v for k, v in SIZES.items() if hasattr(default, k)}
    torch.manual_seed(0)
    return kind(kind.config_class(**{**sizes, **fields})).train()


def assert_equal(ours: dict[str, Tensor], plain: dict[str, Tensor], dtype: torch.dtype) -> None:
    room = 2e-5 if dtype == torch.float32 else 2e-2
    assert {n for n in ours if ours[n].any()} == {n for n in plain if plain[n].any()}
    largest = max(float(g.float().norm()) for n, g in plain.items() if n != "loss")
    for name, value in plain.items():
        off = float((ours[name].float() - value.float()).norm())
        size = max(float(value), 1.0) if name == "loss" else float(value.norm()) + largest
        assert off <= room * size, (name, off, size)


def recurrent_gemma() -> Any:
    """Its soft-cap, 30 by default, has a name of its own."""
    lm = tiny(
        "RecurrentGemmaForCausalLM",
        lru_width=16,
        head_dim=8,
        block_types=["recurrent", "attention"],
    )
    with torch.no_grad():
        lm.lm_head.weight.mul_(40)
    return lm


def nested_cap() -> Any:
    """The soft-cap stands in the configuration of the text model inside."""
    lm = tiny_class("Gemma4ForConditionalGeneration", "small").train()
    lm.config.text_config.final_logit_softcapping = 3.0
    return lm


def mixtral(**fields: Any) -> Any:
    return tiny("MixtralForCausalLM", **MOE, output_router_logits=True, **fields)


def remember(name: str, **fields: Any) -> Build:
    return lambda: tiny(name, **fields)


SERVED: dict[str, Build] = {
    "recurrent_gemma": recurrent_gemma,
    "nested_cap": nested_cap,
    "router": mixtral,
    "mamba": remember("MambaForCausalLM", state_size=4),
    "rembert": remember("RemBertForCausalLM", is_decoder=True, input_embedding_size=8,
                        output_embedding_size=12),
    "unshifted": remember("XLMWithLMHeadModel", emb_dim=16, n_layers=1, n_heads=2, dropout=0.0,
                          attention_dropout=0.0),
    "head_layers": remember("BertLMHeadModel", is_decoder=True, hidden_dropout_prob=0.0,
                            attention_probs_dropout_prob=0.0),
    "encoder_decoder": remember("T5ForConditionalGeneration", d_model=16, d_kv=8, d_ff=16,
                                num_layers=1, num_heads=2, dropout_rate=0.0,
                                decoder_start_token_id=0),
    "logits_bias": remember("MarianMTModel", d_model=16, encoder_layers=1, decoder_layers=1,
                            encoder_attention_heads=2, decoder_attention_heads=2, dropout=0.0,
                            encoder_ffn_dim=16, decoder_ffn_dim=16, decoder_start_token_id=0),
}  # fmt: skip


class Penalised(type(tiny_lm())):  # type: ignore[misc]
    """A loss with more than cross-entropy in it."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out = super().forward(*args, **kwargs)
        if out.loss is not None:
            out.loss = out.loss + 1e-2 * out.logits.logsumexp(-1).square().mean()
        return out
