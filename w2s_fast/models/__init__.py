"""Models of supervisors and students: build, save and load them."""

from w2s_fast.models.backbone import BUILT_IN, ModelConfig, build_untrained
from w2s_fast.models.build import build_model, load_tokenizer
from w2s_fast.models.gguf_export import export_gguf
from w2s_fast.models.weights import load_weights, save_weights

__all__ = [
    "BUILT_IN", "ModelConfig", "build_model", "build_untrained", "export_gguf", "load_tokenizer",
    "load_weights", "save_weights",
]  # fmt: skip
