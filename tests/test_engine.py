"""Engine: exactness under micro-batching and resume, precision, order, and bad input."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from w2s_fast.engine import THRESHOLDS, Encoded, TrainConfig, checkpoint, encode, predict, train
from w2s_fast.engine.checkpoint import finished
from w2s_fast.engine.data import RowOrder, token_batches
from w2s_fast.engine.modes import training_mode
from w2s_fast.engine.optim import MasterAdamW
from w2s_fast.engine.step import Micro, PlainEngine, Progress, forward, run_step
from w2s_fast.engine.thresholds import Thresholds
from w2s_fast.errors import W2SError
from w2s_fast.losses import LOSSES, make_loss
from w2s_fast.models import ModelConfig, build_model
from w2s_fast.tasks.agreement import tokenizer as agreement_tokenizer
from w2s_fast.weights import module_tensors

N = 44
BASE = TrainConfig(epochs=2, batch_size=16, lr=1e-2)


@dataclass(frozen=True)
class Rows:
    ids: tuple[str, ...]
    texts: tuple[str, ...]
    pairs: tuple[str, ...] | None = None


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return agreement_tokenizer()


@pytest.fixture(scope="module")
def data(tokenizer: Any) -> Encoded:
    words = ["the", "old", "key", "near", "a", "boy", "door", "cat", "dog", "red"]
    rng = np.random.default_rng(0)
    texts = tuple(" ".join(rng.choice(words, rng.integers(1, 9))) for _ in range(N))
    return encode(tokenizer, Rows(tuple(map(str, range(N))), texts))


@pytest.fixture(scope="module")
def soft() -> np.ndarray:
    p = np.random.default_rng(1).uniform(size=N)
    return np.stack([1 - p, p], 1)


def _model(tokenizer: Any, dtype: str = "fp32", **fields: Any) -> nn.Module:
    cfg = ModelConfig("scratch", hidden=16, heads=2, head_init="small", dtype=dtype, **fields)
    return build_model(cfg, 2, tokenizer, 0)


def _weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().double().flatten() for p in model.parameters()])


def test_encode(tokenizer: Any) -> None:
    rows = Rows(("x", "y", "z"), ("the key", "a", "the old red door"))
    data = encode(tokenizer, rows, max_length=3)
    assert data.lengths.tolist() == [3, 2, 3]
    batch = data.batch(np.array([1, 2]))
    eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    a, the, old = tokenizer.convert_tokens_to_ids(["a", "the", "old"])
    assert batch.input_ids.tolist() == [[eos, a, pad], [eos, the, old]]
    assert batch.attention_mask.tolist() == [[1, 1, 0], [1, 1, 1]]
    assert batch.token_type_ids is None
    with pytest.raises(W2SError, match="at least one row"):
        encode(tokenizer, Rows((), ()))


def test_encode_pairs_and_empty_rows() -> None:
    class Words:
        """Segment ids like BERT's; an empty text has no tokens."""

        model_max_length, pad_token_id, eos_token_id = 8, None, None

        def __call__(self, texts: list[str], pairs: list[str] | None = None, **_: Any) -> Any:
            first = [[len(w) for w in t.split()] for t in texts]
            second = [[len(w) for w in t.split()] for t in pairs or [""] * len(texts)]
            return {
                "input_ids": [a + b for a, b in zip(first, second, strict=True)],
                "token_type_ids": [
                    [0] * len(a) + [1] * len(b) for a, b in zip(first, second, strict=True)
                ],
            }

    data = encode(Words(), Rows(("x", "y"), ("a bb", "c"), ("ddd", "e ff")))
    types = data.batch(np.array([0, 1])).token_type_ids
    assert types is not None and types.tolist() == [[0, 0, 1], [0, 1, 1]]
    with pytest.raises(W2SError, match="'y' has no tokens"):
        encode(Words(), Rows(("x", "y"), ("a", " ")))


def test_row_order() -> None:
    """Every epoch has every row once, in an order of its own; only the last batch is short."""
    order = RowOrder(10, 4, 3, seed=7)
    rows = [order.rows(s) for s in range(8)]
    assert [len(r) for r in rows] == [4] * 7 + [2]
    flat = np.concatenate(rows)
    epochs = flat.reshape(3, 10)
    assert all(sorted(e) == list(range(10)) for e in epochs)
    assert len({tuple(e) for e in epochs}) == 3
    late = RowOrder(10, 4, 3, seed=7).rows(6)  # no memory of earlier steps
    assert np.array_equal(late, rows[6])
    assert not np.array_equal(
        np.concatenate([RowOrder(10, 4, 3, 8).rows(s) for s in range(8)]), flat
    )


