"""Students of a frozen model: linear heads on cached hidden states, and its last layer alone."""

from w2s_fast.probing.feature_cache import CachedHead, CachedRows, cache_features
from w2s_fast.probing.hidden_states import hidden_states
from w2s_fast.probing.last_layer import LastLayer, cache_tokens, last_layer
from w2s_fast.probing.linear_heads import (
    HeadRun,
    predict_heads,
    train_heads,
    truncate_heads,
)
from w2s_fast.probing.prototype_head import prototype_head

__all__ = [
    "CachedHead",
    "CachedRows",
    "HeadRun",
    "LastLayer",
    "cache_features",
    "cache_tokens",
    "hidden_states",
    "last_layer",
    "predict_heads",
    "prototype_head",
    "train_heads",
    "truncate_heads",
]
