"""Co-teaching: which rows are handed on, against a plain loop, and on several processes."""

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
from torch import nn

from w2s_fast.errors import W2SError
from w2s_fast.losses import make_loss
from w2s_fast.probing import CachedHead, CachedRows
from w2s_fast.training import CoTeaching, TrainConfig, Twins, Watch, predict, train
from w2s_fast.training.co_teaching import TwinLoss
from w2s_fast.training.data import RowOrder


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from w2s_fast.tasks.datasets.agreement import tokenizer as agreement_tokenizer

    return agreement_tokenizer()


def _logits(*right: float) -> torch.Tensor:
    """Two classes whose probability of class 1 is given."""
    p = torch.tensor(right, dtype=torch.float64)
    return torch.stack([1 - p, p], -1).log()


# Probability of the label's class, 1, of eight rows, by A and by B.
A = [0.9, 0.1, 0.2, 0.3, 0.8, 0.4, 0.3, 0.2]
B = [0.1, 0.7, 0.2, 0.6, 0.3, 0.9, 0.4, 0.1]
ONES = torch.tensor([[0.0, 1.0]] * 8, dtype=torch.float64)


def _weights(forget: float, weight: list[float] | None = None, t: float = 1.0) -> np.ndarray:
    z = torch.stack([_logits(*A), _logits(*B)], 1)
    v = torch.tensor(weight or [1.0] * 8, dtype=torch.float64)
    labels, out = CoTeaching(forget=forget, ramp=0.5).rows(z, ONES, v, t)
    assert labels is ONES
    return out.numpy()


def test_the_smallest_losses_of_the_peer_are_learned() -> None:
    """A ranks rows 0, 2, 4, 6 for B; B ranks 1, 3, 5, 7 for A. Each keeps two of four."""
    got = _weights(0.5)
    assert np.flatnonzero(got[:, 0]).tolist() == [1, 5]  # of B: 0.7 and 0.9
    assert np.flatnonzero(got[:, 1]).tolist() == [0, 4]  # of A: 0.9 and 0.8
    assert got.sum(0) == pytest.approx([8, 8]) and got.max() == pytest.approx(4)


def test_the_share_rises_with_the_steps() -> None:
    for t, kept in ((0.0, 4), (0.2, 3), (0.49, 2), (0.5, 2), (1.0, 2)):
        assert (_weights(0.5, t=t) > 0).sum(0).tolist() == [kept, kept], t
    assert (_weights(0.9) > 0).sum(0).tolist() == [1, 1]  # at least one
    assert CoTeaching(forget=0.4, ramp=0.0).kept_share(0.0) == pytest.approx(0.6)
    equal = torch.zeros(200, 2, 2).double()
    labels, ones = ONES[:1].expand(200, 2), torch.ones(200).double()
    _, out = CoTeaching(forget=0.41, ramp=0.0).rows(equal, labels, ones, 0.0)
    assert (out > 0).sum(0).tolist() == [59, 59]  # (1 - 0.41) * 100, in fp32 less than 59
    assert np.flatnonzero(out[:, 1]).tolist() == list(range(0, 118, 2))  # ties: by place


def test_weights_count_in_the_mean_and_not_in_the_ranks() -> None:
    got = _weights(0.5, [1, 0, 1, 2, 3, 1, 0, 1])
    assert np.flatnonzero(got[:, 0]).tolist() == [5]  # of rows 3, 5, 7 B knows 5 best: 1.5 rows
    assert np.flatnonzero(got[:, 1]).tolist() == [0]
    assert got.sum(0) == pytest.approx([9, 9])
    both = _weights(0.0, [1, 0, 1, 2, 3, 1, 0, 1])
    assert both[:, 1] == pytest.approx(np.array([1, 0, 1, 0, 3, 0, 0, 0]) * 9 / 5)
    nothing = _weights(0.5, [1.0, 0] * 4)
    assert nothing[:, 0].tolist() == [0] * 8


def test_twins_answer_as_the_first_outside_of_a_step() -> None:
    first, second = (nn.Linear(3, 2) for _ in range(2))
    for model in (first, second):
        model.n_classes = 2  # type: ignore[assignment]
    twins, x = Twins(first, second), torch.randn(4, 3)
    assert torch.equal(twins(x), first(x))
    with twins.paired():
        assert torch.equal(twins(x), torch.stack([first(x), second(x)], 1))
    assert torch.equal(twins(x), first(x))
    with pytest.raises(W2SError, match="Linear has no gradient checkpointing"):
        twins.gradient_checkpointing(True)


@pytest.mark.parametrize("spec", ["xent", "logconf", "logconf_eleuther:balance=true", "window"])
def test_the_loss_is_that_of_each_student(spec: str) -> None:
    """Sum, threshold, state and metrics of two calls."""
    torch.manual_seed(0)
    z = torch.randn(9, 2, 2).double().requires_grad_()
    weak, weight = torch.rand(9, 2).double().softmax(1), torch.rand(9, 2).double()
    weight[::4, 0] = 0
    loss = make_loss(spec)
    twin = TwinLoss(loss=loss)
    state = twin.init_state()
    out = twin(z, weak, weight=weight, step_frac=0.7, step=200, state=state)
    (got,) = torch.autograd.grad(out.loss_sum, z)
    total = torch.zeros(()).double()
    for i in (0, 1):
        own = loss.init_state()
        one = loss(z[:, i], weak, weight=weight[:, i], step_frac=0.7, step=200, state=own)
        total = total + one.loss_sum
        if own is not None:
            assert torch.equal(out.state[i].nan_to_num(), one.state.nan_to_num())
            moved = twin.advance(z.detach(), weak, weight=weight, state=state)
            assert torch.equal(moved[i].nan_to_num(), one.state.nan_to_num())
        if loss.batch_rule(2) is not None:
            t = twin.threshold(z.detach(), weak, weight=weight, state=state)
            assert torch.equal(
                t[i], loss.threshold(z[:, i].detach(), weak, weight=weight[:, i], state=own)
            )
    (want,) = torch.autograd.grad(total, z)
    assert torch.allclose(got, want, atol=1e-12)
    assert float(out.metrics["rows"]) == float((weight != 0).sum())