def test_predict_keeps_the_order_and_the_mode(tokenizer: Any, data: Encoded) -> None:
    model = _model(tokenizer)
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


def test_token_batches() -> None:
    """Every row once, longest first; no batch has more rows, tokens or padding than it may."""
    lengths = np.random.default_rng(0).integers(1, 300, 500)
    batches = list(token_batches(lengths, 16, tokens=1000))
    assert sorted(np.concatenate(batches).tolist()) == list(range(500))
    groups = [lengths[rows] for rows in batches]
    assert all(a.min() >= b.max() for a, b in zip(groups, groups[1:], strict=False))
    for sizes in groups:
        area = len(sizes) * sizes.max()
        assert len(sizes) <= 16 and (area <= 1000 or len(sizes) == 1)
        assert sizes.sum() >= 0.95 * area
    assert max(map(len, batches)) > 1
    assert list(token_batches(np.array([], dtype=np.int64), 16)) == []
    (one,) = token_batches(np.array([5000]), 16)
    assert one.tolist() == [0]


@pytest.mark.parametrize("spec", ["xent", "logconf", "logconf_eleuther", "window"])
def test_micro_batches_change_nothing(
    spec: str, tokenizer: Any, data: Encoded, soft: np.ndarray
) -> None:
    """Sizes 1, 3 and 16, weighted rows, in fp64: the same weights as the whole batch at once."""
    weight = np.random.default_rng(2).uniform(0, 2, N)
    weight[::5] = 0
    ends = []
    for size in (None, 1, 3, 16):
        model = _model(tokenizer).double()
        cfg = replace(BASE, epochs=1, micro_batch_size=size, clip_norm=0.1)
        train(model, data, soft, make_loss(spec), cfg, 0, weight=weight)
        ends.append(_weights(model))
    for other in ends[1:]:
        assert (other - ends[0]).abs().max() < 1e-9


def test_threshold_modes(tokenizer: Any, data: Encoded, soft: np.ndarray) -> None:
    """All agree without micro-batches; with them each is a different, working approximation."""
    whole, parts = {}, {}
    for mode in THRESHOLDS:
        for size, ends in ((None, whole), (4, parts)):
            model = _model(tokenizer).double()
            cfg = replace(BASE, threshold=mode, micro_batch_size=size)
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
    engine = PlainEngine(_model(tokenizer), cfg)
    state, margins = loss.init_state(), []
    for step in range(2):
        rows = RowOrder(N, 16, 1, 0).rows(step)
        micro = [
            Micro(data.batch(part), weak, None, weak, None)
            for part in np.split(rows, 4)
            for weak in (torch.from_numpy(soft[part]).float(),)
        ]
        for m in micro:
            z = engine.logits(m.batch).detach()
            margins.append((z[:, 0] - z[:, 1]).double())
        thresholds = Thresholds("exact", loss, 2, 16)
        state = run_step(engine, loss, micro, thresholds, state, Progress(step, 2), 1e-2).state
    assert state is not None and torch.equal(state, torch.cat(margins))


def test_dropout_replays_in_the_exact_probe(
    tokenizer: Any, data: Encoded, soft: np.ndarray
) -> None:
    """The threshold's pass and the gradient's pass see the same masks."""
    model = _model(tokenizer)
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.5
    seen: list[Tensor] = []
    model.register_forward_hook(lambda _m, _i, out: seen.append(out.detach().clone()))
    cfg = replace(BASE, micro_batch_size=8, dropout=True)
    train(model, data, soft, make_loss("logconf"), replace(cfg, epochs=1), 0)
    assert torch.equal(seen[0], seen[2]) and torch.equal(seen[1], seen[3])
    assert not torch.equal(seen[0], seen[4])


