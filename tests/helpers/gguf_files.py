"""A tiny Llama as a GGUF file, written by the package gguf as llama.cpp's converter writes one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

TEXTS = ["the old key near the door", "the boy and the cat", "a red dog sees the old cat"] * 3
_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_PARTS = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def tiny_llama(vocabulary: int) -> Any:
    """Two layers with large random weights, grouped keys, and a head of its own."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, intermediate_size=64, max_position_embeddings=64,
            initializer_range=0.2, pad_token_id=0, bos_token_id=1, eos_token_id=1,
        )
    )  # fmt: skip


def write_gguf(
    path: Path, model: Any, tokenizer: Any, kind: str = "F32", leave_out: str = ""
) -> Path:
    """Write a model and its byte-level tokenizer.

    Args:
        path: File to write.
        model: From ``tiny_llama``.
        tokenizer: From ``train_tokenizer``.
        kind: Name of a ``GGMLQuantizationType`` for the matrices.
        leave_out: Name of a tensor of the file that is left out.
    """
    import gguf
    from gguf import GGMLQuantizationType as Kinds

    writer, config = gguf.GGUFWriter(path, "llama"), model.config
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    _add_tokenizer(writer, tokenizer)
    for name, tensor in model.state_dict().items():
        if (title := _title(name)) == leave_out:
            continue
        values = _permuted(name, tensor.detach().float().numpy(), config)
        if values.ndim == 1 or kind == "F32":
            writer.add_tensor(title, values)
            continue
        packed = gguf.quants.quantize(values, Kinds[kind])
        writer.add_tensor(title, packed, raw_dtype=Kinds[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def dequantised(values: torch.Tensor, kind: str) -> torch.Tensor:
    """Return the numbers that a matrix has after it was written and read."""
    import gguf
    from gguf import GGMLQuantizationType as Kinds

    packed = gguf.quants.quantize(values.detach().float().numpy(), Kinds[kind])
    return torch.from_numpy(gguf.quants.dequantize(packed, Kinds[kind]).copy())


def _add_tokenizer(writer: Any, tokenizer: Any) -> None:
    import json

    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    tokens = [name for name, _ in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3] + [1] * (len(tokens) - 2))  # padding and end are control tokens
    writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)


def _title(name: str) -> str:
    if name in _NAMES:
        return _NAMES[name]
    _, _, layer, part = name.removesuffix(".weight").split(".", 3)
    return f"blk.{layer}.{_PARTS[part]}.weight"


def _permuted(name: str, values: np.ndarray, config: Any) -> np.ndarray:
    """Order the rows of queries and keys as llama.cpp's rotary embedding reads them."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    part = name.split(".")[-2]
    if part not in heads:
        return values
    n = heads[part]
    rows = values.reshape(n, 2, values.shape[0] // n // 2, values.shape[1])
    return np.ascontiguousarray(rows.swapaxes(1, 2).reshape(values.shape))