def test_training_is_a_plain_loop() -> None:
    """Two heads by torch alone, in fp64; halves by place, forgetting from the third step on."""
    x = torch.randn(N, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weak = torch.from_numpy(soft_labels().astype(np.float32)).double()
    cfg = TrainConfig(epochs=3, batch_size=16, lr=2e-2, schedule="constant")
    twins = Twins(CachedHead(12, 2).double(), CachedHead(12, 2).double())
    log = train(
        twins, CachedRows(x), weak.numpy(), make_loss("xent"), cfg, 4,
        step_targets=CoTeaching(forget=0.4, ramp=0.3),
    )  # fmt: skip
    order, steps = RowOrder(N, 16, 3, 4), cfg.steps(N)
    w = [torch.zeros(2, 13).double().requires_grad_() for _ in range(2)]
    adam = [torch.optim.AdamW([p], lr=2e-2, weight_decay=0.0) for p in w]
    inputs, losses = torch.cat([x, torch.ones(N, 1).double()], 1), []
    for step in range(steps):
        rows = torch.from_numpy(order.rows(step))
        entropy = [-(weak[rows] * (inputs[rows] @ p.T).log_softmax(1)).sum(1) for p in w]
        keep = 1 - 0.4 * min(1, step / steps / 0.3)
        total = 0.0
        for learner, start in ((0, 1), (1, 0)):
            half = torch.arange(start, len(rows), 2)
            kept = max(1, int(keep * len(half) + 1e-6))
            own = half[entropy[1 - learner][half].detach().argsort(stable=True)[:kept]]
            loss = entropy[learner][own].mean()
            adam[learner].zero_grad()
            loss.backward(retain_graph=True)
            total += float(loss.detach())
        for optimizer in adam:
            optimizer.step()
        losses.append(total)
    assert np.allclose(log["losses"], losses, atol=1e-6)
    for model, p in zip((twins.first, twins.second), w, strict=True):
        assert (model.head.weight - p[:, :12]).abs().max() < 1e-6
    assert (twins.first.head.weight - twins.second.head.weight).abs().max() > 1e-2


def test_wrong_labels_are_forgotten() -> None:
    """Flipped labels of separable rows: the students learn fewer of them than one student does."""
    rng = np.random.default_rng(0)
    gold = rng.integers(0, 2, 600)
    x = rng.normal(size=(600, 100)) + 2 * (2 * gold - 1)[:, None] * np.eye(100)[0]
    weak = np.where(rng.random(600) < 0.3, 1 - gold, gold)
    cfg = TrainConfig(epochs=30, batch_size=64, lr=2e-2)
    rows, xent, right = CachedRows(torch.from_numpy(x)), make_loss("xent"), []
    for forget in (None, 0.35):
        model: Any = CachedHead(100, 2).double()
        targets = None if forget is None else CoTeaching(forget=forget)
        student = model if forget is None else Twins(model, CachedHead(100, 2).double())
        train(student, rows, weak, xent, cfg, 0, step_targets=targets)
        right.append(float((predict(model, rows).argmax(1) == gold).mean()))
    assert right[1] > right[0] + 0.02, right


def _fit(tokenizer: Any, cfg: TrainConfig, **more: Any) -> tuple[dict[str, Any], np.ndarray]:
    twins = Twins(small_model(tokenizer), small_model(tokenizer))
    data = encoded_rows(tokenizer)
    log = train(
        twins, data, soft_labels(), make_loss("logconf"), cfg, 3,
        step_targets=CoTeaching(forget=0.5), **more,
    )  # fmt: skip
    return log, predict(twins.first, data)


def test_micro_batches_and_resumption(tokenizer: Any, tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def kill(step: int, *_: Any) -> None:
        if step == 5:
            raise Killed

    cfg = replace(BASE, checkpoint_every=2, micro_batch_size=4)
    log, want = _fit(tokenizer, cfg)
    whole, same = _fit(tokenizer, replace(cfg, micro_batch_size=None))
    assert log["losses"] == pytest.approx(whole["losses"], rel=2e-4)
    assert np.abs(want - same).max() < 2e-4
    with pytest.raises(Killed):
        _fit(tokenizer, cfg, checkpoint_dir=tmp_path, progress=kill)
    again, got = _fit(tokenizer, cfg, checkpoint_dir=tmp_path)
    assert again["losses"] == log["losses"] and np.array_equal(got, want)


@pytest.mark.parametrize("scope", ["window", "ema", "microbatch"])
def test_rolling_thresholds_are_of_each_student(scope: str, tokenizer: Any) -> None:
    """Without micro-batches every scope is the batch; with them it is another training."""
    exact, _ = _fit(tokenizer, BASE)
    same, _ = _fit(tokenizer, replace(BASE, threshold_scope=scope))
    whole = slice(0, -1)  # the last batch is short
    assert same["losses"][whole] == pytest.approx(exact["losses"][whole], rel=1e-5)
    parts, probs = _fit(tokenizer, replace(BASE, threshold_scope=scope, micro_batch_size=4))
    assert parts["losses"] != exact["losses"] and np.isfinite(probs).all()


def test_nested_dropout_and_a_watch(tokenizer: Any) -> None:
    """One width for both students; evaluations see the first, with all entries."""
    data = encoded_rows(tokenizer)
    twins = Twins(small_model(tokenizer), small_model(tokenizer))
    cfg = replace(BASE, nested_dropout=3.0, average_frac=0.3)
    log = train(
        twins, data, soft_labels(), make_loss("xent"), cfg, 3,
        step_targets=CoTeaching(), watch=Watch(data, every=3),
    )  # fmt: skip
    assert np.array_equal(log["trajectory"][-1], predict(twins.first, data))
    for model in (twins.first, twins.second):
        assert (model.head.weight[:, 14:] - small_model(tokenizer).head.weight[:, 14:] == 0).all()
        assert not model.head._forward_pre_hooks


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"forget": 0.95}, "forget is 0.95"), ({"forget": -1}, "forget is -1"), ({"ramp": 2}, "ramp")],
)
def test_bad_fields_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(W2SError, match=message):
        CoTeaching(**fields)


@pytest.mark.slow
@pytest.mark.dist
def test_rows_are_counted_over_all_processes(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    recipe = {**RECIPE, "co_teaching": 0.4, "epochs": 1}
    stages = range(4) if ranks.LONG else (2, 3)
    jobs = [
        {**recipe, "spec": spec, "zero_stage": stage}
        for spec in ("xent", "logconf") for stage in stages
    ]  # fmt: skip
    out = tmp_path / "out.json"
    ranks.run(sharded_training.__file__, 2, {"fits": jobs, "out": str(out)})
    for job, got in zip(jobs, json.loads(out.read_text()), strict=True):
        alone = {k: v for k, v in job.items() if k != "zero_stage"}
        close(got, fit(**{**alone, "micro_batch_size": 4}))
