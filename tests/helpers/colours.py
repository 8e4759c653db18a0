"""A generation task of a few words, and a language model that can learn it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from w2s_fast.tasks import Examples, TaskConfig, TaskData

THINGS = [f"thing{i}" for i in range(16)]
COLOURS = ["red", "green", "blue", "grey"]


class Colours:
    """What colour is the thing? Every fourth thing has the same one."""

    def load(self, cfg: TaskConfig, seed: int) -> TaskData:
        rng = np.random.default_rng(seed)
        parts = [self._rows(rng, n, p) for n, p in ((cfg.n_weak, "w"), (cfg.n_transfer, "t"))]
        test = self._rows(rng, cfg.n_test, "e")
        data = TaskData("colours", ("wrong", "right"), *parts, test, kind="generation")
        return replace(data, read=str.strip)

    def _rows(self, rng: np.random.Generator, n: int, part: str) -> Examples:
        which = rng.integers(len(THINGS), size=n)
        ids = tuple(f"{part}{i}" for i in range(n))
        texts = tuple(f"the {THINGS[i]} is" for i in which)
        answers = tuple(f" {COLOURS[i % len(COLOURS)]}" for i in which)
        return Examples(ids, texts, None, ids, np.zeros(n, np.int64), answers)


def save_language_model(folder: Path) -> Path:
    """Save a tiny language model of random weights, with a tokenizer of words."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = ["[PAD]", "[EOS]", "[UNK]", "the", "is", "good", "bad", "prompt", *COLOURS, *THINGS]
    backend = Tokenizer(WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", eos_token="[EOS]", unk_token="[UNK]"
    )
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, intermediate_size=64, max_position_embeddings=64,
        pad_token_id=0, eos_token_id=1, bos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder
