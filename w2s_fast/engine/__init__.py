"""Training and prediction: one loop for every loss and model, resumable at any step.

Names load on first use, so the configuration can be read without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from w2s_fast.engine.answers import Answers, encode_answers
    from w2s_fast.engine.cached import CachedHead, CachedRows, cache_features
    from w2s_fast.engine.config import THRESHOLDS, TrainConfig
    from w2s_fast.engine.data import Encoded, encode
    from w2s_fast.engine.generation import generate
    from w2s_fast.engine.heads import HeadRun, predict_heads, train_heads
    from w2s_fast.engine.likelihood import answer_logprob, next_token_probs, sequence_logprob
    from w2s_fast.engine.loop import train
    from w2s_fast.engine.prediction import predict
    from w2s_fast.engine.states import hidden_states
    from w2s_fast.engine.tail import LastLayer, cache_tokens, last_layer
    from w2s_fast.engine.watch import Watch

__all__ = [
    "THRESHOLDS",
    "Answers",
    "CachedHead",
    "CachedRows",
    "Encoded",
    "HeadRun",
    "LastLayer",
    "TrainConfig",
    "Watch",
    "answer_logprob",
    "cache_features",
    "cache_tokens",
    "encode",
    "encode_answers",
    "generate",
    "hidden_states",
    "last_layer",
    "next_token_probs",
    "predict",
    "predict_heads",
    "sequence_logprob",
    "train",
    "train_heads",
]

_HOMES = {
    "THRESHOLDS": "config",
    "Answers": "answers",
    "CachedHead": "cached",
    "CachedRows": "cached",
    "HeadRun": "heads",
    "LastLayer": "tail",
    "TrainConfig": "config",
    "Watch": "watch",
    "Encoded": "data",
    "answer_logprob": "likelihood",
    "encode": "data",
    "encode_answers": "answers",
    "generate": "generation",
    "hidden_states": "states",
    "next_token_probs": "likelihood",
    "predict": "prediction",
    "sequence_logprob": "likelihood",
    "cache_features": "cached",
    "cache_tokens": "tail",
    "last_layer": "tail",
    "predict_heads": "heads",
    "train": "loop",
    "train_heads": "heads",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
