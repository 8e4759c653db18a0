"""Mixup: pairs, shares and labels by hand, and one training whatever the batches are split into."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import ranks, sharded_training
from helpers.sharded_training import close, fit
from helpers.training_rows import BASE, N, encoded_rows, small_model, soft_labels

from w2s_fast.errors import W2SError
from w2s_fast.losses import make_loss
from w2s_fast.training import TrainConfig, train
from w2s_fast.training.mixup import draw_shares, mix_rows, mixed, mixed_targets, soft_targets

PROGRAM = sharded_training.__file__


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from w2s_fast.tasks.datasets.agreement import tokenizer as agreement_tokenizer

    return agreement_tokenizer()


def test_mixtures_by_hand() -> None:
    x = torch.tensor([[0.0], [8.0], [1.0], [3.0]])
    share = torch.tensor([0.75, 0.25, 1.0, 0.5])
    assert mixed(x, share).flatten().tolist() == [2.0, 2.0, 1.0, 2.0]
    q = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    labels, weight = mixed_targets(q, torch.tensor([1.0, 3.0]), torch.tensor([0.75, 0.75]))
    assert weight is not None and weight.tolist() == [1.5, 2.5]  # 3/4 1 + 1/4 3, 3/4 3 + 1/4 1
    torch.testing.assert_close(labels, torch.tensor([[0.5, 0.5], [0.1, 0.9]]))


def test_the_loss_is_the_mixture_of_the_losses_with_both_labels() -> None:
    """lambda w_i CE(z, q_i) + (1 - lambda) w_j CE(z, q_j), of any weights."""
    g = torch.Generator().manual_seed(0)
    z, q = torch.randn(6, 3, generator=g), torch.rand(6, 3, generator=g).softmax(1)
    w, share = torch.rand(6, generator=g) + 0.1, torch.rand(6, generator=g)
    labels, weight = mixed_targets(q, w, share)
    assert weight is not None
    got = weight * -(labels * z.log_softmax(1)).sum(1)
    partner = torch.tensor([1, 0, 3, 2, 5, 4])
    loss = -(q[:, None] * z.log_softmax(1)[None]).sum(2)  # of labels of row i with logits of row k
    rows = torch.arange(6)
    want = share * w * loss[rows, rows] + (1 - share) * w[partner] * loss[partner, rows]
    torch.testing.assert_close(got, want)


def test_rows_are_arranged_in_pairs_for_every_process() -> None:
    rows = np.array([10, 11, 12, 13, 14])
    q, share = torch.eye(2)[[0, 1, 0, 1, 0]], torch.full((5,), 0.5)
    m = mix_rows(rows, q, None, share, 2)
    assert m.rows.tolist() == [10, 12, 11, 13, 14, 10, 10, 10]  # 14 has no partner
    assert m.weight is not None and m.weight.tolist() == [1, 1, 1, 1, 1, 0, 0, 0]
    assert m.share.tolist() == [0.5] * 4 + [1.0] * 4
    assert m.weak[:4].tolist() == [[0.5, 0.5]] * 4 and m.weak[4].tolist() == [1, 0]
    for rank in (0, 1):
        own = m.rows[rank::2].tolist()
        assert own == ([10, 11, 14, 10] if rank == 0 else [12, 13, 10, 10])
    alone = mix_rows(rows[:4], q[:4], None, share[:4], 1)
    assert alone.rows.tolist() == [10, 11, 12, 13] and alone.weight is None


def test_unused_rows_and_their_partners_stay_as_they_are() -> None:
    labels = torch.tensor([0, -100, 1, 1])
    q, weight = soft_targets(labels, None, 2)
    assert weight is not None and weight.tolist() == [1, 0, 1, 1]
    m = mix_rows(np.arange(4), q, weight, torch.full((4,), 0.25), 1)
    assert m.share.tolist() == [1, 1, 0.25, 0.25]
    assert m.weak[0].tolist() == [1, 0] and m.weight is not None and m.weight[1] == 0
    assert soft_targets(labels[2:], None, 2)[1] is None


def test_shares_follow_beta_and_depend_on_seed_and_step_alone() -> None:
    first = draw_shares(4000, 0.3, 7, 2)
    assert torch.equal(first, draw_shares(4000, 0.3, 7, 2))
    assert not torch.equal(first[:50], draw_shares(50, 0.3, 7, 3))
    assert not torch.equal(first[:50], draw_shares(50, 0.3, 8, 2))
    assert abs(float(first.mean()) - 0.5) < 0.03
    assert abs(float(first.var()) - 1 / (4 * (2 * 0.3 + 1))) < 0.01  # of Beta(a, a)


def test_mixing_logits_is_mixing_the_inputs_of_the_head(tokenizer: Any) -> None:
    """One step against a model that mixes its pooled hidden states."""
    model, data, loss = small_model(tokenizer), encoded_rows(tokenizer), make_loss("xent")
    cfg = TrainConfig(epochs=1, batch_size=N, lr=1e-2, mixup=0.4)
    twin: Any = small_model(tokenizer)
    rows = np.random.default_rng((5, 0)).permutation(N)
    share = draw_shares(N, 0.4, 5, 0)
    batch = data.batch(rows)
    hidden = twin.base(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
    last = hidden.last_hidden_state[torch.arange(N), batch.attention_mask.sum(1) - 1]
    weak = torch.from_numpy(soft_labels()[rows]).float()
    out = loss(twin.head(mixed(last, share)), mixed(weak, share))
    (out.loss_sum / out.count).backward()
    want = (out.loss_sum / out.count).item()
    log = train(model, data, soft_labels(), loss, cfg, 5)
    assert log["losses"][0] == pytest.approx(want, rel=1e-5)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        moved = (
            q.grad is not None and q.grad.abs() > 1e-6
        )  # AdamW's first step is lr times the sign
        start = q.detach()
        if q.grad is not None:
            expected = (start - 1e-2 * q.grad.sign())[moved]
            torch.testing.assert_close(p.detach()[moved], expected, rtol=0, atol=1e-3)


def test_it_changes_the_training_and_takes_hard_labels(tokenizer: Any) -> None:
    def weights(mixup: float, labels: np.ndarray) -> torch.Tensor:
        model, cfg = small_model(tokenizer), replace(BASE, mixup=mixup)
        train(model, encoded_rows(tokenizer), labels, make_loss("logconf"), cfg, 0)
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    hard = soft_labels().argmax(1)
    one_hot = np.eye(2, dtype=np.float32)[hard]
    assert (weights(0.4, hard) - weights(0.0, hard)).abs().max() > 1e-3
    torch.testing.assert_close(weights(0.4, hard), weights(0.4, one_hot), rtol=1e-5, atol=1e-7)


# Rows of weight 0, short last steps, and a batch threshold over mixed rows.
RECIPES: list[dict[str, Any]] = [
    {"mixup": 0.4, "batch_size": 16, "clip_norm": 0.5},
    {"mixup": 0.4, "batch_size": 16, "weighted": False, "interpolation": 0.6, "spec": "smoothing"},
]


def test_micro_batches_mix_alike() -> None:
    for recipe in RECIPES:
        want = fit(**recipe)
        assert want["weights"] != fit(**{**recipe, "mixup": 0.0})["weights"]
        for size in (2, 4, 6):
            close(fit(**recipe, micro_batch_size=size), want)


@pytest.mark.slow
@pytest.mark.dist
def test_processes_mix_alike(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    jobs = [
        {**recipe, "zero_stage": zero, "micro_batch_size": micro}
        for recipe in RECIPES
        for zero in range(4)
        for micro in (2, 8)
    ]
    out = tmp_path / "out.json"
    ranks.run(PROGRAM, 2, {"fits": jobs, "out": str(out)})
    for job, got in zip(jobs, json.loads(out.read_text()), strict=True):
        alone = {k: v for k, v in job.items() if k not in ("zero_stage", "micro_batch_size")}
        close(got, fit(**alone))


def test_what_cannot_be_mixed_is_refused(tokenizer: Any) -> None:
    model, data, labels = small_model(tokenizer), encoded_rows(tokenizer), soft_labels()
    for fields in ({"micro_batch_size": 3}, {"batch_size": 15}):
        with pytest.raises(W2SError, match="mixup is 0.2 with .*; expected even numbers"):
            train(model, data, labels, make_loss("xent"), replace(BASE, mixup=0.2, **fields), 0)
    gold = np.zeros(N, dtype=np.int64)
    with pytest.raises(W2SError, match="mixup has no classes for a loss against true labels"):
        train(model, data, labels, make_loss("xent"), replace(BASE, mixup=0.2), 0, gold=gold)
    with pytest.raises(W2SError, match="mixup is -0.1; expected a number of at least 0"):
        TrainConfig(mixup=-0.1)


def test_texts_are_not_mixed(tokenizer: Any) -> None:
    from w2s_fast.models import ModelConfig, build_model
    from w2s_fast.training import encode_completions

    rows = encode_completions(tokenizer, ["the key"] * 4, [" is old"] * 4, 64)
    model = build_model(ModelConfig("scratch", hidden=16, heads=2), 2, tokenizer, 0, "generation")
    with pytest.raises(W2SError, match="the data are Completions, whose labels are texts"):
        train(model, rows, rows.labels, make_loss("xent"), TrainConfig(mixup=0.2), 0)
