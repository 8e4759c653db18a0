"""Random causal LMs of transformers, a few thousand weights each."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

B, T, V = 3, 9, 67
SIZES: dict[str, Any] = {
    "vocab_size": V, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 24, "max_position_embeddings": 32, "initializer_range": 0.3,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_GROUPED = {**SIZES, "num_key_value_heads": 1}
_GEMMA = {**_GROUPED, "head_dim": 8, "query_pre_attn_scalar": 8}
_STILL = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}

# Name -> (prefix of the classes, ending of the model's, of the configuration's, its fields).
ARCHITECTURES: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "llama": ("Llama", "ForCausalLM", "Config", _GROUPED),
    "qwen3": ("Qwen3", "ForCausalLM", "Config", {**_GROUPED, "head_dim": 8}),
    "mistral": ("Mistral", "ForCausalLM", "Config", _GROUPED),
    "gemma2": ("Gemma2", "ForCausalLM", "Config", {**_GEMMA, "final_logit_softcapping": 1.5}),
    "gemma3": ("Gemma3", "ForCausalLM", "TextConfig", _GEMMA),
    "gpt2": ("GPT2", "LMHeadModel", "Config", {**SIZES, **_STILL}),
    "gpt_neox": ("GPTNeoX", "ForCausalLM", "Config", SIZES),
    "phi": ("Phi", "ForCausalLM", "Config", _GROUPED),  # its head has a bias
    "olmo2": ("Olmo2", "ForCausalLM", "Config", _GROUPED),
    "cohere": ("Cohere", "ForCausalLM", "Config", {**_GROUPED, "logit_scale": 0.25}),
    "granite": ("Granite", "ForCausalLM", "Config", {**_GROUPED, "logits_scaling": 3.0}),
}


def tiny_lm(name: str = "llama", dtype: torch.dtype = torch.float32, **fields: Any) -> Any:
    """The same random model for the same arguments."""
    import transformers

    prefix, model, config, sizes = ARCHITECTURES[name]
    torch.manual_seed(0)
    built = getattr(transformers, prefix + config)(**{**sizes, **fields})
    lm = getattr(transformers, prefix + model)(built)
    head = lm.get_output_embeddings()
    if head.bias is not None:
        torch.nn.init.normal_(head.bias)
    return lm.to(dtype).train()


def batch(seed: int = 0, size: int = B) -> dict[str, Tensor]:
    """Right-padded rows of which the last few real tokens carry labels."""
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, V, (size, T), generator=g)
    mask = torch.ones_like(ids)
    labels = ids.clone()
    labels[:, :4] = -100
    mask[0, 7:] = 0
    labels[0, 7:] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}
