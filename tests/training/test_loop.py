"""Engine: exactness under micro-batching and resume, precision, order, and bad input."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.training_rows import BASE, N, encoded_rows, small_model, soft_labels
from torch import Tensor, nn

from w2s_fast.distributed.world import SINGLE_PROCESS
from w2s_fast.errors import W2SError
from w2s_fast.losses import LOSSES, LossContext, make_loss
from w2s_fast.models import ModelConfig, build_model
from w2s_fast.tasks.datasets.agreement import tokenizer as agreement_tokenizer
from w2s_fast.training import THRESHOLD_SCOPES, Encoded, TrainConfig, predict, train
from w2s_fast.training.checkpoint import finished
from w2s_fast.training.data import RowOrder
from w2s_fast.training.engine import PlainEngine, forward
from w2s_fast.training.optim import MasterAdamW
from w2s_fast.training.step import MicroBatch, Stepper
from w2s_fast.training.step_log import StepLog
from w2s_fast.training.step_record import StepRecord
from w2s_fast.training.thresholds import Thresholds
from w2s_fast.training.train_mode import training_mode


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return agreement_tokenizer()


@pytest.fixture(scope="module")
def data(tokenizer: Any) -> Encoded:
    return encoded_rows(tokenizer)


@pytest.fixture(scope="module")
def soft() -> np.ndarray:
    return soft_labels()


def _weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().double().flatten() for p in model.parameters()])


def test_predict_keeps_the_order_and_the_mode(tokenizer: Any, data: Encoded) -> None:
    model = small_model(tokenizer)
    model.train()
    state = torch.get_rng_state()
    seen: list[tuple[int, int]] = []
    got = predict(model, data, batch_size=8, progress=lambda a, b: seen.append((a, b)))
    assert model.training and torch.equal(torch.get_rng_state(), state)
    assert seen[-1] == (N, N) and got.dtype == np.float32 and got.shape == (N, 2)
    model.eval()
    for i in (0, 5, N - 1):
        alone = forward(model, data.batch(np.array([i]))).softmax(1)
        assert np.allclose(got[i], alone.detach().numpy()[0], atol=1e-6)


@pytest.mark.parametrize("spec", ["xent", "logconf", "logconf_eleuther", "window"])
def test_micro_batches_change_nothing(
    spec: str, tokenizer: Any, data: Encoded, soft: np.ndarray
) -> None:
    """Sizes 1, 3 and 16, weighted rows, in fp64: the same weights as the whole batch at once."""
    weight = np.random.default_rng(2).uniform(0, 2, N)
    weight[::5] = 0
    ends = []
    for size in (None, 1, 3, 16):
        model = small_model(tokenizer).double()
        cfg = replace(BASE, epochs=1, micro_batch_size=size, clip_norm=0.1)
        train(model, data, soft, make_loss(spec), cfg, 0, weight=weight)
        ends.append(_weights(model))
    for other in ends[1:]:
        assert (other - ends[0]).abs().max() < 1e-9


def test_threshold_modes(tokenizer: Any, data: Encoded, soft: np.ndarray) -> None:
    """All agree without micro-batches; with them each is a different, working approximation."""
    whole, parts = {}, {}
    for mode in THRESHOLD_SCOPES:
        for size, ends in ((None, whole), (4, parts)):
            model = small_model(tokenizer).double()
            cfg = replace(BASE, threshold_scope=mode, micro_batch_size=size)
            log = train(model, data, soft, make_loss("logconf"), cfg, 0)
            assert np.isfinite(log["losses"]).all()
            ends[mode] = _weights(model)
    # 88 rows in batches of 16: the window holds exactly one batch until the short last one.
    assert torch.equal(whole["exact"], whole["microbatch"])
    assert (whole["exact"] - whole["ema"]).abs().max() < 1e-6
    assert (parts["exact"] - whole["exact"]).abs().max() < 1e-6
    for mode in ("window", "ema", "microbatch"):
        assert (parts[mode] - parts["exact"]).abs().max() > 1e-4, mode


def test_rolling_thresholds_by_hand() -> None:
    """``window`` is the threshold of the last rows alone, ``ema`` a bias-corrected average."""
    loss = make_loss("logconf_paper")
    g = torch.Generator().manual_seed(0)
    parts = [torch.randn(4, 2, generator=g) for _ in range(5)]
    weak = torch.full((4, 2), 0.5)
    window, ema = (Thresholds(mode, loss, 2, batch_size=8) for mode in ("window", "ema"))
    margins = [(z[:, 0] - z[:, 1]) for z in parts]
    total, norm = 0.0, 0.0
    for i, z in enumerate(parts):
        rows = torch.cat(margins[max(0, i - 1) : i + 1])
        got = window.rolling(z, weak, None)
        assert got is not None and float(got) == pytest.approx(float(rows.quantile(0.5)))
        total = 0.5 * total + 0.5 * float(margins[i].quantile(0.5))
        norm = 0.5 * norm + 0.5
        got = ema.rolling(z, weak, None)
        assert got is not None and float(got) == pytest.approx(total / norm, abs=1e-6)
    assert len(window.state["logits"]) == 8
    before = ema.state["ema"].clone()
    got = ema.rolling(parts[0], weak, torch.zeros(4))  # no row counts: nothing is learned
    assert got is not None and float(got) == pytest.approx(total / norm, abs=1e-6)
    assert torch.equal(ema.state["ema"], before)


def test_the_losss_memory_passes_through_micro_batches_and_steps(
    tokenizer: Any, data: Encoded, soft: np.ndarray
) -> None:
    """EleutherAI's ring ends with the margins of all rows of the last two batches, in order."""
    loss = make_loss("logconf_eleuther")
    cfg = replace(BASE, micro_batch_size=4)
    engine = PlainEngine(small_model(tokenizer), cfg)
    state, margins = loss.init_state(), []
    for step in range(2):
        rows = RowOrder(N, 16, 1, 0).rows(step)
        micro = [
            MicroBatch(data.batch(part), weak, None, weak, None)
            for part in np.split(rows, 4)
            for weak in (torch.from_numpy(soft[part]).float(),)
        ]
        for m in micro:
            z = engine.logits(m.batch).detach()
            margins.append((z[:, 0] - z[:, 1]).double())
        thresholds = Thresholds("exact", loss, 2, 16)
        ctx = LossContext(step_frac=step / 2, step=step, state=state)
        state = Stepper(engine, loss, thresholds).step(micro, ctx, 1e-2).state
    assert state is not None and torch.equal(state, torch.cat(margins))


def test_dropout_replays_in_the_exact_probe(
    tokenizer: Any, data: Encoded, soft: np.ndarray
) -> None:
    """The threshold's pass and the gradient's pass see the same masks."""
    model = small_model(tokenizer)
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.5
    seen: list[Tensor] = []
    model.register_forward_hook(lambda _m, _i, out: seen.append(out.detach().clone()))
    cfg = replace(BASE, micro_batch_size=8, dropout=True)
    train(model, data, soft, make_loss("logconf"), replace(cfg, epochs=1), 0)
    assert torch.equal(seen[0], seen[2]) and torch.equal(seen[1], seen[3])
    assert not torch.equal(seen[0], seen[4])


def test_dropout_is_off_in_train_mode_and_restored(tokenizer: Any) -> None:
    """BERT keeps rates in modules, Llama as a number; both are silent, in train mode."""
    from transformers import BertConfig, BertModel

    bert = BertModel(
        BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
                   intermediate_size=8)
    )  # fmt: skip
    llama = small_model(tokenizer).base
    for module in llama.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.9
    ids = torch.tensor([[1, 5, 6, 7]])
    for model in (bert, llama):
        model.train()
        noisy = [model(ids).last_hidden_state for _ in range(2)]
        assert not torch.equal(*noisy)
        with training_mode(model, BASE):
            quiet = [model(ids).last_hidden_state for _ in range(2)]
            assert model.training and torch.equal(*quiet)
        assert not torch.equal(model(ids).last_hidden_state, quiet[0])
        assert torch.allclose(model.eval()(ids).last_hidden_state, quiet[0], atol=1e-6)


