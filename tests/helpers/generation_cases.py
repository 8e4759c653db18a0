"""Small causal checkpoints, prompts and completions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

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
