"""Text generation, greedy or sampled, with the same result on any number of processes.

Sampling is exact and independent of batching: the Gumbel-max trick, argmax(z / T + g), with noise
from a separate generator for every sample. Thus neither the batch of a row nor the process that
computes it changes the result, beyond rounding.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from w2s_fast.distributed.world import get_world
from w2s_fast.errors import W2SError
from w2s_fast.models.weights import is_partitioned
from w2s_fast.training.completions import encode_prompts, end_token
from w2s_fast.training.data import Encoded, derived_seed, token_batches
from w2s_fast.training.prediction import distributed_batches
from w2s_fast.training.train_mode import eval_mode

# Tokens of a batch, prompts and completions: a step reads all weights, whatever the batch size.
BATCH_TOKENS = 16384

# From the attention mask (B, T) of a batch's prompts to a logits processor of transformers.
Guide = Callable[[Tensor], Any]


@torch.no_grad()
def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    max_new_tokens: int,
    *,
    temperature: float = 0.0,
    top_p: float = 1.0,
    n: int = 1,
    seed: int | Sequence[int] = 0,
    batch_size: int = 64,
    batch_tokens: int = BATCH_TOKENS,
    max_length: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    guide: Guide | None = None,
) -> list[str]:
    """Generate a completion of each prompt, up to the end token.

    Prompts of similar length form a batch, padded on the left; keys and values are cached, those of
    a prompt once for all its completions in the batch. Under a launcher every process calls this
    with the same prompts, generates its share and receives all. The model runs in eval mode and is
    returned to its mode; random state is not touched.

    Args:
        model: a causal language model from ``build_model``.
        tokenizer: its tokenizer.
        prompts: N texts.
        max_new_tokens: maximum tokens of a completion.
        temperature: 0: the most likely token each time. Above: sampled from softmax(z / T).
        top_p: below 1, samples are drawn from the fewest most likely tokens with this probability
            together, after the temperature.
        n: completions a prompt.
        seed: of the samples; sample j of prompt i is a function of it, i, j and the model. Or one
            seed for each prompt, in place of the common seed and i.
        batch_size: maximum completions of one batch.
        batch_tokens: maximum tokens of one batch, prompts and completions.
        max_length: tokens of prompt and completion together; a prompt that is too long loses its
            beginning. None: the limit of model and tokenizer.
        progress: called on rank 0 with (completions done, completions).
        guide: makes the logits processor of a batch from the attention mask (B, T) of its prompts,
            such as ``LogitArithmetic``. It runs before temperature and top-p, in the processes that
            compute the batch.

    Returns:
        N n texts without the end token, the completions of one prompt side by side.

    Raises:
        W2SError: for numbers that do not fit, no prompts, or an empty one.
    """
    room = _prompt_room(model, tokenizer, max_new_tokens, max_length, temperature, n)
    _check_sampling(top_p, batch_size, batch_tokens, seed, len(prompts))
    data = encode_prompts(tokenizer, prompts, room)
    world, device = get_world(), next(model.parameters()).device
    rows = np.repeat(np.arange(len(data)), n)
    lengths = data.lengths[rows] + max_new_tokens
    batches = list(token_batches(lengths, batch_size, batch_tokens))
    generated: list[tuple[int, list[int]]] = []
    with eval_mode(model):
        for own, group in distributed_batches(batches, world, progress):
            seeds = [_seed(seed, int(rows[i]), int(i) % n) for i in own]
            sampler = _Sampler(seeds, temperature, top_p, device) if temperature else None
            tokens = _generate_batch(
                model, tokenizer, data, rows[own], max_new_tokens, sampler, guide
            )
            if world.rank < len(group):
                generated += zip(own.tolist(), tokens, strict=True)
    by_row = dict(tuple(pair) for part in world.all_gather_object(generated) for pair in part)
    prompt = np.split(data.tokens, data.offsets[1:-1])
    return [_text(tokenizer, prompt[rows[i]].tolist(), by_row[i]) for i in range(len(rows))]


def _seed(seed: int | Sequence[int], row: int, sample: int) -> int:
    if isinstance(seed, int):
        return derived_seed(seed, row, sample)
    return derived_seed(seed[row], sample)


class _Sampler:
    """Logits processor of transformers: adds Gumbel noise, so that the argmax is a sample."""

    supports_continuous_batching = False

    def __init__(
        self, seeds: Sequence[int], temperature: float, top_p: float, device: torch.device
    ) -> None:
        from transformers import TopPLogitsWarper

        self._generators = [torch.Generator(device).manual_seed(s) for s in seeds]
        self._temperature = temperature
        self._top_p = TopPLogitsWarper(top_p) if top_p < 1 else None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        z = scores.float() / self._temperature
        if self._top_p is not None:
            z = self._top_p(input_ids, z)
        for row, generator in zip(z, self._generators, strict=True):
            row -= torch.empty_like(row).exponential_(generator=generator).log_()
        return z


def _generate_batch(
    model: Any,
    tokenizer: Any,
    data: Encoded,
    rows: np.ndarray,
    max_new_tokens: int,
    sampler: _Sampler | None,
    guide: Guide | None,
) -> list[list[int]]:
    """Return the new tokens of each row up to its end token."""
    from transformers import GenerationConfig

    ids, mask, _ = data.batch(rows, next(model.parameters()).device)
    # From right to left padding: a stable sort moves the padding to the front.
    order = mask.argsort(dim=1, stable=True)
    ids, mask = ids.gather(1, order), mask.gather(1, order)
    lm = model.lm
    end_tokens = _end_tokens(lm, tokenizer)
    cache = prompt_cache(lm, ids, mask, rows)
    processors = [] if guide is None else [guide(mask)]
    processors += [] if sampler is None else [sampler]
    original, lm.generation_config = lm.generation_config, GenerationConfig()
    try:
        out = lm.generate(
            input_ids=ids,
            attention_mask=mask,
            past_key_values=cache,
            generation_config=GenerationConfig(
                max_new_tokens=max_new_tokens,
                do_sample=False,
                use_cache=True,
                eos_token_id=end_tokens,
                pad_token_id=data.pad_id,
            ),
            logits_processor=processors,
            synced_gpus=get_world().size > 1 and any(map(is_partitioned, lm.parameters())),
        )
    finally:
        lm.generation_config = original
    completions = []
    for row in out[:, ids.shape[1] :].tolist():
        stop = next((i for i, token in enumerate(row) if token in end_tokens), len(row))
        completions.append(row[:stop])
    return completions


def prompt_cache(lm: Any, ids: Tensor, mask: Tensor, rows: np.ndarray) -> Any:
    """Return keys and values of all prompt tokens but the last, computed once a prompt.

    Args:
        lm: transformers model with a language-model head.
        ids, mask: (B, T) left-padded prompts.
        rows: (B,) the prompt of each row.

    Returns:
        A cache of B rows; None where ``generate`` computes it: each prompt has one row, all
        prompts have one token, the model is sharded, or its cache is more than keys and values.
    """
    distinct, first, index = np.unique(rows, return_index=True, return_inverse=True)
    parameters = inspect.signature(lm.forward).parameters
    if (
        len(distinct) == len(rows)
        or ids.shape[1] < 2
        or not {"logits_to_keep", "past_key_values", "position_ids"} <= set(parameters)
        # a process whose rows share nothing would not take part in gathering the weights
        or any(map(is_partitioned, lm.parameters()))
    ):
        return None
    # The last column, a real token of every prompt, is what ``generate`` continues from.
    own = torch.from_numpy(first).to(ids.device)
    prompt, prompt_mask = ids[own, :-1], mask[own, :-1]
    position_ids = (prompt_mask.cumsum(1) - 1).clamp(min=0)
    cache = lm(
        input_ids=prompt, attention_mask=prompt_mask, position_ids=position_ids, use_cache=True,
        logits_to_keep=1,
    ).past_key_values  # fmt: skip
    if not _holds_only_keys_and_values(cache):
        return None
    cache.batch_select_indices(torch.from_numpy(index).to(ids.device))
    return cache


def _holds_only_keys_and_values(cache: Any) -> bool:
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    kinds = (DynamicLayer, DynamicSlidingWindowLayer)
    return type(cache) is DynamicCache and all(type(layer) in kinds for layer in cache.layers)


def _end_tokens(lm: Any, tokenizer: Any) -> list[int]:
    """Return the tokens that end a completion: the tokenizer's, and those of the checkpoint."""
    more = getattr(lm.generation_config, "eos_token_id", None)
    ids = more if isinstance(more, list) else [] if more is None else [more]
    return sorted({end_token(tokenizer), *ids})


