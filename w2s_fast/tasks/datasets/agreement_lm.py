"""Pretrain the student of the task `agreement`: a small Llama, a causal LM on its grammar.

The model sees sentences only, never a label or a task prefix. It learns the number of nouns and
which noun a verb agrees with; `number_accuracy` measures this directly.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.files import usual_mode
from w2s_fast.paths import user_path
from w2s_fast.tasks._config import PretrainConfig, TaskConfig
from w2s_fast.tasks.datasets import agreement

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

_WARMUP_STEPS = 50
_FLOOR_FRAC = 0.05  # learning rate at the last step / peak


def pretrain(
    directory: str | Path,
    cfg: TaskConfig,
    seed: int,
    progress: Callable[[int, int, float], None] | None = None,
) -> None:
    """Train the model and save it atomically as a transformers directory.

    The directory holds config.json, model.safetensors and the tokenizer. It is written under a
    temporary name and renamed, so a killed run leaves no partial model.

    Args:
        directory: Destination; must not exist, or be empty.
        cfg: ``pretrain`` and ``language_seed`` are used.
        seed: Seed of weights and text; the same seed gives the same file.
        progress: Called after each step with (step from 1, steps, loss in nats per token).

    Raises:
        W2SError: The directory exists and is not empty, or cannot be written.
    """
    target = user_path(directory, "directory")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise W2SError(f"{target} exists and is not empty; remove it or name another directory")
    with _one_thread():
        model = _train(cfg, seed, progress)
    from safetensors import SafetensorError

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as beside:
            saved = Path(beside) / "model"
            model.save_pretrained(saved)
            agreement.tokenizer().save_pretrained(saved)
            for file in saved.iterdir():
                file.chmod(usual_mode())
            os.replace(saved, target)
    except (OSError, SafetensorError) as error:
        raise W2SError(
            f"{target}: the pretrained model could not be saved ({error}); free space there or "
            "name another directory"
        ) from error


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


@contextmanager
def _one_thread() -> Iterator[None]:
    """Run on one thread: a step takes 57 ms, and a model this small gains little from two.

    Two threads on two cores that other processes use too wait for each other in every small
    operator: a step took 1.5 to 2.3 s.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _train(
    cfg: TaskConfig, seed: int, progress: Callable[[int, int, float], None] | None
) -> LlamaForCausalLM:
    pre = cfg.pretrain
    batches = _Batches(cfg, seed)
    with torch.random.fork_rng(devices=[]):  # does not change the caller's random state
        torch.manual_seed(seed)
        model = _new_model(pre)
    model.train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=pre.lr, betas=(0.9, 0.95), weight_decay=0.05
    )
    for step in range(pre.steps):
        for group in optimizer.param_groups:
            group["lr"] = pre.lr * _schedule(step, pre.steps)
        tokens = batches.next()
        logits = model(input_ids=tokens).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if progress is not None:
            progress(step + 1, pre.steps, loss.item())
    return model


def _new_model(pre: PretrainConfig) -> LlamaForCausalLM:
    from transformers import LlamaConfig, LlamaForCausalLM

    ids = agreement.vocabulary()
    config = LlamaConfig(
        vocab_size=len(ids),
        hidden_size=pre.hidden,
        num_hidden_layers=pre.layers,
        num_attention_heads=pre.heads,
        num_key_value_heads=pre.heads,
        intermediate_size=max(8, pre.hidden * 8 // 3 // 8 * 8),
        max_position_embeddings=agreement.MAX_LENGTH,
        tie_word_embeddings=True,
        pad_token_id=ids[agreement.PAD],
        bos_token_id=ids[agreement.END],
        eos_token_id=ids[agreement.END],
        use_cache=False,
    )
    return LlamaForCausalLM(config)


def _schedule(step: int, steps: int) -> float:
    """Return the learning rate / peak: linear warm-up times a cosine that ends above zero."""
    warm = min(1.0, (step + 1) / _WARMUP_STEPS)
    cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
    return warm * (_FLOOR_FRAC + (1 - _FLOOR_FRAC) * cosine)


class _Batches:
    """Blocks (batch_size, length) of the stream of sentences, each preceded by "<eos>"."""

    def __init__(self, cfg: TaskConfig, seed: int) -> None:
        self._shape = (cfg.pretrain.batch_size, cfg.pretrain.length)
        self._sentences = agreement.pretraining_text(seed, cfg)
        self._ids = agreement.vocabulary()
        self._stream: list[int] = []

    def next(self) -> Tensor:
        """Return the next block, int64."""
        size = self._shape[0] * self._shape[1]
        while len(self._stream) < size:
            words = [agreement.END, *next(self._sentences).split()]
            self._stream += [self._ids[word] for word in words]
        block, self._stream = self._stream[:size], self._stream[size:]
        return torch.tensor(block).view(self._shape)
