"""Nested dropout: the draws, what a step reads, equality of all ways to train, and the width."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import ranks, sharded_training
from helpers.sharded_training import RECIPE, close, fit
from helpers.training_rows import BASE, N, encoded_rows, small_model, soft_labels
from torch import Tensor, nn

from w2s_fast.errors import W2SError
from w2s_fast.losses import make_loss
from w2s_fast.models.classifier import BagOfWords
from w2s_fast.probing import CachedHead, CachedRows, HeadRun, train_heads, truncate_heads
from w2s_fast.probing.linear_heads import HeadResult
from w2s_fast.training import TrainConfig, predict, train, truncate_head
from w2s_fast.training.nested_dropout import best_widths, nested_width, width_probabilities

D = 12


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from w2s_fast.tasks.datasets.agreement import tokenizer as agreement_tokenizer

    return agreement_tokenizer()


def _features(n: int = N) -> Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_probabilities_by_hand() -> None:
    mass = np.exp([-1 / 4, -4 / 4, -9 / 4])
    assert width_probabilities(3, 2.0) == pytest.approx(mass / mass.sum(), rel=1e-12)
    assert width_probabilities(3, 0.01).tolist() == [1.0, 0.0, 0.0]  # without underflow
    assert width_probabilities(4, 1e6) == pytest.approx(np.full(4, 0.25))
    for size, sigma in ((0, 1.0), (3, 0.0), (3, float("nan")), (3, float("inf"))):
        with pytest.raises(W2SError, match="sigma above 0"):
            width_probabilities(size, sigma)


def test_draws_follow_the_probabilities() -> None:
    draws = np.array([nested_width(5, 2.5, 3, step) for step in range(20_000)])
    shares = np.bincount(draws, minlength=6)[1:] / len(draws)
    expected = width_probabilities(5, 2.5)
    assert np.abs(shares - expected).max() < 4 * np.sqrt(0.25 / len(draws))
    other = [nested_width(5, 2.5, 4, step) for step in range(50)]
    assert draws[:50].tolist() == [nested_width(5, 2.5, 3, step) for step in range(50)] != other


def test_a_step_moves_the_columns_that_it_reads() -> None:
    model, rows = CachedHead(D, 2).double(), CachedRows(_features())
    cfg = TrainConfig(epochs=1, batch_size=N, nested_dropout=3.0)
    train(model, rows, soft_labels(), make_loss("xent"), cfg, 5)
    width = nested_width(D, 3.0, 5, 0)
    assert 1 <= width < D
    moved = (model.head.weight != 0).all(0)
    assert moved.tolist() == [True] * width + [False] * (D - width)
    # Outside of the training the head reads everything again.
    hidden = _features()
    expected = (hidden[:, :width] @ model.head.weight[:, :width].T + model.head.bias).softmax(1)
    assert predict(model, rows) == pytest.approx(expected.detach().numpy(), abs=1e-6)
    assert not model.head._forward_pre_hooks


def test_there_is_no_rescaling() -> None:
    """The gradient of a step is that of the truncated rows."""
    width = nested_width(D, 3.0, 5, 0)
    short = _features()
    short[:, width:] = 0
    results = []
    for x, sigma in ((_features(), 3.0), (short, 0.0)):
        model = CachedHead(D, 2).double()
        cfg = TrainConfig(epochs=1, batch_size=N, nested_dropout=sigma)
        log = train(model, CachedRows(x), soft_labels(), make_loss("xent"), cfg, 5)
        results.append((model.head.weight, log["losses"], log["grad_norm"]))
    assert torch.equal(results[0][0], results[1][0])
    assert results[0][1:] == results[1][1:]


@pytest.mark.parametrize("spec", ["xent", "logconf"])
def test_micro_batches_read_one_width(tokenizer: Any, spec: str) -> None:
    """Also the first pass of an exact threshold."""
    data, want = encoded_rows(tokenizer), None
    for size in (None, 4):
        model = small_model(tokenizer)
        cfg = replace(BASE, nested_dropout=6.0, micro_batch_size=size)
        log = train(model, data, soft_labels(), make_loss(spec), cfg, 0)
        got = [*log["losses"], *predict(model, data)[:, 1]]
        want = want or got
        assert got == pytest.approx(want, rel=2e-4)
    plain = small_model(tokenizer)
    other = train(plain, data, soft_labels(), make_loss(spec), BASE, 0)["losses"]
    assert np.abs(np.subtract(other, want[: len(other)])).max() > 1e-4


def test_a_resumed_training_draws_the_same_widths(tokenizer: Any, tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def kill(step: int, *_: Any) -> None:
        if step == 5:
            raise Killed

    data, loss = encoded_rows(tokenizer), make_loss("logconf")
    cfg = replace(BASE, nested_dropout=6.0, checkpoint_every=2, micro_batch_size=4)
    straight = small_model(tokenizer)
    log = train(straight, data, soft_labels(), loss, cfg, 3)
    killed = small_model(tokenizer)
    with pytest.raises(Killed):
        train(killed, data, soft_labels(), loss, cfg, 3, checkpoint_dir=tmp_path, progress=kill)
    assert not killed.head._forward_pre_hooks  # not even after an error
    resumed = small_model(tokenizer)
    again = train(resumed, data, soft_labels(), loss, cfg, 3, checkpoint_dir=tmp_path)
    assert again["losses"] == log["losses"]
    assert torch.equal(resumed.head.weight, straight.head.weight)


def test_checkpoints_of_before_are_of_the_same_training(tokenizer: Any, tmp_path: Path) -> None:
    """A training without nested dropout does not mention it."""
    cfg = replace(BASE, checkpoint_every=4)
    for sigma, names in ((0.0, False), (6.0, True)):
        folder = tmp_path / str(sigma)
        model, data = small_model(tokenizer), encoded_rows(tokenizer)
        train(
            model, data, soft_labels(), make_loss("xent"), replace(cfg, nested_dropout=sigma), 0,
            checkpoint_dir=folder,
        )  # fmt: skip
        state = json.loads((folder / "step-00000004" / "state.json").read_text())
        assert ("nested_dropout" in json.dumps(state)) is names


@pytest.mark.parametrize("classes", [2, 3])
def test_heads_are_those_of_the_loop(classes: int) -> None:
    x = _features()
    cfg = TrainConfig(epochs=4, batch_size=16, lr=1e-2, nested_dropout=4.0, clip_norm=0.1)
    soft = np.random.default_rng(1).dirichlet(np.ones(classes), N)
    runs = [HeadRun(soft, make_loss(name)) for name in ("xent", "logconf", "gce")]
    together = train_heads(x, runs, cfg, 7)
    for h, run in enumerate(runs):
        model = CachedHead(D, classes).double()
        log = train(model, CachedRows(x), soft, run.loss, cfg, 7)
        assert (together.weight[h] - model.head.weight).abs().max() < 1e-9
        assert np.allclose(together.losses[:, h], log["losses"], atol=1e-9)
    plain = train_heads(x, runs, replace(cfg, nested_dropout=0.0), 7)
    assert (plain.weight - together.weight).abs().max() > 1e-3


def test_best_widths_by_hand() -> None:
    """Three entries; the second is right where the first is wrong, the third spoils a row."""
    hidden = torch.tensor([[1.0, 0, 0], [1, -3, 0], [1, -3, 9], [-1, 0, 0]])
    weight = torch.tensor([[[0.0, 0, 0], [1, 1, 1]], [[0.0, 0, 0], [1, 0, 0]]])
    weak = torch.tensor([1, 0, 0, 0])
    # Head 0 has 2, 4 and 3 rows right at widths 1, 2 and 3; head 1 has 2 at all of them.
    assert best_widths(hidden, weight, None, weak).tolist() == [2, 3]
    bias = torch.tensor([[0.0, 0], [2, 0]])  # head 1 then says 0 everywhere
    assert best_widths(hidden, weight, bias, weak).tolist() == [2, 3]
    # One output: the score of the second candidate minus the first, or of each candidate.
    assert best_widths(hidden, weight[:, 1:], None, weak).tolist() == [2, 3]
    pairs = torch.stack([torch.zeros_like(hidden), hidden], 1).flatten(0, 1)
    assert best_widths(pairs, weight[:, 1:], None, weak).tolist() == [2, 3]


def test_truncation_keeps_the_best_width() -> None:
    unused = [[5.0, -9, 1]] * 3  # rows that speak for width 1
    x = torch.tensor([[1.0, 0, 0], [1, -3, 0], [1, -3, 9], [-1, 0, 0], *unused])
    weak = np.array([[0.1, 0.9], [0.8, 0.2], [0.7, 0.3], [1, 0], *[[0, 1]] * 3], dtype=np.float32)
    used = np.array([1, 1, 2, 1, 0, 0, 0], dtype=np.float32)
    hard = np.array([1, 0, 0, 0, -100, -100, -100])
    start = nn.Linear(3, 2)
    with torch.no_grad():
        start.weight.copy_(torch.tensor([[0.5, 0.5, 0.5], [1.5, 1.5, 1.5]]))
        start.bias.zero_()
    model = CachedHead(3, 2, start)
    assert truncate_head(model, CachedRows(x), weak, used) == 2
    assert model.head.weight[:, 2].tolist() == [0, 0] and (model.head.weight[:, :2] != 0).all()
    assert not model.head._forward_pre_hooks
    parts = start.weight.detach()[None], start.bias.detach()[None]
    heads = HeadResult(*parts, *[torch.zeros(1)] * 2, 0.0)
    short, widths = truncate_heads(x, heads, hard)
    assert widths.tolist() == [2] and torch.equal(short.weight[0], model.head.weight.detach())
    score = CachedHead(3, 2, n_candidates=2)
    with torch.no_grad():
        score.head.weight.copy_(torch.ones(1, 3))
    assert truncate_head(score, CachedRows(x), hard) == 2


def test_truncation_of_a_transformer(tokenizer: Any) -> None:
    """Batches of several lengths: rows arrive in order."""
    model, data = small_model(tokenizer), encoded_rows(tokenizer)
    whole, right = model.head.weight.detach().clone(), []
    for k in range(1, 17):
        with torch.no_grad():
            model.head.weight.copy_(whole)
            model.head.weight[:, k:] = 0
        right.append((predict(model, data).argmax(1) == soft_labels().argmax(1)).sum())
    with torch.no_grad():
        model.head.weight.copy_(whole)
    width = truncate_head(model, data, soft_labels(), batch_size=5)
    assert width == 16 - int(np.argmax(right[::-1])) < 16 and len(set(right)) > 2


def test_bad_values_are_refused(tokenizer: Any) -> None:
    with pytest.raises(W2SError, match="nested_dropout is -1"):
        TrainConfig(nested_dropout=-1)
    bow, data = BagOfWords(99, 2), encoded_rows(tokenizer)
    cfg = replace(BASE, nested_dropout=2.0)
    with pytest.raises(W2SError, match="nested_dropout=2.0 works on the input of a linear head"):
        train(bow, data, soft_labels(), make_loss("xent"), cfg, 0)
    with pytest.raises(W2SError, match="BagOfWords has none"):
        truncate_head(bow, data, soft_labels())
    model = small_model(tokenizer)
    with pytest.raises(W2SError, match="none of 44 held-out rows counts"):
        truncate_head(model, data, np.full(N, -100))
    with pytest.raises(W2SError, match="fit the data"):
        truncate_head(model, data, soft_labels()[:3])
    heads = HeadResult(torch.ones(1, 2, D), torch.ones(1, 2), *[torch.zeros(1)] * 2, 0.0)
    with pytest.raises(W2SError, match=r"expected \(N, 12\)"):
        truncate_heads(_features()[:, :3], heads, soft_labels())
    with pytest.raises(W2SError, match="none of 44 held-out rows"):
        truncate_heads(_features(), heads, np.full(N, -100))


@pytest.mark.slow
@pytest.mark.dist
def test_processes_and_stages_draw_alike(tmp_path: Path) -> None:
    """Every process reads the same width in both passes, and chooses the same one afterwards."""
    pytest.importorskip("deepspeed")
    recipe = {**RECIPE, "nested_dropout": 5.0, "select_width": True}
    stages = range(4) if ranks.LONG else (0, 1, 3)
    jobs = [{**recipe, "zero_stage": stage} for stage in stages]
    out = tmp_path / "out.json"
    ranks.run(sharded_training.__file__, 2, {"fits": jobs, "out": str(out)})
    want = fit(**{**recipe, "micro_batch_size": 4})
    assert 1 < want["head_width"] < 11
    for got in json.loads(out.read_text()):
        close(got, want)
        assert got["head_width"] == want["head_width"]
