"""Samples of a model: their distribution, what they depend on, and one computation of a prompt."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.generation_cases import checkpoint, texts

from w2s_fast.errors import W2SError
from w2s_fast.models import ModelConfig, build_model
from w2s_fast.sampling import GenerateSampler, Sampler, sample_seed
from w2s_fast.tasks.datasets.agreement import tokenizer as agreement_tokenizer
from w2s_fast.training import generate, generation

PROMPTS = list(dict.fromkeys(texts()[0]))
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return agreement_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = checkpoint("llama", tmp_path_factory.mktemp("llama"), tokenizer)
    return build_model(ModelConfig(str(path)), 2, tokenizer, 0, kind="generation")


def sampler(model: Any, tokenizer: Any, **changes: Any) -> GenerateSampler:
    return GenerateSampler(
        **{"model": model, "tokenizer": tokenizer, "max_new_tokens": 6} | changes
    )


def test_a_sample_depends_on_seed_prompt_and_number_alone(model: Any, tokenizer: Any) -> None:
    own = sampler(model, tokenizer)
    assert isinstance(own, Sampler)
    got = dict(zip(PROMPTS, own.sample(PROMPTS, 4, seed=3), strict=True))
    assert all(len(own_texts) == 4 for own_texts in got.values())
    assert len({t for own_texts in got.values() for t in own_texts}) > 2 * len(PROMPTS)
    order = np.random.default_rng(0).permutation(len(PROMPTS))
    shuffled = [PROMPTS[i] for i in order]
    small = sampler(model, tokenizer, batch_tokens=40)
    assert small.sample(shuffled, 4, seed=3) == [got[p] for p in shuffled]
    assert own.sample(PROMPTS[3:4], 2, seed=3) == [got[PROMPTS[3]][:2]], "the first of more samples"
    assert own.sample([PROMPTS[1]] * 2, 4, seed=3) == [got[PROMPTS[1]]] * 2
    other = own.sample(PROMPTS, 4, seed=4)
    assert sum(a != b for a, b in zip(other, got.values(), strict=True)) > len(PROMPTS) // 2


def test_greedy_samples_are_generated_once(model: Any, tokenizer: Any) -> None:
    seen: list[tuple[int, int]] = []
    own = sampler(model, tokenizer, temperature=0.0, progress=lambda *counts: seen.append(counts))
    got = own.sample(PROMPTS, 3)
    assert got == [[text] * 3 for text in generate(model, tokenizer, PROMPTS, 6)]
    assert seen[-1] == (len(PROMPTS), len(PROMPTS))


def test_top_p_leaves_the_fewest_tokens_with_that_probability(model: Any, tokenizer: Any) -> None:
    """1500 first tokens: none beyond the nucleus, each in it within 4.5 standard deviations."""
    prompt, n, top_p = "the old key", 1500, 0.6
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    p = model.lm.eval()(ids).logits[0, -1].softmax(0).detach().double()
    order = p.argsort(descending=True)
    n_nucleus = int((p[order].cumsum(0) < top_p).sum()) + 1
    nucleus = order[:n_nucleus].tolist()
    assert 1 < n_nucleus < len(p) / 2, "the case must tell"
    own = sampler(model, tokenizer, max_new_tokens=1, top_p=top_p, batch_size=500)
    found = Counter(own.sample([prompt], n)[0])
    special = set(tokenizer.all_special_ids)
    names = {f" {tokenizer.decode([t])}" if t not in special else "": t for t in nucleus}
    assert set(found) <= set(names) | {""}
    share = p[nucleus] / p[nucleus].sum()
    for name, token in names.items():
        if name:
            q = float(share[nucleus.index(token)])
            assert abs(found[name] - n * q) < 4.5 * (n * q * (1 - q)) ** 0.5 + 1, name


def _architectures() -> dict[str, Any]:
    import transformers as t

    grouped = {**SIZES, "num_key_value_heads": 1, "intermediate_size": 24}
    return {
        "llama": lambda c: t.LlamaForCausalLM(t.LlamaConfig(**c, **grouped)),
        "mistral, window of 3": lambda c: t.MistralForCausalLM(
            t.MistralConfig(**c, **grouped, sliding_window=3)
        ),
        "gemma2, both": lambda c: t.Gemma2ForCausalLM(
            t.Gemma2Config(**c, **grouped, head_dim=8, sliding_window=3)
        ),
        "gpt_neox": lambda c: t.GPTNeoXForCausalLM(
            t.GPTNeoXConfig(**c, **SIZES, intermediate_size=24)
        ),
        "bloom": lambda c: t.BloomForCausalLM(
            t.BloomConfig(**c, hidden_size=16, n_layer=2, n_head=2)
        ),
    }


@pytest.mark.parametrize("name", list(_architectures()))
def test_a_prompt_is_computed_once_for_its_samples(
    name: str, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same texts as without, from fewer tokens; bloom, without position_ids, takes all rows."""
    common = {
        "vocab_size": len(tokenizer), "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id,
        "initializer_range": 0.3,
    }  # fmt: skip
    torch.manual_seed(0)
    lm = _architectures()[name](common).eval()
    model = SimpleNamespace(
        lm=lm, parameters=lm.parameters, training=False, eval=lm.eval, train=lm.train
    )
    shapes: list[torch.Size] = []
    lm.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    own = sampler(model, tokenizer, batch_size=1000)
    got = own.sample(PROMPTS, 5)
    prompt_shapes = [shape for shape in shapes if shape[1] > 1]
    n_rows, n_batches = sum(rows for rows, _ in prompt_shapes), len(prompt_shapes)
    if name == "bloom":
        assert n_rows == 5 * len(PROMPTS)
    else:  # two batches may have samples of one prompt
        assert len(PROMPTS) <= n_rows < len(PROMPTS) + n_batches
    monkeypatch.setattr(generation, "prompt_cache", lambda *_: None)
    assert own.sample(PROMPTS, 5) == got
    assert len({t for own_texts in got for t in own_texts}) > len(PROMPTS)