def test_gradient_checkpointing_is_active_and_exact(
    tokenizer: Any, data: Encoded, soft: np.ndarray
) -> None:
    ends, calls = [], []
    for on in (False, True):
        model = small_model(tokenizer)
        count = [0]
        norm = model.base.layers[0].input_layernorm
        norm.register_forward_hook(lambda *_, c=count: c.__setitem__(0, c[0] + 1))
        cfg = replace(BASE, gradient_checkpointing=on)
        train(model, data, soft, make_loss("logconf"), cfg, 0)
        assert not any(
            getattr(m, "gradient_checkpointing", 0) is True for m in model.base.modules()
        )
        ends.append(_weights(model))
        calls.append(count[0])
    assert torch.equal(*ends) and calls[1] == 2 * calls[0]
    bow = build_model(ModelConfig("bow"), 2, tokenizer, 0)
    with pytest.raises(W2SError, match="has no gradient checkpointing"):
        train(bow, data, soft, make_loss("xent"), replace(BASE, gradient_checkpointing=True), 0)


def test_graphs_are_freed_between_micro_batches(
    tokenizer: Any, data: Encoded, soft: np.ndarray
) -> None:
    """No earlier micro-batch's logits are alive when the next forward with gradients runs."""
    import weakref

    model = small_model(tokenizer)
    alive: list[weakref.ref[Tensor]] = []

    def look(_m: nn.Module, _i: Any, out: Tensor) -> None:
        if out.requires_grad:
            assert all(ref() is None for ref in alive)
            alive.append(weakref.ref(out))

    model.register_forward_hook(look)
    train(model, data, soft, make_loss("logconf"), replace(BASE, micro_batch_size=4), 0)
    assert len(alive) == 22


@pytest.mark.parametrize("spec", LOSSES)
def test_every_loss_trains_and_leaves_random_state_alone(
    spec: str, tokenizer: Any, data: Encoded, soft: np.ndarray
) -> None:
    model, state = small_model(tokenizer), torch.get_rng_state()
    before = _weights(model)
    log = train(model, data, soft, make_loss(spec), BASE, 0)
    assert torch.equal(torch.get_rng_state(), state)
    assert log["steps"] == 6 == len(log["losses"]) == len(log["agreement"])
    assert np.isfinite(log["losses"]).all() and (_weights(model) - before).abs().max() > 1e-3


def test_training_learns_hard_labels(tokenizer: Any, data: Encoded) -> None:
    """Bag of words on a label that is a word: ends at accuracy 1."""
    key = tokenizer.convert_tokens_to_ids("key")
    labels = np.array(
        [key in data.tokens[data.offsets[i] : data.offsets[i + 1]] for i in range(N)]
    ).astype(np.int64)
    model = build_model(ModelConfig("bow"), 2, tokenizer, 0)
    log = train(model, data, labels, make_loss("xent"), TrainConfig(epochs=40, lr=0.5), 0)
    assert (predict(model, data).argmax(1) == labels).all()
    assert log["losses"][-1] < 0.3 * log["losses"][0] and log["agreement"][-1] == 1.0


