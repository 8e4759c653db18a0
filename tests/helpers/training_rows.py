"""What the tests of loop share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from w2s_fast.models import ModelConfig, build_model
from w2s_fast.training import TrainConfig

N = 44


BASE = TrainConfig(epochs=2, batch_size=16, lr=1e-2)


@dataclass(frozen=True)
class Rows:
    ids: tuple[str, ...]
    texts: tuple[str, ...]
    pairs: tuple[str, ...] | None = None


def _model(tokenizer: Any, dtype: str = "fp32", **fields: Any) -> nn.Module:
    cfg = ModelConfig("scratch", hidden=16, heads=2, head_init="small", dtype=dtype, **fields)
    return build_model(cfg, 2, tokenizer, 0)
