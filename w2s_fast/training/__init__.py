"""Training, prediction and generation: one loop for every loss and model, resumable at any step.

Names load on first use, so the configuration can be read without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from w2s_fast.training.co_teaching import CoTeaching, Twins
    from w2s_fast.training.completion_pairs import CompletionPairs, encode_pairs
    from w2s_fast.training.completions import Completions, encode_completions
    from w2s_fast.training.config import THRESHOLD_SCOPES, TrainConfig
    from w2s_fast.training.core_advantage import (
        LikelihoodAdvantage,
        advantage_of,
        likelihood_advantage,
    )
    from w2s_fast.training.curriculum import difficulty_stages, hardest_rows, perplexity
    from w2s_fast.training.data import Encoded, encode
    from w2s_fast.training.generation import generate
    from w2s_fast.training.likelihood import completion_logprob, next_token_probs, sequence_logprob
    from w2s_fast.training.loop import train
    from w2s_fast.training.monitor import Watch
    from w2s_fast.training.nested_dropout import truncate_head
    from w2s_fast.training.pair_logprob import predict_pairs, reference_logprob
    from w2s_fast.training.prediction import predict
    from w2s_fast.training.self_targets import SelfTargets
    from w2s_fast.training.step_record import StepRecord
    from w2s_fast.training.step_targets import StepTargets

__all__ = [
    "THRESHOLD_SCOPES",
    "CoTeaching",
    "CompletionPairs",
    "Completions",
    "Encoded",
    "LikelihoodAdvantage",
    "SelfTargets",
    "StepRecord",
    "StepTargets",
    "TrainConfig",
    "Twins",
    "Watch",
    "advantage_of",
    "completion_logprob",
    "difficulty_stages",
    "encode",
    "encode_completions",
    "encode_pairs",
    "generate",
    "hardest_rows",
    "likelihood_advantage",
    "next_token_probs",
    "perplexity",
    "predict",
    "predict_pairs",
    "reference_logprob",
    "sequence_logprob",
    "train",
    "truncate_head",
]

_HOMES = {
    "CoTeaching": "co_teaching",
    "SelfTargets": "self_targets",
    "StepTargets": "step_targets",
    "Twins": "co_teaching",
    "THRESHOLD_SCOPES": "config",
    "CompletionPairs": "completion_pairs",
    "Completions": "completions",
    "TrainConfig": "config",
    "Watch": "monitor",
    "Encoded": "data",
    "StepRecord": "step_record",
    "LikelihoodAdvantage": "core_advantage",
    "advantage_of": "core_advantage",
    "completion_logprob": "likelihood",
    "difficulty_stages": "curriculum",
    "encode": "data",
    "encode_completions": "completions",
    "encode_pairs": "completion_pairs",
    "generate": "generation",
    "hardest_rows": "curriculum",
    "likelihood_advantage": "core_advantage",
    "next_token_probs": "likelihood",
    "perplexity": "curriculum",
    "predict": "prediction",
    "predict_pairs": "pair_logprob",
    "reference_logprob": "pair_logprob",
    "sequence_logprob": "likelihood",
    "train": "loop",
    "truncate_head": "nested_dropout",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