def test_a_loss_that_is_not_finite_names_its_step(
    tokenizer: Any, data: Encoded, soft: np.ndarray, tmp_path: Path
) -> None:
    model = small_model(tokenizer)
    calls = [0]

    def poison(_m: nn.Module, _i: Any, out: Tensor) -> Tensor:
        calls[0] += 1
        return out * float("nan") if calls[0] == 3 else out

    model.register_forward_hook(poison)
    cfg = replace(BASE, checkpoint_every=1)
    with pytest.raises(W2SError, match="loss is nan at step 3 of 6; use a smaller lr"):
        train(model, data, soft, make_loss("xent"), cfg, 0, checkpoint_dir=tmp_path)
    assert [p.name for p in finished(tmp_path)] == ["step-00000001", "step-00000002"]
    calls[0] = 2
    with pytest.raises(W2SError, match="the model has diverged"):
        predict(model, data)


def test_bad_targets(tokenizer: Any, data: Encoded, soft: np.ndarray) -> None:
    def refused(match: str, targets: np.ndarray, weight: np.ndarray | None = None) -> None:
        with pytest.raises(W2SError, match=match) as caught:
            train(small_model(tokenizer), data, targets, make_loss("xent"), BASE, 0, weight=weight)
        assert "\n" not in str(caught.value)

    hole = soft.copy()
    hole[4, 1] = np.nan
    refused("row 4: weak labels must be finite", hole)
    refused(r"row 0: weak labels must be finite and not negative", soft - 2)
    refused(r"shape \(43, 2\); expected \(44, 2\)", soft[:-1])
    refused(r"shape \(44, 3\); expected \(44, 2\)", np.ones((N, 3)))
    refused(r"weak label 2 in row 1: labels must be 0\.\.1", np.arange(1, N + 1))
    refused("dtype object", np.array([None] * N))
    refused(r"shape \(44, 2\) and dtype int64", np.ones((N, 2), dtype=np.int64))
    refused(r"weight has shape \(3,\)", soft, np.ones(3))
    refused("weights must be finite", soft, np.full(N, np.inf))
    refused(
        r"weights sum to 1\.32e\+40; expected .* by the largest, 3e\+38", soft, np.full(N, 3e38)
    )


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_gradient_that_is_not_finite_names_its_step(
    stage: int, value: float, tokenizer: Any, data: Encoded, soft: np.ndarray, tmp_path: Path
) -> None:
    """The loss is finite, so weights or a checkpoint of NaN would be kept, or a step left out."""
    model, calls = small_model(tokenizer), [0]

    def poison(gradient: Tensor) -> Tensor:
        calls[0] += 1
        return torch.full_like(gradient, value) if calls[0] == 3 else gradient

    [*model.parameters()][-1].register_hook(poison)
    cfg = replace(BASE, checkpoint_every=1, zero_stage=stage)
    with pytest.raises(W2SError, match="at step 3 of 6, but its gradient is not finite"):
        train(model, data, soft, make_loss("xent"), cfg, 0, checkpoint_dir=tmp_path)
    assert [p.name for p in finished(tmp_path)] == ["step-00000001", "step-00000002"]


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 1e25])
def test_the_norm_of_a_gradient_that_overflows_is_infinite(value: float) -> None:
    model = nn.Linear(2, 2)
    optimizer = MasterAdamW(model, TrainConfig())
    for p in model.parameters():
        p.grad = torch.full_like(p, value)
    assert optimizer.step(1e-3).item() == math.inf


@pytest.mark.parametrize("skips", [False, True])
def test_every_step_that_was_not_read_is_checked(skips: bool) -> None:
    """An unknown norm is no error, and an infinite one is none where the step was skipped."""
    engine: Any = SimpleNamespace(skips_overflow=skips)
    log = StepLog(3, engine, SINGLE_PROCESS)
    for step, norm in ((1, math.nan), (2, math.inf), (3, 1.0)):
        result: Any = tuple(torch.tensor(x) for x in (1.0, 1.0, 1.0, 1.0, norm))
        log.add(result, StepRecord(step, *[math.nan] * 6, 0, 0.0))
    if skips:
        log.read()
        assert [record.step for record in log.records] == [1, 2, 3]
    else:
        with pytest.raises(W2SError, match="at step 2 of 3, but its gradient is not finite"):
            log.read()