@pytest.mark.parametrize("case", ["plain", "bf16", "dropout", "eleuther", "window", "ema"])
def test_resume_is_the_straight_run(
    case: str, tokenizer: Any, data: Encoded, soft: np.ndarray, tmp_path: Path
) -> None:
    """Stopped inside step 5 with a checkpoint at 4: same final weights and log, bit for bit."""
    cfg = replace(
        BASE,
        checkpoint_every=2,
        micro_batch_size=4,
        dropout=case == "dropout",
        threshold=case if case in ("window", "ema") else "exact",
    )
    loss = make_loss("logconf_eleuther" if case == "eleuther" else "logconf")

    def fresh() -> nn.Module:
        model = _model(tokenizer, "bf16" if case == "bf16" else "fp32")
        for module in model.modules():
            if hasattr(module, "attention_dropout"):
                module.attention_dropout = 0.3
        return model

    class Killed(Exception):
        pass

    def kill(step: int, _steps: int, _loss: float) -> None:
        if step == 5:
            raise Killed

    straight = fresh()
    log = train(straight, data, soft, loss, cfg, 3)
    with pytest.raises(Killed):
        train(fresh(), data, soft, loss, cfg, 3, checkpoint_dir=tmp_path, progress=kill)
    assert [p.name for p in finished(tmp_path)] == ["step-00000002", "step-00000004"]
    torch.manual_seed(999)
    resumed, done = fresh(), []
    again = train(
        resumed, data, soft, loss, cfg, 3,
        checkpoint_dir=tmp_path, progress=lambda s, _n, _l: done.append(s),
    )  # fmt: skip
    assert done[0] == 5 and again["losses"] == log["losses"]
    assert again["agreement"] == log["agreement"]
    for name, t in module_tensors(straight).items():
        assert torch.equal(t, module_tensors(resumed)[name]), name


def test_checkpoint_of_another_training_is_refused(
    tokenizer: Any, data: Encoded, soft: np.ndarray, tmp_path: Path
) -> None:
    cfg = replace(BASE, checkpoint_every=2)
    train(_model(tokenizer), data, soft, make_loss("xent"), cfg, 0, checkpoint_dir=tmp_path)

    def refused(match: str, targets: np.ndarray = soft, spec: str = "xent", **fields: Any) -> None:
        with pytest.raises(W2SError, match=match):
            train(
                _model(tokenizer), data, targets, make_loss(spec), replace(cfg, **fields), 0,
                checkpoint_dir=tmp_path,
            )  # fmt: skip

    refused("lr was 0.01, now it is 0.02", lr=0.02)
    refused("loss was Xent", spec="logconf")
    refused("targets was", targets=soft[::-1].copy())
    before, newest = finished(tmp_path)
    train(
        _model(tokenizer), data, soft, make_loss("xent"), replace(cfg, checkpoint_every=3), 0,
        checkpoint_dir=tmp_path,
    )  # fmt: skip
    assert finished(tmp_path) == [before, newest]  # the last two
    weights = newest / "state-00000.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + b"?")  # one byte
    with pytest.warns(UserWarning, match="differs from its checksum.; continuing from step"):
        refused("lr was 0.01, now it is 0.02", lr=0.02)
    (before / "state.json").write_text("{}")
    refused("is damaged .state-00000.safetensors differs from its checksum.; remove it")
    weights.unlink()
    refused("No such file")


def test_a_full_disk_keeps_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = {"model.w": torch.arange(3.0)}
    checkpoint.save(tmp_path, 2, 1.0, tensors.items(), {"seed": 0})

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(W2SError, match="No space left on device; free some space"):
        checkpoint.save(tmp_path, 4, 1.0, tensors.items(), {"seed": 0})
    monkeypatch.undo()
    (tmp_path / ".step-00000006.1").mkdir()  # what a kill leaves
    found = checkpoint.load(tmp_path, {"seed": 0})
    assert found is not None and found.step == 2
    read = found.read("model.w")
    assert read is not None and torch.equal(read, tensors["model.w"])
    assert found.read("model.other") is None
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000002"]


def test_bf16_keeps_updates_below_its_resolution(tokenizer: Any) -> None:
    """AdamW at lr 1e-5 moves bf16 weights of size 1 only through an fp32 master."""
    module = nn.Module()
    module.w = nn.Parameter(torch.ones(8, 8, dtype=torch.bfloat16))
    optimizer = MasterAdamW(module, replace(BASE, lr=1e-5))
    for _ in range(400):
        module.w.grad = torch.ones_like(module.w)
        optimizer.accumulate()
        assert module.w.grad is None
        optimizer.step(1e-5)
    assert float(optimizer.tensors()["master.w"].detach().mean()) == pytest.approx(
        1 - 400e-5, abs=1e-5
    )
    assert float(module.w.detach().float().mean()) == pytest.approx(1 - 400e-5, abs=2**-8)