def _text(tokenizer: Any, prompt: list[int], new: list[int]) -> str:
    """Decode the new tokens after the prompt; some tokenizers drop a space that begins a text."""
    before = tokenizer.decode(prompt, skip_special_tokens=True)
    whole = tokenizer.decode([*prompt, *new], skip_special_tokens=True)
    if whole.startswith(before):
        return whole[len(before) :]
    return tokenizer.decode(new, skip_special_tokens=True)


def _prompt_room(
    model: Any,
    tokenizer: Any,
    max_new_tokens: int,
    max_length: int | None,
    temperature: float,
    n: int,
) -> int:
    """Return the maximum tokens of a prompt."""
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


def _check_sampling(
    top_p: float, batch_size: int, batch_tokens: int, seed: int | Sequence[int], n_prompts: int
) -> None:
    if not 0 < top_p <= 1:
        raise W2SError(f"top_p is {top_p}; expected a probability in (0, 1], 1 for all tokens")
    if batch_size < 1 or batch_tokens < 1:
        raise W2SError(
            f"batch_size is {batch_size}, batch_tokens {batch_tokens}; expected at least 1"
        )
    if not isinstance(seed, int) and len(seed) != n_prompts:
        raise W2SError(f"{len(seed)} seeds for {n_prompts} prompts; expected one each")
