"""Heads trained together are what the loop gives each alone; caches hold what they say."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from w2s_fast.errors import W2SError
from w2s_fast.losses import LOSSES, make_loss
from w2s_fast.models import ModelConfig, build_model
from w2s_fast.probing import hidden_states
from w2s_fast.probing.feature_cache import CachedHead, CachedRows, cache_features
from w2s_fast.probing.linear_heads import HeadRun, predict_heads, train_heads
from w2s_fast.tasks.datasets.agreement import tokenizer as agreement_tokenizer
from w2s_fast.training import Encoded, TrainConfig, encode, predict, train

N, D = 150, 12
RECIPE = TrainConfig(epochs=3, batch_size=32, lr=1e-2, warmup_frac=0.1, average_frac=0.3)


@dataclass(frozen=True)
class Rows:
    ids: tuple[str, ...]
    texts: tuple[str, ...]
    pairs: tuple[str, ...] | None = None


@pytest.fixture(scope="module")
def features() -> Tensor:
    return torch.randn(N, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def _soft(classes: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.ones(classes), N)


def _start(classes: int) -> nn.Linear:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return nn.Linear(D, classes)


def _runs(classes: int) -> list[HeadRun]:
    """Every loss, on soft and hard labels, with rates and row weights of its own."""
    soft, hard = _soft(classes), _soft(classes, 2).argmax(1)
    hard[::9] = -100
    weight = np.random.default_rng(3).uniform(0, 2, N)
    weight[::5] = 0
    out = []
    for i, name in enumerate(LOSSES):
        loss, lr = make_loss(name), None if i % 3 else 1e-3 * (i + 1)
        out += [HeadRun(soft, loss, lr), HeadRun(hard, loss, lr, weight)]
    return out


def _alone(x: Tensor, run: HeadRun, cfg: TrainConfig, seed: int, start: nn.Linear) -> Any:
    """The same run by the ordinary loop."""
    model = CachedHead(D, start.out_features, start).to(torch.promote_types(x.dtype, torch.float32))
    cfg = cfg if run.lr is None else replace(cfg, lr=run.lr)
    log = train(model, CachedRows(x), run.targets, run.loss, cfg, seed, weight=run.weight)
    return model, log


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("clip", [None, 0.05])
def test_every_loss_is_trained_as_if_alone(
    features: Tensor, dtype: torch.dtype, classes: int, clip: float | None
) -> None:
    """All losses, twice, own rates, weights, ignored rows, decay, clipping, a short batch."""
    cfg = replace(RECIPE, clip_norm=clip, weight_decay=0.1)
    runs, start = _runs(classes), _start(classes)
    runs += [replace(run, targets=run.targets[::-1].copy()) for run in runs]
    features = features.to(dtype)
    together = train_heads(features, runs, cfg, 7, head=start)
    assert together.weight.shape == (len(runs), classes, D)
    assert together.losses.shape == (cfg.steps(N), len(runs))
    moved = (together.weight - start.weight).abs().amax((1, 2))
    assert moved.min() > 1e-3
    room = 1e-9 if dtype == torch.float64 else 1e-4
    for h, run in enumerate(runs):
        model, log = _alone(features, run, cfg, 7, start)
        assert (together.weight[h] - model.head.weight).abs().max() < room, run
        assert (together.bias[h] - model.head.bias).abs().max() < room, run
        assert np.allclose(together.losses[:, h], log["losses"], atol=room), run
        assert np.allclose(together.agreement[:, h], log["agreement"], atol=1e-6), run


@pytest.mark.parametrize("mode", ["window", "ema"])
def test_thresholds_that_roll(features: Tensor, mode: str) -> None:
    cfg, start = replace(RECIPE, threshold_scope=mode), _start(2)
    runs = [HeadRun(_soft(2), make_loss(spec)) for spec in ("logconf", "logconf_paper", "xent")]
    together = train_heads(features, runs, cfg, 0, head=start)
    for h, run in enumerate(runs):
        model, _ = _alone(features, run, cfg, 0, start)
        assert (together.weight[h] - model.head.weight).abs().max() < 1e-9
    with pytest.raises(W2SError, match="heads take whole batches"):
        train_heads(features, runs, replace(cfg, micro_batch_size=8), 0)


@pytest.mark.parametrize(
    "fields",
    [{"ema_decay": 0.8}, {"interpolation": 0.4}, {"average_frac": 0.3, "interpolation": 0.4}],
    ids=lambda fields: "-".join(fields),
)
def test_final_weights(features: Tensor, fields: dict[str, float]) -> None:
    cfg, start = replace(RECIPE, **({"average_frac": 0.0} | fields)), _start(2)
    runs = [HeadRun(_soft(2), make_loss(spec)) for spec in ("logconf", "xent")]
    together = train_heads(features, runs, cfg, 0, head=start)
    for h, run in enumerate(runs):
        model, _ = _alone(features, run, cfg, 0, start)
        assert (together.weight[h] - model.head.weight).abs().max() < 1e-9
        assert (together.bias[h] - model.head.bias).abs().max() < 1e-9


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_mixup(features: Tensor, dtype: torch.dtype) -> None:
    """Hard and soft labels, weights, ignored rows, thresholds, and a short batch of odd size."""
    cfg, start = replace(RECIPE, mixup=0.4, epochs=1), _start(2)
    x, n = features[1:].to(dtype), N - 1
    assert n % cfg.batch_size % 2 == 1
    runs = [
        replace(r, targets=r.targets[:n], weight=None if r.weight is None else r.weight[:n])
        for r in _runs(2)
    ]
    together = train_heads(x, runs, cfg, 0, head=start)
    plain = train_heads(x, runs, replace(cfg, mixup=0.0), 0, head=start)
    room = 1e-9 if dtype == torch.float64 else 1e-4
    for h, run in enumerate(runs):
        model, log = _alone(x, run, cfg, 0, start)
        assert (together.weight[h] - model.head.weight).abs().max() < room, run
        assert (together.bias[h] - model.head.bias).abs().max() < room, run
        assert np.allclose(together.losses[:, h], log["losses"], atol=room), run
    assert (together.weight - plain.weight).abs().amax((1, 2)).min() > 1e-3


def test_runs_share_the_order_of_a_seed(features: Tensor) -> None:
    """The same run twice is the same head, and another seed is another one."""
    run = HeadRun(_soft(2), make_loss("xent"))
    twice = train_heads(features, [run, run], RECIPE, 3)
    assert (twice.weight[0] - twice.weight[1]).abs().max() < 1e-12  # of one batched product
    other = train_heads(features, [run], RECIPE, 4)
    assert (other.weight[0] - twice.weight[0]).abs().max() > 1e-5


@pytest.fixture(scope="module")
def frozen() -> tuple[Any, Encoded]:
    tokenizer = agreement_tokenizer()
    words = ["the", "old", "key", "near", "a", "boy", "door", "cat", "dog", "red"]
    rng = np.random.default_rng(0)
    texts = tuple(" ".join(rng.choice(words, rng.integers(1, 9))) for _ in range(N))
    cfg = ModelConfig("scratch", hidden=D, heads=2, layers=2, freeze="base", head_init="small")
    data = encode(tokenizer, Rows(tuple(map(str, range(N))), texts))
    return build_model(cfg, 2, tokenizer, 0), data


def _probe(model: Any, data: Encoded, targets: np.ndarray, spec: str) -> tuple[nn.Linear, Any]:
    """Where the model's head starts, and the uncached linear probe."""
    start = nn.Linear(D, 2)
    start.load_state_dict(model.head.state_dict())
    trained = copy.deepcopy(model)
    train(trained, data, targets, make_loss(spec), RECIPE, 1)
    return start, trained