def test_bf16_gradients_add_up_in_fp32() -> None:
    """256 + 1 is 256 in bf16; eight times 1 must still arrive."""
    module = nn.Module()
    module.w = nn.Parameter(torch.zeros(2, 2, dtype=torch.bfloat16))
    optimizer = MasterAdamW(module, BASE)
    for value in (256.0, *[1.0] * 8):
        module.w.grad = torch.full_like(module.w, value)
        optimizer.accumulate()
    assert float(optimizer.tensors()["master.w"].grad[0, 0]) == 264.0


def test_weight_decay_spares_vectors() -> None:
    module = nn.Linear(3, 3)
    optimizer = MasterAdamW(module, replace(BASE, weight_decay=0.5))
    before = module.weight.detach().clone(), module.bias.detach().clone()
    for p in module.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step(0.1)
    assert torch.allclose(module.weight, 0.95 * before[0]) and torch.equal(module.bias, before[1])


def test_dropout_is_off_in_train_mode_and_restored(tokenizer: Any) -> None:
    """BERT keeps rates in modules, Llama as a number; both are silent, in train mode."""
    from transformers import BertConfig, BertModel

    bert = BertModel(
        BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
                   intermediate_size=8)
    )  # fmt: skip
    llama = _model(tokenizer).base
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
        model = _model(tokenizer)
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

    model = _model(tokenizer)
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
    model, state = _model(tokenizer), torch.get_rng_state()
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
    model = _model(tokenizer)
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
            train(_model(tokenizer), data, targets, make_loss("xent"), BASE, 0, weight=weight)
        assert "\n" not in str(caught.value)

    hole = soft.copy()
    hole[4, 1] = np.nan
    refused("row 4: weak labels must be finite", hole)
    refused(r"row 0: weak labels must be finite and not negative", soft - 2)
    refused(r"shape \(43, 2\); expected \(44, 2\)", soft[:-1])
    refused(r"shape \(44, 3\); expected \(44, 2\)", np.ones((N, 3)))
    refused(r"target 2 in row 1: labels must be 0\.\.1", np.arange(1, N + 1))
    refused("dtype object", np.array([None] * N))
    refused(r"shape \(44, 2\) and dtype int64", np.ones((N, 2), dtype=np.int64))
    refused(r"weight has shape \(3,\)", soft, np.ones(3))
    refused("weights must be finite", soft, np.full(N, np.inf))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"zero": 4}, "zero is 4; expected a ZeRO stage, 0 to 3"),
        ({"offload_optimizer": "cpu"}, "at zero=0; it needs ZeRO stage 1 or more"),
        ({"zero": 2, "offload_params": "cpu"}, "at zero=2; it needs ZeRO stage 3 or more"),
        ({"zero": 3, "offload_params": "nvme"}, "it needs ZeRO stage 3 and the folder of a local"),
        ({"zero": 3, "offload_params": "disk"}, "expected one of none, cpu, nvme"),
        ({"deepspeed": "x.json"}, "at zero=0, which is plain torch"),
        ({"timeout_s": 0}, "timeout_s is 0; expected seconds"),
        ({"schedule": "cosin"}, "did you mean 'cosine'"),
        ({"threshold": "median"}, "expected one of exact, window, ema, microbatch"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"epochs": 0}, "epochs is 0"),
        ({"micro_batch_size": 0}, "micro_batch_size is 0"),
        ({"warmup_frac": 1.0}, "warmup_frac is 1.0"),
        ({"clip_norm": 0.0}, "clip_norm is 0.0"),
    ],
)
def test_bad_configs(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(W2SError, match=says):
        TrainConfig(**fields)


def test_learning_rates() -> None:
    cosine = TrainConfig(lr=1.0)
    assert [round(cosine.lr_at(s, 4), 4) for s in range(4)] == [1.0, 0.8536, 0.5, 0.1464]
    warm = TrainConfig(lr=1.0, schedule="linear", warmup_frac=0.5)
    assert [warm.lr_at(s, 4) for s in range(4)] == [0.5, 1.0, 1.0, 0.5]
    assert TrainConfig(lr=2.0, schedule="constant").lr_at(3, 4) == 2.0
    assert TrainConfig(epochs=3, batch_size=32).steps(2000) == 188
