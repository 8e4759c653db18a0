"""Sums of logits while generating, against full forwards of every model at every step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.tiny_lms import V, tiny_lm
from torch import Tensor
from transformers import LogitsProcessor

from w2s_fast.errors import W2SError
from w2s_fast.integrations.decoding import (
    LogitArithmetic,
    Term,
    check_same_vocabulary,
    combine,
    contrastive,
    guided,
)
from w2s_fast.integrations.decoding.terms import CachedModel

PAIRS = {"llama": ("llama", "gpt2"), "gpt2": ("gpt2", "llama")}
NEW = 6


def models(pair: str, **fields: Any) -> tuple[Any, Any]:
    """A strong and a weak model of different architectures, with large random weights."""
    strong, weak = PAIRS[pair]
    return tuple(
        tiny_lm(name, num_hidden_layers=layers, eos_token_id=None, **fields).eval()
        for name, layers in ((strong, 2), (weak, 1))
    )  # type: ignore[return-value]


def prompts(padded: bool = True) -> dict[str, Tensor]:
    ids = torch.randint(3, V, (3, 5), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    if padded:
        for row, n in ((0, 2), (2, 1)):
            ids[row, :n], mask[row, :n] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


@torch.no_grad()
def full_logits(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """One forward over everything, without a cache; a row alone and without its padding."""
    rows = [
        model(input_ids=i[m.bool()][None], use_cache=False).logits[0, -1]
        for i, m in zip(ids, mask, strict=True)
    ]
    return torch.stack(rows)


def naive(
    mix: Callable[[Tensor, Tensor], Tensor],
    own: Any,
    other: Any,
    ids: Tensor,
    mask: Tensor,
    seed: int | None = None,
    temperature: float = 1.0,
    other_prompt: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Greedy, or sampled as transformers samples, by a loop of full forwards."""
    if seed is not None:
        torch.manual_seed(seed)
    read, read_mask = other_prompt or (ids, mask)
    for _ in range(NEW):
        z = mix(full_logits(own, ids, mask), full_logits(other, read, read_mask))
        if seed is None:
            token = z.argmax(1)
        else:
            token = torch.multinomial((z / temperature).softmax(-1), 1)[:, 0]
        ids, read = (torch.cat([x, token[:, None]], 1) for x in (ids, read))
        mask, read_mask = (torch.cat([m, torch.ones_like(m[:, :1])], 1) for m in (mask, read_mask))
    return ids


def generate(model: Any, processor: Any, seed: int | None = None, **options: Any) -> Tensor:
    if seed is not None:
        torch.manual_seed(seed)
        options |= {"do_sample": True, "top_k": 0, "temperature": 0.7}
    settings = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0} | options
    with_prompts = {**prompts(), **settings}
    ids: Tensor = model.generate(**with_prompts, logits_processor=[processor])
    return ids


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5])
def test_guided_is_the_formula(pair: str, scale: float) -> None:
    strong, weak = models(pair)
    x = prompts()

    def formula(s: Tensor, w: Tensor) -> Tensor:
        return w + scale * (s - w)

    for seed in (None, 7):
        ours = generate(strong, guided(weak, scale, attention_mask=x["attention_mask"]), seed)
        expected = naive(formula, strong, weak, *x.values(), seed=seed, temperature=0.7)
        assert torch.equal(ours, expected)
    if scale == 0:
        plain = weak.generate(**x, max_new_tokens=NEW, do_sample=False, pad_token_id=0)
        assert torch.equal(generate(strong, guided(weak, 0, **masked())), plain)


def masked() -> dict[str, Tensor]:
    return {"attention_mask": prompts()["attention_mask"]}


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("alpha", [0.0, 0.1, 1.0])
def test_contrastive_is_the_formula(pair: str, alpha: float) -> None:
    strong, weak = models(pair)
    x = prompts()

    def formula(z: Tensor, bias: Tensor) -> Tensor:
        p = z.softmax(-1)
        implausible = p < alpha * p.amax(-1, keepdim=True) * (1 - 1e-6)
        return (z.log_softmax(-1) - 0.8 * bias.log_softmax(-1)).masked_fill(implausible, -math.inf)

    for seed in (None, 3):
        ours = generate(strong, contrastive(weak, 0.8, alpha=alpha, **masked()), seed)
        expected = naive(formula, strong, weak, *x.values(), seed=seed, temperature=0.7)
        assert torch.equal(ours, expected)
    if alpha == 1:  # nothing but the most likely token is plausible
        plain = strong.generate(**x, max_new_tokens=NEW, do_sample=False, pad_token_id=0)
        assert torch.equal(generate(strong, contrastive(weak, alpha=1.0, **masked())), plain)


