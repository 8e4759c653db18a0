"""Pretrain the small language models of the embedded tasks: Llamas, as transformers folders."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.files import usual_mode
from w2s_fast.paths import user_path
from w2s_fast.tasks._language_model_config import LanguageModelConfig

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

_WARMUP_STEPS = 50
_FLOOR_FRAC = 0.05  # learning rate at the last step / peak

Progress = Callable[[int, int, float], None]


def pretrain_folder(
    directory: str | Path,
    cfg: LanguageModelConfig,
    tokenizer: Any,
    max_positions: int,
    batches: Iterator[Tensor],
    seed: int,
    progress: Progress | None = None,
) -> None:
    """Train a model and save it atomically as a transformers directory.

    The directory holds config.json, model.safetensors and the tokenizer. It is written under a
    temporary name and renamed, so a killed run leaves no partial model.

    Args:
        directory: Destination; must not exist, or be empty.
        cfg: Size and training; ``cfg.seed`` is not used.
        tokenizer: Tokenizer of the task.
        max_positions: Tokens that the model can read.
        batches: Token ids (B, T) int64 of every step; padding is no target.
        seed: Seed of the weights.
        progress: Called after each step with (step from 1, steps, loss in nats per token).

    Raises:
        W2SError: The directory exists and is not empty, or cannot be written.
    """
    target = user_path(directory, "directory")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise W2SError(f"{target} exists and is not empty; remove it or name another directory")
    with _one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _new_model(cfg, tokenizer, max_positions)
        _train(model, cfg, batches, tokenizer.pad_token_id, progress)
    from safetensors import SafetensorError

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as beside:
            saved = Path(beside) / "model"
            model.save_pretrained(saved)
            tokenizer.save_pretrained(saved)
            for file in saved.iterdir():
                file.chmod(usual_mode())
            os.replace(saved, target)
    except (OSError, SafetensorError) as error:
        raise W2SError(
            f"{target}: the pretrained model could not be saved ({error}); free space there or "
            "name another directory"
        ) from error


@contextmanager
def _one_thread() -> Iterator[None]:
    """Run on one thread: a model this small gains little from two.

    Two threads on two cores that other processes use too wait for each other in every small
    operator: a step of 57 ms took 1.5 to 2.3 s.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _train(
    model: Any,
    cfg: LanguageModelConfig,
    batches: Iterator[Tensor],
    pad: int,
    progress: Progress | None,
) -> None:
    model.train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=cfg.lr, betas=(0.9, 0.95), weight_decay=0.05
    )
    for step in range(cfg.steps):
        for group in optimizer.param_groups:
            group["lr"] = cfg.lr * _schedule(step, cfg.steps)
        tokens = next(batches)
        logits = model(input_ids=tokens).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), tokens[:, 1:].flatten(), ignore_index=pad
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if progress is not None:
            progress(step + 1, cfg.steps, loss.item())


def _new_model(cfg: LanguageModelConfig, tokenizer: Any, max_positions: int) -> LlamaForCausalLM:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=cfg.hidden,
        num_hidden_layers=cfg.layers,
        num_attention_heads=cfg.heads,
        num_key_value_heads=cfg.heads,
        intermediate_size=max(8, cfg.hidden * 8 // 3 // 8 * 8),
        max_position_embeddings=max_positions,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        use_cache=False,
    )
    return LlamaForCausalLM(config)


def _schedule(step: int, steps: int) -> float:
    """Return the learning rate / peak: linear warm-up times a cosine that ends above zero."""
    warm = min(1.0, (step + 1) / _WARMUP_STEPS)
    cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
    return warm * (_FLOOR_FRAC + (1 - _FLOOR_FRAC) * cosine)
