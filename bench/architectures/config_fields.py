"""Fields of tiny configurations that cannot be derived from their names."""

from __future__ import annotations

from typing import Any

_LINEAR_AND_FULL = ["linear_attention", "full_attention"]
_GLM_ROPE = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
_MROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}

_MAP = {"<image>": 90, "<|extra_200|>": 91}

# Model type or class of a configuration or sub-configuration -> fields.
FIELDS: dict[str, dict[str, Any]] = {
    "DbrxAttentionConfig": {"rope_theta": 1e4, "clip_qkv": 8.0},
    "FunAsrNanoAdaptorConfig": {"intermediate_size": 8},
    "blip-2": {"image_token_index": 90},
    "blt": {"num_hidden_layers": 2},
    "chameleon": {"vocabulary_map": _MAP},
    "cohere_compass_text": {"rope_parameters": {"full_attention": _MROPE}},
    "deepseek_ocr2_text": {"mlp_layer_types": ["dense", "sparse"], "num_experts_per_tok": 2},
    "diffusion_gemma_text": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 16},
    "dots3_note_text": {"per_layer_config": None},
    "emu3": {"vocabulary_map": _MAP},
    "ernie4_5_vl_moe_text": {"rope_parameters": {**_MROPE, "mrope_section": [3, 3, 2]}},
    "granite4_vision": {"deepstack_layer_map": []},
    "instructblip": {"image_token_index": 90},
    "instructblipvideo": {"video_token_index": 90},
    "kosmos-2": {"latent_query_num": 2},
    "longcat_flash": {"head_dim": 8},
    "molmo2_adapter": {"vision_feature_layer": [1, 0]},
    "moonshine_streaming": {"num_key_value_heads": 2},
    "muse_spark_audio": {"patch_sizes": [4, 4], "hidden_sizes": [32, 32], "depths": [1, 1],
                         "num_hidden_layers": 2},
    "radio": {"video_temporal_patch_size": 2},
    "qwen2_5_omni_text": {"rope_parameters": _MROPE},
    "qwen2_5_omni_thinker": {"vision_start_token_id": 91, "vision_end_token_id": 92},
    "qwen3_omni_moe_thinker": {"vision_start_token_id": 91, "vision_end_token_id": 92},
    "step3p5": {"sliding_window": 16},
    "bamba": {"attn_layer_indices": [1], "num_hidden_layers": 2, "mamba_d_head": 16},
    "codegen": {"n_head": 4, "rotary_dim": 4},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"n_shared_experts": 1, "n_routed_experts": 4, "num_experts_per_tok": 2},
    "gemma4_unified_text": {"num_kv_shared_layers": 0},
    "git": {"num_image_with_embedding": None},
    "glm4v_text": {"rope_parameters": {**_GLM_ROPE, "mrope_section": [1, 1, 2]}},
    "glm4v_moe_text": {"rope_parameters": {**_GLM_ROPE, "mrope_section": [1, 1, 2]}},
    "glm46v_text": {"rope_parameters": {**_GLM_ROPE, "mrope_section": [1, 1, 2]}},
    "glm_ocr_text": {"rope_parameters": {**_MROPE}},
    "glm5_next_text": {"index_kpool": 4},
    "gpt_neo": {"num_layers": 2, "attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {"layer_types": _LINEAR_AND_FULL, "num_hidden_layers": 2,
                         "mamba_d_head": 16},
    "hunyuan_vl_text": {"rope_parameters": {**_MROPE}},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2,
              "expert_layer_offset": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_hidden_layers": 2},
    "mamba2": {"num_heads": 4, "head_dim": 16, "n_groups": 1},
    "mimo_v2_flash": {"num_key_value_heads": 1, "num_hidden_layers": 2,
                      "layer_types": ["full_attention", "sliding_attention"],
                      "mlp_layer_types": ["dense", "sparse"]},
    "nemotron": {"num_key_value_heads": 2},
    "paddleocr_vl_text": {"rope_parameters": {**_MROPE}},
    "qwen2_5_vl_text": {"rope_parameters": {**_MROPE}},
    "qwen2_vl_text": {"rope_parameters": {**_MROPE}},
    "qwen4_exp_text": {"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 16,
                       "indexer_budget": 8, "indexer_compress_ratio": 2},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {"is_decoder": True, "attn_layers": ["local", "local"], "axial_pos_embds": False,
                 "local_attn_chunk_length": 4, "hidden_size": 32},
    "xlstm": {"mlstm_round_up_to_multiple_of": 16, "chunk_size": 8, "num_heads": 2},
    "xmod": {"default_language": "en_XX", "languages": ["en_XX"]},
    "zamba": {"num_hidden_layers": 4, "layers_block_type": ["linear_attention", "hybrid"] * 2,
              "attention_head_dim": 32},
    "zaya": {"num_experts_per_tok": 1},
}  # fmt: skip