def test_the_prior_of_the_model_itself() -> None:
    """A bias model with prompts of its own, here the generating model on other texts."""
    strong, _ = models("llama")
    x = prompts()
    own = torch.tensor([[0, 5, 9], [4, 4, 8], [7, 6, 3]])
    own_mask = (own != 0).long()
    debias = contrastive(strong, 0.9, alpha=0.05, input_ids=own, prompt_mask=own_mask, **masked())

    def formula(z: Tensor, bias: Tensor) -> Tensor:
        p = z.softmax(-1)
        return (z - 0.9 * bias).masked_fill(p < 0.05 * p.amax(-1, keepdim=True), -math.inf)

    expected = naive(formula, strong, strong, *x.values(), other_prompt=(own, own_mask))
    assert torch.equal(generate(strong, debias), expected)
    assert torch.equal(generate(strong, debias), expected), "a second generation begins anew"


def test_a_processor_may_be_used_again() -> None:
    """For other prompts, shorter ones, and one that goes on where the last call ended."""
    strong, weak = models("llama")
    processor = guided(weak, 1.5)
    settings = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}
    ids = prompts(padded=False)["input_ids"]
    for other in (ids, ids.flip(0), ids[:, :3], ids[:2]):
        found = strong.generate(other, **settings, logits_processor=[processor])
        expected = naive(
            lambda s, w: w + 1.5 * (s - w), strong, weak, other, torch.ones_like(other)
        )
        assert torch.equal(found, expected)
    longer = strong.generate(found, **settings, logits_processor=[processor])
    assert torch.equal(
        longer, strong.generate(found, **settings, logits_processor=[guided(weak, 1.5)])
    )


class FullForwards(LogitsProcessor):
    """The same sum without any state: a forward over all tokens at each call."""

    def __init__(self, terms: list[tuple[float, Any]], own: float) -> None:
        self.terms, self.own = terms, own

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        mask = prompts()["attention_mask"]
        mask = mask.repeat_interleave(len(input_ids) // len(mask), 0)
        new = input_ids.shape[1] - mask.shape[1]
        mask = torch.cat([mask, torch.ones(len(mask), new, dtype=mask.dtype)], 1)
        z = self.own * scores
        for a, model in self.terms:
            z = z + a * full_logits(model, input_ids, mask)
        return z.log_softmax(-1)


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 4},
        {"num_beams": 4, "num_return_sequences": 3, "length_penalty": 0.0},
        {"num_beams": 3, "do_sample": True, "seed": 5},
        {"num_return_sequences": 3, "seed": 5},
    ],
    ids=["beams", "several beams", "sampled beams", "samples"],
)
def test_rows_that_change_places(options: dict[str, Any]) -> None:
    strong, weak = models("llama")
    third = tiny_lm("qwen3", eos_token_id=None).eval()
    coefficients = [(-0.4, weak), (0.7, third)]
    ours = LogitArithmetic([Term(m, a) for a, m in coefficients], own=1.3, **masked())
    found = [generate(strong, p, **options) for p in (ours, FullForwards(coefficients, 1.3))]
    assert torch.equal(*found)


def test_beams_do_change_places() -> None:
    """Otherwise the test above would not see a cache in the wrong order."""
    strong, weak = models("llama")
    processor = LogitArithmetic([Term(weak, -0.4)], own=1.3, **masked())
    orders = []
    find = processor._models[0]._order

    def watched(ids: Tensor, mask: Tensor) -> Tensor | None:
        orders.append(find(ids, mask))
        return orders[-1]

    processor._models[0]._order = watched  # type: ignore[method-assign]
    generate(strong, processor, num_beams=4)
    assert orders[0] is None and all(order is not None for order in orders[1:])
    assert any(not torch.equal(order, torch.arange(12)) for order in orders[1:])


def test_each_token_is_read_once() -> None:
    strong, weak = models("llama")
    widths = []
    weak.register_forward_pre_hook(
        lambda _, __, kwargs: widths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    generate(strong, guided(weak, 1.5, **masked()))
    assert widths == [5] + [1] * (NEW - 1)


@pytest.mark.parametrize("change", ["a row", "the order and a row", "a mask", "the order"])
def test_what_does_not_continue_is_read_from_its_beginning(change: str) -> None:
    """The logits depend only on what is passed, never on the call before."""
    model = models("llama")[0]
    cached = CachedModel(model)
    x = prompts()
    ids, mask = x["input_ids"], x["attention_mask"]
    with torch.no_grad():
        cached.next_logits(ids, mask)
        ids, mask = (torch.cat([t, t.new_ones(3, 1)], 1) for t in (ids, mask))
        if "order" in change:
            ids, mask = ids.flip(0), mask.flip(0)
        if "row" in change:
            ids[1, 2] = 9 if ids[1, 2] != 9 else 8
        if "mask" in change:
            mask[1, 0] = 0
        found = cached.next_logits(ids, mask)
    torch.testing.assert_close(found, full_logits(model, ids, mask), rtol=1e-4, atol=1e-4)


def test_assisted_generation_goes_back() -> None:
    """A draft that is rejected is no continuation: the weak model reads the row again."""
    strong, weak = models("llama")
    one = {k: v[1:2] for k, v in prompts().items()}
    settings = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}
    plain, assisted = (
        strong.generate(**one, **settings, **more, logits_processor=[guided(weak, 1.5)])
        for more in ({}, {"assistant_model": tiny_lm("mistral", eos_token_id=None).eval()})
    )
    assert torch.equal(plain, assisted)


