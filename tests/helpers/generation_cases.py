"""Small causal checkpoints, prompts and completions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from w2s_fast.models import ModelConfig, build_model
from w2s_fast.training import Completions, TrainConfig

N = 13


KINDS = ("llama", "llama-tied", "gpt2", "gpt2-tied")


WORDS = ["the", "old", "key", "near", "boy", "door", "cat", "dog", "red"]


def checkpoint(kind: str, path: Path, tokenizer: Any) -> Path:
    """A tiny language model with large random weights: predictions differ from row to row."""
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    common = {
        "vocab_size": len(tokenizer), "tie_word_embeddings": kind.endswith("tied"),
        "initializer_range": 0.2, "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }  # fmt: skip
    torch.manual_seed(0)
    lm: Any
    if kind.startswith("llama"):
        lm = LlamaForCausalLM(
            LlamaConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                        num_key_value_heads=2, intermediate_size=24, **common)
        )  # fmt: skip
    else:
        lm = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=64, **common))
    lm.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def texts(n: int = N) -> tuple[list[str], list[str]]:
    rng = np.random.default_rng(0)
    prompts = [" ".join(rng.choice(WORDS, rng.integers(1, 7))) for _ in range(n)]
    answers = [" " + " ".join(rng.choice(WORDS, rng.integers(1, 4))) for _ in range(n)]
    return prompts, answers


RECIPE = TrainConfig(epochs=2, batch_size=6, lr=1e-2)


def small_lm(folders: dict[str, Path], kind: str, tokenizer: Any, **fields: Any) -> Any:
    cfg = ModelConfig(str(folders[kind]), **fields)
    return build_model(cfg, 2, tokenizer, 0, kind="generation")


def whole_rows(data: Completions, end: int) -> tuple[Tensor, Tensor, Tensor]:
    """What transformers is given: ids with the end token, mask, and labels -100 on the prompts."""
    rows = []
    for i in range(len(data)):
        ids = data.tokens[data.offsets[i] : data.offsets[i + 1]].tolist()
        k = int(data.starts[i + 1] - data.starts[i])
        rows.append(([*ids, end], [-100] * (len(ids) + 1 - k) + [*ids, end][-k:]))
    longest = max(len(ids) for ids, _ in rows)
    ids, labels = (
        torch.tensor([r[j] + [fill] * (longest - len(r[j])) for r in rows])
        for j, fill in ((0, 0), (1, -100))
    )
    mask = torch.tensor([[1] * len(r[0]) + [0] * (longest - len(r[0])) for r in rows])
    return ids, mask, labels
