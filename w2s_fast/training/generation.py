"""Texts that a language model writes: greedy or sampled, the same on any number of processes.

Sampling is exact and belongs to the row: the Gumbel-max trick, argmax(z / T + g), with noise from
a generator of its own for every sample. So neither the batch of a row nor the process that computes
it plays a part, beyond rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from w2s_fast.distributed.world import world
from w2s_fast.errors import W2SError
from w2s_fast.models.weights import is_partitioned
from w2s_fast.training.completions import encode_prompts, end_token
from w2s_fast.training.data import Encoded, derived_seed, token_batches

# Tokens of a batch, prompts and what is written: a step reads all weights, whatever the batch is.
BATCH_TOKENS = 16384


@torch.no_grad()
def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    max_new_tokens: int,
    *,
    temperature: float = 0.0,
    n: int = 1,
    seed: int | Sequence[int] = 0,
    batch_size: int = 64,
    max_length: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[str]:
    """What the model writes after each prompt, up to its end token.

    Prompts of like length are one batch, padded on the left; keys and values are cached. Under a
    launcher every process calls this with the same prompts, writes its share and gets all. The
    model runs in eval mode and is left in the mode it came in; random state is not touched.

    Args:
        model: of ``build_model(..., kind="generation")``.
        tokenizer: its tokenizer.
        prompts: N texts.
        max_new_tokens: tokens of an answer at most.
        temperature: 0: the most likely token each time. Above: sampled from softmax(z / T).
        n: answers a prompt.
        seed: of the samples; sample j of prompt i is a function of it, i, j and the model. Or one
            for each prompt, and i plays no part.
        batch_size: answers that are written together at most.
        max_length: tokens of prompt and answer together; a prompt that is too long loses its
            beginning. None: what model and tokenizer can read.
        progress: called on rank 0 with (answers done, answers).

    Returns:
        N n texts without the end token, the answers of one prompt side by side.

    Raises:
        W2SError: for numbers that do not fit, no prompts, or an empty one.
    """
    room = _room(model, tokenizer, max_new_tokens, max_length, temperature, n)
    data = encode_prompts(tokenizer, prompts, room)
    here, device = world(), next(model.parameters()).device
    rows = np.repeat(np.arange(len(data)), n)
    lengths = data.lengths[rows] + max_new_tokens
    batches = list(token_batches(lengths, batch_size, BATCH_TOKENS))
    written: list[tuple[int, list[int]]] = []
    training, done = model.training, 0
    model.eval()
    try:
        for start in range(0, len(batches), here.size):
            together = batches[start : start + here.size]
            # A partitioned model needs all of its processes in every forward.
            mine = together[min(here.rank, len(together) - 1)]
            seeds = [_seed(seed, int(rows[i]), int(i) % n) for i in mine]
            sampler = _Sampler(seeds, temperature, device) if temperature else None
            found = _write(model, tokenizer, data, rows[mine], max_new_tokens, sampler)
            if here.rank < len(together):
                written += zip(mine.tolist(), found, strict=True)
            done += sum(map(len, together))
            if progress is not None and here.first:
                progress(done, len(rows))
    finally:
        model.train(training)
    answers = dict(tuple(pair) for part in here.gather(written) for pair in part)
    prompt = np.split(data.tokens, data.offsets[1:-1])
    return [_text(tokenizer, prompt[rows[i]].tolist(), answers[i]) for i in range(len(rows))]


def _seed(seed: int | Sequence[int], row: int, sample: int) -> int:
    if isinstance(seed, int):
        return derived_seed(seed, row, sample)
    return derived_seed(seed[row], sample)


class _Sampler:
    """Adds to every row noise of its own; what is largest then is a sample. Of transformers."""

    supports_continuous_batching = False

    def __init__(self, seeds: Sequence[int], temperature: float, device: torch.device) -> None:
        self._generators = [torch.Generator(device).manual_seed(s) for s in seeds]
        self._temperature = temperature

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        z = scores.float() / self._temperature
        for row, generator in zip(z, self._generators, strict=True):
            row -= torch.empty_like(row).exponential_(generator=generator).log_()
        return z


def _write(
    model: Any,
    tokenizer: Any,
    data: Encoded,
    rows: np.ndarray,
    max_new_tokens: int,
    sampler: _Sampler | None,
) -> list[list[int]]:
    """New tokens of each row up to its end token."""
    from transformers import GenerationConfig

    ids, mask, _ = data.batch(rows, next(model.parameters()).device)
    # Right to left: a stable sort brings the padding to the front and keeps the tokens' order.
    order = mask.argsort(dim=1, stable=True)
    ids, mask = ids.gather(1, order), mask.gather(1, order)
    lm = model.lm
    ends = _ends(lm, tokenizer)
    own, lm.generation_config = lm.generation_config, GenerationConfig()
    try:
        out = lm.generate(
            input_ids=ids,
            attention_mask=mask,
            generation_config=GenerationConfig(
                max_new_tokens=max_new_tokens,
                do_sample=False,
                use_cache=True,
                eos_token_id=ends,
                pad_token_id=data.pad_id,
            ),
            logits_processor=[] if sampler is None else [sampler],
            synced_gpus=world().size > 1 and any(map(is_partitioned, lm.parameters())),
        )
    finally:
        lm.generation_config = own
    found = []
    for row in out[:, ids.shape[1] :].tolist():
        stop = next((i for i, token in enumerate(row) if token in ends), len(row))
        found.append(row[:stop])
    return found


def _ends(lm: Any, tokenizer: Any) -> list[int]:
    """Tokens that end an answer: the tokenizer's, and those the checkpoint names besides."""
    more = getattr(lm.generation_config, "eos_token_id", None)
    listed = more if isinstance(more, list) else [] if more is None else [more]
    return sorted({end_token(tokenizer), *listed})


def _text(tokenizer: Any, prompt: list[int], new: list[int]) -> str:
    """What the new tokens add to the text: some tokenizers drop a space that begins a text."""
    before = tokenizer.decode(prompt, skip_special_tokens=True)
    whole = tokenizer.decode([*prompt, *new], skip_special_tokens=True)
    if whole.startswith(before):
        return whole[len(before) :]
    return tokenizer.decode(new, skip_special_tokens=True)


def _room(
    model: Any,
    tokenizer: Any,
    max_new_tokens: int,
    max_length: int | None,
    temperature: float,
    n: int,
) -> int:
    """Tokens that a prompt may have."""
    if max_new_tokens < 1 or n < 1 or not 0 <= temperature < float("inf"):
        raise W2SError(
            f"max_new_tokens is {max_new_tokens}, n {n}, temperature {temperature}; expected at "
            "least 1, 1 and 0"
        )
    limits = [tokenizer.model_max_length, getattr(model.lm.config, "max_position_embeddings", None)]
    known = [x for x in (max_length, *limits) if x is not None]
    room = min(known) - max_new_tokens
    if room < 1:
        raise W2SError(
            f"max_new_tokens is {max_new_tokens}, which leaves no room for a prompt in "
            f"{min(known)} tokens; use fewer"
        )
    return room
