"""Generation from sums of the logits of two models: against full forwards, token by token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.generation_cases import checkpoint, texts

from w2s_fast.integrations.decoding import guided
from w2s_fast.models import ModelConfig, build_model
from w2s_fast.tasks.datasets.agreement import tokenizer as agreement_tokenizer
from w2s_fast.training import generate

PROMPTS, _ = texts()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return agreement_tokenizer()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> tuple[Any, Any]:
    folder = checkpoint("llama", Path(tmp_path_factory.mktemp("lm")), tokenizer)
    after, before = (
        build_model(ModelConfig(str(folder)), 2, tokenizer, 0, kind="generation") for _ in range(2)
    )
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in before.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=g))
    return after, before.eval()


def by_hand(models: tuple[Any, Any], tokenizer: Any, prompt: str, a: float, alpha: float) -> str:
    """Five greedy tokens of (1 + a) z - a z_0 among plausible ones."""
    after, before = (m.lm.eval() for m in models)
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    start = ids.shape[1]
    for _ in range(5):
        z, z0 = (lm(ids).logits[0, -1].detach() for lm in (after, before))
        total = (1 + a) * z - a * z0
        total[z.softmax(0) < alpha * z.softmax(0).max()] = -torch.inf
        token = int(total.argmax())
        if token == tokenizer.eos_token_id:
            break
        ids = torch.cat([ids, torch.tensor([[token]])], 1)
    return " " + tokenizer.decode(ids[0, start:]).strip() if ids.shape[1] > start else ""


@pytest.mark.parametrize(("a", "alpha"), [(0.5, 0.1), (3.0, 0.0), (3.0, 0.9)])
def test_greedy_texts_are_those_of_full_forwards(
    models: tuple[Any, Any], tokenizer: Any, a: float, alpha: float
) -> None:
    after, before = models

    def guide(mask: Any) -> Any:
        return guided(before.lm, 1 + a, alpha=alpha, attention_mask=mask)

    got = generate(after, tokenizer, PROMPTS, 5, guide=guide, batch_size=4)
    expected = [by_hand(models, tokenizer, prompt, a, alpha) for prompt in PROMPTS]
    assert [text.strip() for text in got] == [text.strip() for text in expected]
    assert alpha or got != generate(after, tokenizer, PROMPTS, 5)


def test_samples_share_prompts_and_do_not_depend_on_the_batch(
    models: tuple[Any, Any], tokenizer: Any
) -> None:
    after, before = models

    def sample(**options: Any) -> list[str]:
        return generate(
            after, tokenizer, PROMPTS, 4, temperature=1.0, n=3, seed=2, **options,
            guide=lambda mask: guided(before.lm, 1.5, attention_mask=mask),
        )  # fmt: skip

    got = sample()
    assert got == sample(batch_size=2) and len(got) == 3 * len(PROMPTS)
    none = generate(after, tokenizer, PROMPTS, 4, temperature=1.0, n=3, seed=2)
    assert got != none
    one = generate(after, tokenizer, PROMPTS, 4, temperature=1.0, n=3, seed=2,
                   guide=lambda mask: guided(before.lm, 1.0, attention_mask=mask))  # fmt: skip
    assert one == none, "scale 1 is the model itself"
