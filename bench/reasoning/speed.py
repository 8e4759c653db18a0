"""Tokens per CPU second of `GenerateSampler` and of a loop over ``generate``, in turns.

The loop is what scripts do: one prompt and one sample at a time, keys and values cached. A second
baseline draws the n samples of a prompt in one call. Tokens are counted in the texts, by the
tokenizer, for all alike; CPU time, as other processes may share the machine.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from w2s_fast.models import ModelConfig, build_model, load_tokenizer
from w2s_fast.sampling import GenerateSampler
from w2s_fast.tasks.datasets.gsm8k import _SAMPLES

TEMPERATURE = 1.0


def measure(model_folder: Path, quick: bool, rounds: int) -> Iterator[dict[str, Any]]:
    """Yield a row per way to sample; the ratio is the median over rounds.

    Args:
        model_folder: A causal language model with its tokenizer.
        quick: Toy sizes.
        rounds: Rounds; each runs every way once.
    """
    cfg = ModelConfig(str(model_folder))
    tokenizer = load_tokenizer(cfg)
    model = build_model(cfg, 2, tokenizer, 0, kind="generation")
    model.eval()
    n, length = (2, 4) if quick else (4, 24)
    prompts = [f"Question: {question}\nAnswer:" for question, _ in _SAMPLES[: 2 if quick else 4]]
    sampler = GenerateSampler(
        model=model, tokenizer=tokenizer, max_new_tokens=length, temperature=TEMPERATURE
    )
    ways: dict[str, Callable[[], list[str]]] = {
        "loop, one sample a call": lambda: _loop(model.lm, tokenizer, prompts, n, length, 1),
        "loop, one prompt a call": lambda: _loop(model.lm, tokenizer, prompts, n, length, n),
        "GenerateSampler": lambda: [t for ts in sampler.sample(prompts, n, seed=0) for t in ts],
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            rates[name].append(_rate(way, tokenizer))
    base = rates["loop, one sample a call"]
    for name, own in rates.items():
        ratios = [a / b for a, b in zip(own, base, strict=True)]
        yield {
            "kind": "speed",
            "name": name,
            "tokens_per_cpu_s": statistics.median(own),
            "ratio": statistics.median(ratios),
            "least_ratio": min(ratios),
            "rounds": rounds,
            "n_prompts": len(prompts),
            "n_samples": n,
            "max_new_tokens": length,
            "parameters": sum(p.numel() for p in model.lm.parameters()),
            "model": type(model.lm).__name__,
        }


def _rate(way: Callable[[], list[str]], tokenizer: Any) -> float:
    start = time.process_time()
    texts = way()
    seconds = time.process_time() - start
    return sum(len(tokenizer(text)["input_ids"]) for text in texts) / seconds


@torch.no_grad()
def _loop(
    lm: Any, tokenizer: Any, prompts: list[str], n: int, length: int, at_once: int
) -> list[str]:
    texts = []
    for prompt in prompts:
        inputs = tokenizer(prompt, return_tensors="pt")
        for _ in range(n // at_once):
            out = lm.generate(
                **inputs, max_new_tokens=length, do_sample=True, temperature=TEMPERATURE, top_k=0,
                top_p=1.0, num_return_sequences=at_once, pad_token_id=tokenizer.eos_token_id,
            )  # fmt: skip
            new = out[:, inputs["input_ids"].shape[1] :]
            texts += tokenizer.batch_decode(new, skip_special_tokens=True)
    return texts