@pytest.mark.parametrize(
    ("changes", "call", "problem"),
    [
        ({}, ([], 1), "prompts are \\[\\]; expected a list of at least one text"),
        ({}, ("one text", 1), "prompts are 'one text'; expected a list"),
        ({}, (["a", " "], 1), r"prompts\[1\] is ' '; expected a text that is not blank"),
        ({}, (["a"], 0), "n is 0; expected at least 1"),
        ({}, (["a"], True), "n is True; expected at least 1"),
        ({"top_p": 0.0}, (["the"], 1), r"top_p is 0.0; expected a probability in \(0, 1\]"),
        ({"top_p": 1.5}, (["the"], 1), "top_p is 1.5"),
        ({"batch_tokens": 0}, (["the"], 1), "batch_tokens 0; expected at least 1"),
        ({"temperature": -1.0}, (["the"], 1), "temperature -1.0"),
        ({"max_new_tokens": 0}, (["the"], 1), "max_new_tokens is 0"),
    ],
)
def test_wrong_values(
    model: Any, tokenizer: Any, changes: dict[str, Any], call: tuple[Any, int], problem: str
) -> None:
    with pytest.raises(W2SError, match=problem):
        sampler(model, tokenizer, **changes).sample(*call)


def test_seeds(model: Any, tokenizer: Any) -> None:
    with pytest.raises(W2SError, match="1 seeds for 2 prompts; expected one each"):
        generate(model, tokenizer, PROMPTS[:2], 2, temperature=1.0, seed=[1])
    seeds = {sample_seed(s, p, 31) for s in range(20) for p in PROMPTS}
    assert len(seeds) == 20 * len(PROMPTS) and max(seeds) < 2**31 and min(seeds) >= 0
    assert sample_seed(1, "1\0a") != sample_seed(11, "\0a"), "seed and prompt do not run together"
