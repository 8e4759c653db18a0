"""The form of a model: what it computes with its weights, and nothing of how it runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from helpers.training_rows import small_model
from torch import nn
from transformers import AutoModel

from w2s_fast.models import ModelConfig, build_model
from w2s_fast.tasks.datasets.agreement import tokenizer as agreement_tokenizer
from w2s_fast.training.co_teaching import Twins
from w2s_fast.training.model_form import lowest_dtype, model_form


def test_it_does_not_depend_on_how_a_model_runs(tmp_path: Path) -> None:
    """Saved, read again in another dtype with another attention: the same form."""
    base: Any = AutoModel.from_config(small_model(agreement_tokenizer()).base.config)
    base.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(
        tmp_path, dtype=torch.bfloat16, attn_implementation="eager", output_attentions=True
    )
    form = model_form(base)
    assert form == model_form(again) and form["config"]["num_attention_heads"] == 2
    assert form == json.loads(json.dumps(form))
    assert lowest_dtype(base) == torch.float32 and lowest_dtype(again) == torch.bfloat16


def test_settings_of_all_parts_are_named() -> None:
    tokenizer = agreement_tokenizer()
    cfg = ModelConfig("scratch", hidden=16, heads=2, pooling="mean")
    model = build_model(cfg, 2, tokenizer, 0, prefixes=(0.5, 1.0), prefix=0.5)
    form = model_form(Twins(model, small_model(tokenizer)))
    assert form["first.head.prefixes"] == [8, 16] and form["first.head.prefix"] == 8
    assert form["first.pooling"] == "mean" and form["second.pooling"] == "last"
    assert not model_form(nn.Sequential(nn.Linear(2, 2), nn.Dropout()))