@pytest.mark.parametrize("spec", ["xent", "logconf", "logconf_eleuther"])
def test_the_cached_probe_is_the_uncached_one(
    frozen: tuple[Any, Encoded], tmp_path: Path, spec: str
) -> None:
    """fp32 states: equal to rounding. bf16 states: to the rounding of the states."""
    model, data = frozen
    targets = _soft(2)
    start, probe = _probe(model, data, targets, spec)
    want = predict(probe, data)
    for dtype, limit in ((torch.float32, 2e-5), (torch.bfloat16, 2**-8)):
        x = cache_features(model, data, tmp_path / f"{dtype}.safetensors", dtype=dtype)
        assert x.dtype == dtype and x.shape == (N, D)
        result = train_heads(x, [HeadRun(targets, make_loss(spec))], RECIPE, 1, head=start)
        error = np.abs(predict_heads(x, result)[0] - want).max()
        assert error < limit, error
        own = CachedHead(D, 2, start)
        train(own, CachedRows(x), targets, make_loss(spec), RECIPE, 1)
        assert np.abs(predict(own, CachedRows(x)) - want).max() < limit
    assert (predict(probe, data) - predict(model, data)).max() > 0.02  # it learned something


def test_predict_heads_by_hand(features: Tensor) -> None:
    runs = [HeadRun(_soft(3), make_loss("xent"), lr) for lr in (1e-2, 1e-3)]
    result = train_heads(features, runs, RECIPE, 0)
    got = predict_heads(features, result)
    assert got.shape == (2, N, 3) and got.dtype == np.float32
    for h in range(2):
        want = (features @ result.weight[h].T + result.bias[h]).softmax(1).numpy()
        assert np.abs(got[h] - want).max() < 1e-6
    with pytest.raises(W2SError, match=r"expected \(N, 12\)"):
        predict_heads(features[:, :3], result)


