"""Build every causal, image-text and sequence-to-sequence class of transformers tiny.

The fields of a configuration and its sub-configurations get small values by their names; few
classes need values of their own. Towers that text does not pass through keep their widths where
these depend on each other, and are only reduced in depth.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch

from bench.architectures.config_fields import FIELDS

V, HIDDEN = 96, 32
# Group of the table -> mappings of transformers' auto classes.
GROUPS = {
    "causal": ("MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",),
    "image, audio and text": (
        "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
        "MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES",
    ),
    "sequence to sequence": (
        "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
        "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES",
    ),
}
_SIZES: dict[int, tuple[str, ...]] = {
    V: ("vocab_size", "text_vocab_size", "decoder_vocab_size", "unpadded_vocab_size"),
    HIDDEN: (
        "hidden_size", "d_model", "n_embd", "dim", "emb_dim", "embed_dim", "embedding_size",
        "dim_model_base",
        "word_embed_proj_dim", "lru_width", "input_embedding_size", "embedding_dim",
        "output_embedding_size", "hidden_size_global", "cross_attention_hidden_size",
        "text_hidden_size", "out_hidden_size", "vision_output_dim", "shape_embed_dim",
        "pronunciation_embed_dim", "position_embedding_size", "linear_attn_dim",
    ),
    2: (
        "num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads",
        "decoder_attention_heads", "num_encoder_attention_heads", "num_decoder_attention_heads",
        "swa_num_attention_heads", "index_n_heads", "linear_num_key_heads", "attention_heads",
        "linear_num_value_heads", "linear_num_heads", "num_layers", "num_hidden_layers", "n_layer",
        "n_layers", "encoder_layers", "decoder_layers", "num_decoder_layers", "num_encoder_layers",
        "encoder_layers_count", "num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk",
        "num_key_value_heads", "num_kv_heads", "swa_num_key_value_heads", "kv_n_heads",
        "moe_top_k", "top_k_experts", "num_query_groups", "depth",
    ),
    1: (
        "codebooks", "num_codebooks", "n_group", "topk_group", "num_expert_group",
        "n_shared_experts", "num_shared_experts",
        "moe_num_shared_experts", "mamba_n_groups", "n_groups", "mamba_ngroups", "num_query_tokens",
    ),
    16: (
        "head_dim", "kv_channels", "d_kv", "attention_head_size", "dim_head", "v_head_dim",
        "swa_head_dim", "d_head", "linear_key_head_dim", "linear_value_head_dim", "ssm_state_size",
        "linear_head_dim", "moe_intermediate_size", "moe_shared_expert_intermediate_size",
        "expert_ffn_hidden_size", "kv_lora_rank", "q_lora_rank", "mamba_d_state",
        "query_pre_attn_scalar",
        "shared_expert_intermediate_size", "shared_experts_intermediate_size", "index_head_dim",
        "o_lora_rank", "qk_head_dim", "state_size", "time_step_rank", "mamba_dt_rank",
        "shared_intermediate_size", "moe_hidden_size", "laurel_rank", "router_hidden_size",
        "hidden_size_per_layer_input", "ple_embed_dim", "sliding_window",
    ),
    8: ("qk_rope_head_dim", "qk_nope_head_dim", "chunk_size", "mamba_chunk_size", "index_topk",
        "rotary_dim", "attention_chunk_size", "attention_window_size", "local_attention"),
    48: (
        "intermediate_size", "ffn_dim", "d_ff", "n_inner", "encoder_ffn_dim", "decoder_ffn_dim",
        "ffn_hidden_size", "dff", "dim_ff", "intermediate_size_mlp", "dense_intermediate_size",
        "feed_forward_size", "d_inner",
    ),
    64: ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "context_length",
         "max_target_positions", "max_source_positions", "model_max_length"),
    4: ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts",
        "mamba_num_heads",
        "mamba_n_heads", "zero_expert_num", "o_groups"),
    0: ("first_k_dense_replace", "num_dense_layers", "moe_layer_start_index", "pad_token_id",
        "num_kv_shared_layers", "expert_layer_offset"),
}  # fmt: skip
SIZES = {name: value for value, names in _SIZES.items() for name in names}
SIZES |= {"vocab_size_per_layer_input": V, "bos_token_id": 1, "eos_token_id": 2}
_DEPTHS = (
    "num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers",
    "num_encoder_layers", "num_decoder_layers", "depth", "layers", "conf_num_hidden_layers",
    "num_blocks", "speech_encoder_layers", "t2u_encoder_layers", "t2u_decoder_layers",
    "resampler_depth", "aligner_num_add_layers",
)  # fmt: skip
_RANDOM = (
    "dropout", "attention_dropout", "activation_dropout", "hidden_dropout", "resid_pdrop",
    "attn_pdrop", "embd_pdrop", "hidden_dropout_prob", "attention_probs_dropout_prob",
    "embedding_dropout", "layerdrop", "encoder_layerdrop", "decoder_layerdrop", "dropout_rate",
    "classifier_dropout", "router_jitter_noise", "emb_pdrop", "summary_last_dropout",
    "local_attention_probs_dropout_prob", "lsh_attention_probs_dropout_prob",
    "input_jitter_noise", "expert_dropout", "moe_token_dropout", "drop_path_rate",
)  # fmt: skip
_TEXT = ("text", "decoder", "llm", "language", "thinker", "qformer", "patcher", "encoder_config_")


def classes() -> Iterator[tuple[str, str]]:
    """Yield (group, class name), each class once."""
    from transformers.models.auto import modeling_auto

    seen: set[str] = set()
    for group, mappings in GROUPS.items():
        for mapping in mappings:
            for value in getattr(modeling_auto, mapping, {}).values():
                for name in value if isinstance(value, tuple | list) else (value,):
                    if name not in seen:
                        seen.add(name)
                        yield group, name


def tiny(name: str, how: str) -> Any:
    """Return an fp32 model of class ``name``, built in one of ``WAYS``."""
    import transformers

    kind = getattr(transformers, name)
    torch.manual_seed(0)
    config = small(kind.config_class, how)
    with torch.device("meta"):
        count = sum(p.numel() for p in kind(config).parameters())
    if count > 120e6:
        raise ValueError(f"{count / 1e6:.0f} million weights")
    torch.manual_seed(0)
    return make_sensitive(kind(config))


WAYS = ("small", "shallow towers", "defaults")


def small(kind: Any, how: str, tower: bool = False) -> Any:
    """Return a configuration of class ``kind`` with small fields and sub-configurations."""
    default = kind()
    keep = tower and how != "small"
    values: dict[str, Any] = {}
    for name, value in vars(default).items():
        name = name.lstrip("_")
        small_value = _value(name, value, len(values), keep)
        if small_value is not None:
            values[name] = small_value
    if not keep:
        values |= _layers(default)
    accepted = inspect.signature(kind.__init__).parameters
    fields = {*accepted, *getattr(kind, "__dataclass_fields__", {})}
    open_ended = any(p.kind is p.VAR_KEYWORD for p in accepted.values())
    values = {k: v for k, v in values.items() if k in fields or open_ended}
    for name in getattr(kind, "sub_configs", None) or {}:
        inner = getattr(default, name, None)
        if inner is not None and name in fields:
            values[name] = small(type(inner), how, not name.startswith(_TEXT))
    special = FIELDS.get(kind.__name__) or FIELDS.get(kind.model_type, {})
    config = kind(**{**values, **special})
    if getattr(config, "is_encoder_decoder", False):
        config.decoder_start_token_id = config.bos_token_id = 1
        config.pad_token_id = 0
    return config


def _value(name: str, value: Any, count: int, keep: bool) -> Any:
    """Return a small value of a field, or None to keep its default."""
    if name in _RANDOM and isinstance(value, float | int) and not isinstance(value, bool):
        return type(value)(0)
    if name == "head_dim" and value is None and not keep:
        return SIZES[name]
    if name == "rope_parameters" and isinstance(value, dict) and "mrope_section" in value:
        return {**value, "mrope_section": [2, 3, 3]}
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    if keep:
        return 1 if name in _DEPTHS else None
    if name in SIZES and (value or name.endswith("_id")):
        return SIZES[name]
    if name.endswith(("token_id", "token_index")) and value >= V:
        return V - 1 - count % 20
    return None


def _layers(default: Any) -> dict[str, Any]:
    """Return fields for one layer of each kind, for models whose layers differ."""
    kinds = getattr(default, "layer_types", None) or getattr(default, "layers_block_type", None)
    if not isinstance(kinds, list | tuple) or len(set(kinds)) < 2:
        return {}
    values: dict[str, Any] = {"num_hidden_layers": len(set(kinds))}
    for name in ("layer_types", "layers_block_type"):
        if getattr(default, name, None):
            values[name] = list(dict.fromkeys(kinds))
    blocks = getattr(default, "mlp_layer_types", None)
    if blocks:
        each = list(dict.fromkeys(blocks))[::-1]
        values["mlp_layer_types"] = [each[i % len(each)] for i in range(len(set(kinds)))]
    return values


def make_sensitive(model: Any) -> Any:
    """Make weights large enough for every part to matter, and disable dropout."""
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in [*model.named_parameters(), *model.named_buffers()]:
            if "final_logits_bias" in name or (name.endswith(".bias") and p.dim() == 1):
                p.copy_(torch.randn(p.shape, generator=g) * 0.1)
        head = model.get_output_embeddings()
        if head is not None and hasattr(head, "weight"):
            head.weight.copy_(torch.randn(head.weight.shape, generator=g) * 0.5)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model