def test_heads_of_different_sizes_share_a_vocabulary() -> None:
    """What a model pads its head with is never generated, by either model."""
    strong, _ = models("llama", vocab_size=V + 5)
    _, weak = models("llama", vocab_size=V + 2)
    processor = guided(weak, 1.5, vocab_size=V, **masked())
    scores = processor(prompts()["input_ids"], torch.randn(3, V + 5))
    assert scores.shape == (3, V + 5)
    assert (scores[:, V:] == -math.inf).all() and scores[:, :V].isfinite().all()
    torch.testing.assert_close(scores.exp().sum(1), torch.ones(3))
    with pytest.raises(W2SError, match="72 logits, the GPT2LMHeadModel of a term 69; expected one"):
        generate(strong, guided(weak, 1.5, **masked()))
    with pytest.raises(W2SError, match="vocab_size is 70, but the models have 72 and 69"):
        generate(strong, guided(weak, 1.5, vocab_size=70, **masked()))


def test_vocabularies_are_compared_by_token() -> None:
    class Vocabulary:
        def __init__(self, *tokens: str) -> None:
            self.tokens = {t: i for i, t in enumerate(tokens)}

        def get_vocab(self) -> dict[str, int]:
            return self.tokens

    assert check_same_vocabulary(Vocabulary("a", "b"), Vocabulary("a", "b")) == 2
    with pytest.raises(W2SError, match="token 1 is 'b' in the first vocabulary and 'c'"):
        check_same_vocabulary(Vocabulary("a", "b"), Vocabulary("a", "c"))
    with pytest.raises(W2SError, match="token 1 is None in the first vocabulary and 'b'"):
        check_same_vocabulary(Vocabulary("a"), Vocabulary("a", "b"))


def test_excluded_tokens_stay_excluded() -> None:
    """A class of logit -inf in one model, whatever the sign of its coefficient, or 0."""
    z, other = torch.randn(2, 5, dtype=torch.float64), torch.randn(2, 5)
    z[0, 1] = other[1, 3] = -math.inf
    for a in (-1.0, 0.0, 2.0):
        out = combine(z, [(a, other)], own=a)
        assert out[0, 1] == -math.inf and out[1, 3] == -math.inf
        assert out.dtype == torch.float64 and out.isfinite().sum() == 8
        torch.testing.assert_close(out.exp().sum(1), torch.ones(2, dtype=torch.float64))


BAD: list[tuple[Callable[[Any], Any], str]] = [
    (lambda m: LogitArithmetic([]), "terms are .*expected at least one Term"),
    (lambda m: LogitArithmetic([m]), "expected at least one Term"),
    (lambda m: guided(m, math.nan), "coefficient is nan; expected a finite number"),
    (lambda m: guided(m, "2"), "coefficient is '2'; expected a finite number"),
    (lambda m: contrastive(m, alpha=1.5), r"alpha is 1.5; expected a number in \[0, 1\]"),
    (lambda m: guided(m.train(), 2.0), r"in train mode; expected eval mode: call model.eval\(\)"),
    (lambda m: guided(torch.nn.Linear(2, 2), 2.0), "model is a Linear; expected a causal"),
    (lambda m: guided(m, 2.0, vocab_size=0), "vocab_size is 0; expected the number of shared"),
    (lambda m: contrastive(m, prompt_mask=torch.ones(1, 2)), "input_ids are None; expected"),
    (lambda m: contrastive(m, input_ids=torch.ones(1, 3).long(), prompt_mask=torch.ones(1, 2)),
     r"attention_mask has shape \(1, 2\); expected \(1, 3\)"),
    (lambda m: combine(torch.ones(2, 3), [(1.0, torch.ones(2, 4))]), r"shape \(2, 4\); expected"),
    (lambda m: generate(m, guided(m, 2.0)), "prompt 0 begins with the padding token 0.*attention_"),
    (lambda m: generate(m, guided(m, 2.0, attention_mask=torch.ones(3, 4).long())),
     "attention_mask has 4 columns, the prompts 5"),
    (lambda m: generate(m, guided(m, 2.0, attention_mask=torch.ones(2, 5).long())),
     r"attention_mask has shape \(2, 5\); expected .* generation of 3 rows"),
]  # fmt: skip


@pytest.mark.parametrize(("run", "message"), BAD, ids=[m[:30] for _, m in BAD])
def test_what_does_not_fit_is_an_error(run: Callable[[Any], Any], message: str) -> None:
    _, weak = models("llama")
    with pytest.raises(W2SError, match=message):
        run(weak)


def test_encoder_decoders_are_refused() -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    small = T5Config(vocab_size=V, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    with pytest.raises(W2SError, match="has an encoder; expected a decoder"):
        guided(T5ForConditionalGeneration(small).eval(), 2.0)