def test_a_cache_is_written_once(frozen: tuple[Any, Encoded], tmp_path: Path) -> None:
    """A second reading computes nothing; other rows, layers, models and types are refused."""
    model, data = frozen
    path = tmp_path / "deep" / "states.safetensors"
    x = cache_features(model, data, path, "half")
    assert torch.equal(x, torch.from_numpy(hidden_states(model, data, "half")).bfloat16())
    before = path.stat().st_mtime_ns
    calls: list[int] = []
    handle = model.base.register_forward_hook(lambda *_: calls.append(1))
    again = cache_features(model, data, path, "half")
    handle.remove()
    assert torch.equal(x, again) and not calls and path.stat().st_mtime_ns == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    with safe_open(path, framework="pt") as f:
        assert list(f.keys()) == ["states"]
    for name, call in (
        ("layer", lambda: cache_features(model, data, path, 0)),
        ("data", lambda: cache_features(model, data.rows(slice(0, 9)), path, "half")),
        ("dtype", lambda: cache_features(model, data, path, "half", torch.float32)),
    ):
        with pytest.raises(W2SError, match=f"holds states of another {name}"):
            call()
    other = copy.copy(model)
    other.pooling = "mean"
    with pytest.raises(W2SError, match="another pooling"):
        cache_features(other, data, path, "half")
    with torch.no_grad():
        weight = next(model.base.parameters())
        weight[0, 0] += 1
        with pytest.raises(W2SError, match="another model"):
            cache_features(model, data, path, "half")
        weight[0, 0] -= 1
    path.write_bytes(b"?")
    with pytest.raises(W2SError, match="is not a cache of states"):
        cache_features(model, data, path, "half")
    with pytest.raises(W2SError, match="torch.bfloat16 or torch.float32"):
        cache_features(model, data, tmp_path / "x", dtype=torch.float16)
    with pytest.raises(W2SError, match="has no layers to read"):
        cache_features(nn.Linear(2, 2), data, tmp_path / "x")
    assert not (tmp_path / "x").exists() and len(list(tmp_path.iterdir())) == 1


def test_a_cache_is_a_memory_map(frozen: tuple[Any, Encoded], tmp_path: Path) -> None:
    """Every reader sees the file's own pages."""
    model, data = frozen
    x = cache_features(model, data, tmp_path / "states.safetensors")
    maps = Path("/proc/self/maps").read_text()
    inside = [
        line for line in maps.splitlines() if line.endswith("states.safetensors")
        and int(line.split("-")[0], 16) <= x.data_ptr() < int(line.split()[0].split("-")[1], 16)
    ]  # fmt: skip
    assert inside


def test_cached_rows(features: Tensor) -> None:
    data = CachedRows(features.bfloat16())
    part = data.rows(slice(10, 20))
    assert len(part) == 10 and part.lengths.tolist() == [1] * 10
    batch = part.batch(np.array([3, 0]))
    assert torch.equal(batch.input_ids, features.bfloat16()[[13, 10]])
    assert data.digest() != part.digest() and data.digest() == CachedRows(data.features).digest()


def test_bad_runs(features: Tensor) -> None:
    xent, soft = make_loss("xent"), _soft(2)
    good = HeadRun(soft, xent)

    def refused(match: str, x: Tensor = features, runs: Any = (good,), **more: Any) -> None:
        with pytest.raises(W2SError, match=match):
            train_heads(x, list(runs), RECIPE, 0, **more)

    refused("expected floating point", x=features.long())
    refused("expected floating point", x=features[0])
    refused("no runs to train", runs=())
    refused("run 1, Xent.*expected .150, 2.", runs=(good, HeadRun(_soft(3), xent)))
    refused("run 0, Xent.*not negative", runs=(HeadRun(-soft, xent),))
    refused("run 0: lr is nan", runs=(HeadRun(soft, xent, float("nan")),))
    refused("head takes 3 features; expected 12", head=nn.Linear(3, 2))
    broken = features.clone()
    broken[140] = float("nan")
    refused("loss of run 0, Xent.*is nan at step . of 15", x=broken)
