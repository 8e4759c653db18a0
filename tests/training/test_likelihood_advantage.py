"""The likelihood advantage of core over spurious continuations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.generation_cases import checkpoint

from w2s_fast.errors import W2SError
from w2s_fast.losses import make_loss
from w2s_fast.models import ModelConfig, build_model
from w2s_fast.tasks.datasets.agreement import tokenizer as agreement_tokenizer
from w2s_fast.training import (
    TrainConfig,
    advantage_of,
    encode_completions,
    likelihood_advantage,
    sequence_logprob,
    train,
)

PROMPTS = ["the old key", "a red door", "the boy near a cat", "the dog"]
CORE, SPURIOUS = [" cat", " dog key", " red", " old"], [" key cat dog", " boy", " door a", " old"]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return agreement_tokenizer()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Any:
    folder = checkpoint("llama", Path(tmp_path_factory.mktemp("lm")), tokenizer)
    return build_model(ModelConfig(str(folder)), 2, tokenizer, 0, kind="generation")


def test_it_is_the_difference_of_log_probabilities_per_token(model: Any, tokenizer: Any) -> None:
    model.train()
    got = likelihood_advantage(model, tokenizer, PROMPTS, CORE, SPURIOUS, batch_size=3)
    assert model.training
    core, spurious = (
        sequence_logprob(model, tokenizer, PROMPTS, texts, end=False).astype(float)
        for texts in (CORE, SPURIOUS)
    )
    assert got.values == pytest.approx(core / [1, 2, 1, 1] - spurious / [3, 1, 2, 1], abs=1e-5)
    assert got.values[3] == pytest.approx(0, abs=1e-6), "the same continuation"
    whole = likelihood_advantage(model, tokenizer, PROMPTS, CORE, SPURIOUS, average=False)
    assert whole.values == pytest.approx(core - spurious, abs=1e-5)


def test_summary_by_hand() -> None:
    got = advantage_of(np.array([-1.0, -2.0, -3.0, -1.0]), np.array([-3.0, -1.0, -3.0, -2.0]))
    assert got.values.tolist() == [2, -1, 0, 1] and got.mean == 0.5
    assert got.share == (2 + 0.5) / 4
    assert got.se == pytest.approx(np.std([2, -1, 0, 1], ddof=1) / 2)
    assert np.isnan(advantage_of(np.array([-1.0]), np.array([-2.0])).se)


def test_a_model_that_learns_the_core_gains(model: Any, tokenizer: Any) -> None:
    before = likelihood_advantage(model, tokenizer, PROMPTS[:3], CORE[:3], SPURIOUS[:3])
    data = encode_completions(tokenizer, PROMPTS[:3], CORE[:3], end=False)
    train(model, data, data.labels, make_loss("xent"), TrainConfig(epochs=40, lr=1e-2), 0)
    after = likelihood_advantage(model, tokenizer, PROMPTS[:3], CORE[:3], SPURIOUS[:3])
    assert after.mean > before.mean + 1 and after.share == 1


def test_what_does_not_fit(model: Any, tokenizer: Any) -> None:
    with pytest.raises(W2SError, match="4 prompts, 3 core and 4 spurious continuations; expected"):
        likelihood_advantage(model, tokenizer, PROMPTS, CORE[:3], SPURIOUS)
    with pytest.raises(W2SError, match="at least one item"):
        likelihood_advantage(model, tokenizer, [], [], [])
    with pytest.raises(W2SError, match=r"core has shape \(2,\), spurious \(1,\)"):
        advantage_of(np.zeros(2), np.zeros(1))
    with pytest.raises(W2SError, match="item 1 has log-probabilities -inf and 0.0"):
        advantage_of(np.array([0.0, -np.inf]), np.zeros(2))
