"""Products of low rank: the best approximation, the rank, merging, and distillation by hand."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from helpers.generation_cases import checkpoint
from torch import Tensor, nn

from w2s_fast.distributed.world import SINGLE_PROCESS
from w2s_fast.errors import W2SError
from w2s_fast.losses.features import FeatureDistillation
from w2s_fast.models import ModelConfig, build_model
from w2s_fast.models.low_rank import (
    FeatureModel,
    LowRankLinear,
    factorise,
    factors,
    is_low_rank,
    merge_low_rank,
    rank_of,
)
from w2s_fast.tasks.datasets.agreement import tokenizer


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def classifier(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = checkpoint(request.param, tmp_path_factory.mktemp("m") / "model", tokenizer())
    return build_model(ModelConfig(str(folder)), 2, tokenizer(), 0)


def _hidden(base: Any) -> Tensor:
    with torch.no_grad():
        out: Tensor = base.eval()(input_ids=torch.arange(2, 14).view(2, 6)).last_hidden_state
    return out


def test_factors_are_the_best_approximation() -> None:
    weight = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    up, down = factors(weight, 2)
    s = torch.linalg.svdvals(weight)
    error = (up @ down - weight).square().sum()
    torch.testing.assert_close(error, s[2:].square().sum())  # Eckart and Young
    norms = up.norm(dim=0), down.norm(dim=1)
    torch.testing.assert_close(norms[0], norms[1])  # roots of the singular values on both sides


def test_the_rank_is_that_of_a_share_of_the_parameters() -> None:
    assert [rank_of(share, 64, 16) for share in (1.0, 0.5, 0.25, 0.01)] == [12, 6, 3, 1]


@pytest.mark.parametrize("share", [0.25, 0.6])
def test_a_model_is_smaller_and_merges_back(classifier: Any, share: float) -> None:
    base = copy.deepcopy(classifier.base)
    sizes = {n: p.numel() for n, p in base.named_parameters()}
    factorise(base, share, SINGLE_PROCESS)
    assert is_low_rank(base)
    layers = [m for m in base.modules() if isinstance(m, LowRankLinear)]
    assert len(layers) == (14 if "q_proj" in str(sizes) else 8)
    for layer in layers:
        outputs, inputs = layer.up.shape[0], layer.down.shape[1]
        kept = layer.up.numel() + layer.down.numel()
        assert kept <= share * outputs * inputs < kept + outputs + inputs
    low = _hidden(base)
    assert (low - _hidden(classifier.base)).abs().max() > 1e-2
    merge_low_rank(base)
    assert not is_low_rank(base)
    assert {n: p.numel() for n, p in base.named_parameters()} == sizes
    torch.testing.assert_close(_hidden(base), low, rtol=1e-4, atol=1e-4)
    # What a merged checkpoint is factorised to again is what it was.
    factorise(base, share, SINGLE_PROCESS)
    torch.testing.assert_close(_hidden(base), low, rtol=1e-3, atol=1e-3)


def test_the_features_and_the_deviation(classifier: Any) -> None:
    """By hand: pooled states, and the mean over layers of (max |U V - W| - bound)^2."""
    model = copy.deepcopy(classifier)
    factorise(model.base, 0.5, SINGLE_PROCESS, keep_full=True)
    features = FeatureModel(model, bound=0.01).eval()
    ids = torch.arange(2, 14).view(2, 6)
    out = features(ids, torch.ones_like(ids))
    torch.testing.assert_close(out[:, :-1], _hidden(model.base)[:, -1])
    layers = [m for m in model.base.modules() if isinstance(m, LowRankLinear)]
    deviations = [(m.up @ m.down - m.full).abs().max() for m in layers]
    expected = torch.stack([(d - 0.01) ** 2 for d in deviations]).mean()
    torch.testing.assert_close(out[:, -1], expected.expand(2))
    assert all(m.full is not None and not m.full.requires_grad for m in layers)
    (grad,) = torch.autograd.grad(out[0, -1], layers[0].up)
    assert grad.abs().max() > 0
    assert features.n_classes == out.shape[1]


def test_the_loss_by_hand() -> None:
    z = torch.tensor([[1.0, 2.0, 0.3], [0.0, 0.0, 0.3]], requires_grad=True)
    f = torch.tensor([[1.0, 0.0, 0.0], [3.0, 4.0, 0.0]])
    out = FeatureDistillation(strength=2.0)(z, f)
    assert float(out.loss_sum.detach()) == pytest.approx(4 / 2 + 25 / 2 + 2 * 2 * 0.3)
    weighted = FeatureDistillation(strength=0.0)(z, f, weight=torch.tensor([3.0, 0.0]))
    assert float(weighted.loss_sum.detach()) == pytest.approx(3 * 4 / 2) and weighted.count == 3
    with pytest.raises(W2SError, match="strength is -1.0"):
        FeatureDistillation(strength=-1.0)


def test_what_does_not_fit_is_named(classifier: Any) -> None:
    with pytest.raises(W2SError, match=r"low_rank is 0; expected the share of parameters to keep"):
        factorise(classifier.base, 0, SINGLE_PROCESS)
    with pytest.raises(W2SError, match="at which no linear layer of the model becomes smaller"):
        factorise(nn.Sequential(nn.Linear(1, 4)), 1.0, SINGLE_PROCESS)
