"""Pretrain the student of the task `agreement`: a small Llama, a causal LM on its grammar.

The model sees sentences only, never a label or a task prefix. It learns the number of nouns and
which noun a verb agrees with; `number_accuracy` measures this directly.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from w2s_fast.tasks._config import TaskConfig
from w2s_fast.tasks._pretraining import Progress, pretrain_folder
from w2s_fast.tasks.datasets import agreement

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM


def pretrain(
    directory: str | Path,
    cfg: TaskConfig,
    seed: int,
    progress: Progress | None = None,
) -> None:
    """Train the model and save it atomically as a transformers directory.

    Args:
        directory: Destination; must not exist, or be empty.
        cfg: ``pretrain`` and ``language_seed`` are used.
        seed: Seed of weights and text; the same seed gives the same file.
        progress: Called after each step with (step from 1, steps, loss in nats per token).

    Raises:
        W2SError: The directory exists and is not empty, or cannot be written.
    """
    pretrain_folder(
        directory, cfg.pretrain, agreement.tokenizer(), agreement.MAX_LENGTH,
        _batches(cfg, seed), seed, progress,
    )  # fmt: skip


@torch.no_grad()
def number_accuracy(
    model: LlamaForCausalLM, cfg: TaskConfig, n: int = 600, seed: int = 99
) -> float:
    """Return the share of prefixes after which verbs of the right number are more probable.

    Half of the ``n`` prefixes end in an attractor, independently of ``cfg.attractor_frac``.

    Args:
        model: The causal language model.
        cfg: ``language_seed`` is used.
        n: Number of prefixes; all are reserved ones.
        seed: Seed of the prefixes.
    """
    probe = TaskConfig(language_seed=cfg.language_seed, attractor_frac=0.5)
    items = agreement.draw_items(Random(f"probe/{seed}"), n, probe, set())
    ids = agreement.vocabulary()
    forms = [torch.tensor([ids[verb[plural]] for verb in agreement.VERBS]) for plural in (0, 1)]
    encoded = agreement.tokenizer()(list(items.texts), padding=True, return_tensors="pt")
    model.eval()
    logits = model(**encoded).logits
    last = encoded["attention_mask"].sum(1) - 1
    probs = logits[torch.arange(n), last].float().softmax(-1)
    plural = probs[:, forms[1]].sum(1) > probs[:, forms[0]].sum(1)
    return float((plural.long() == torch.from_numpy(items.labels)).float().mean())


def _batches(cfg: TaskConfig, seed: int) -> Iterator[Tensor]:
    """Yield blocks (batch_size, length) of the stream of sentences, each preceded by "<eos>"."""
    shape = (cfg.pretrain.batch_size, cfg.pretrain.length)
    size, ids = shape[0] * shape[1], agreement.vocabulary()
    stream: list[int] = []
    for sentence in agreement.pretraining_text(seed, cfg):
        stream += [ids[word] for word in (agreement.END, *sentence.split())]
        if len(stream) >= size:
            block, stream = stream[:size], stream[size:]
            yield torch.tensor(block).view(shape)
