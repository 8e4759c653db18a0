"""Reward models on pairs: the loss is BCE of a margin, and the engine counts examples."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import ranks
from torch import Tensor, nn

from w2s_fast.distributed.world import exit_process, init_distributed
from w2s_fast.errors import W2SError
from w2s_fast.losses import make_loss
from w2s_fast.models import ModelConfig, build_model, load_weights, save_weights
from w2s_fast.models.weights import gathered, module_tensors
from w2s_fast.probing import hidden_states
from w2s_fast.tasks.datasets.agreement import tokenizer as agreement_tokenizer
from w2s_fast.training import Encoded, TrainConfig, encode, predict, train
from w2s_fast.training.data import token_batches
from w2s_fast.training.engine import forward

N = 21
CFG = ModelConfig("scratch", hidden=16, heads=2, layers=2, head_init="small")
RECIPE = TrainConfig(epochs=2, batch_size=8, lr=1e-2)
SOFT = np.random.default_rng(1).dirichlet([1, 1], size=N).astype(np.float32)


@dataclass(frozen=True)
class Rows:
    ids: tuple[str, ...]
    texts: tuple[str, ...]
    pairs: tuple[str, ...] | None = None


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return agreement_tokenizer()


def _rows() -> Rows:
    words = ["the", "old", "key", "near", "a", "boy", "door", "cat", "dog", "red"]
    rng = np.random.default_rng(0)
    first, second = (
        tuple(" ".join(rng.choice(words, rng.integers(1, 9))) for _ in range(N)) for _ in range(2)
    )
    return Rows(tuple(map(str, range(N))), first, second)


def _data(tokenizer: Any, rows: Rows | None = None) -> Encoded:
    return encode(tokenizer, rows or _rows(), kind="preference")


def _model(tokenizer: Any, cfg: ModelConfig = CFG) -> Any:
    return build_model(cfg, 2, tokenizer, 0, kind="preference")


def _rewards(model: Any, data: Encoded) -> Tensor:
    """(N, 2) scores r(first), r(second), one row of tokens at a time, from the parts."""
    out = []
    for low, high in zip(data.offsets[:-1], data.offsets[1:], strict=True):
        ids = torch.from_numpy(data.tokens[low:high].astype(np.int64))[None]
        hidden = model.base(input_ids=ids).last_hidden_state[0, -1]
        out.append((model.head.weight[0] * hidden).sum())
    return torch.stack(out).view(-1, 2)


def test_encode(tokenizer: Any) -> None:
    """Both completions are rows, and of a long one the end stays."""
    rows = Rows(("x", "y"), ("the old red door", "dog"), ("the key", "dog cat boy key"))
    data = encode(tokenizer, rows, max_length=3, kind="preference")
    assert tokenizer.truncation_side == "right"
    parts = np.split(data.tokens, data.offsets[1:-1])
    words = [" ".join(tokenizer.convert_ids_to_tokens(t.tolist())[1:]) for t in parts]
    assert words == ["red door", "the key", "dog", "boy key"]
    assert len(data) == 2 and data.n_candidates == 2 and data.lengths.tolist() == [6, 6]
    batch = data.batch(np.array([1, 0]))
    assert batch.attention_mask.tolist() == [[1, 1, 0], [1, 1, 1], [1, 1, 1], [1, 1, 1]]
    assert batch.input_ids[0].tolist()[:2] == data.tokens[6:8].tolist()
    part = data.rows(slice(1, 2))
    assert len(part) == 1 and part.tokens.tolist() == data.tokens[6:].tolist()
    assert torch.equal(part.batch(np.array([0])).input_ids, data.batch(np.array([1])).input_ids)
    assert data.digest() != replace(data, n_candidates=1).digest()
    with pytest.raises(W2SError, match="have no pairs"):
        encode(tokenizer, Rows(("x",), ("a",)), kind="preference")
    with pytest.raises(W2SError, match="kind is 'prefs'; expected classification or preference"):
        encode(tokenizer, rows, kind="prefs")


def test_batches_count_both_completions(tokenizer: Any) -> None:
    data = _data(tokenizer)
    for rows in token_batches(data.lengths, 64, tokens=60):
        assert data.batch(rows).input_ids.numel() <= 60 or len(rows) == 1


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_loss_and_gradient_are_bce_of_the_margin(tokenizer: Any, pooling: str) -> None:
    """fp64, soft weak preferences, row weights; every parameter of the model."""
    data = _data(tokenizer)
    model, plain = (_model(tokenizer, replace(CFG, pooling=pooling)).double() for _ in range(2))
    weight = torch.linspace(0, 2, N, dtype=torch.float64)
    weak = torch.from_numpy(SOFT)
    logits = forward(model, data.batch(np.arange(N)))
    assert logits.shape == (N, 2)
    loss = make_loss("xent")(logits, weak, weight=weight)
    (loss.loss_sum / loss.count).backward()
    if pooling == "last":
        r = _rewards(plain, data)
    else:
        parts = [data.rows(slice(i, i + 1)).batch(np.array([0])) for i in range(N)]
        r = torch.cat([forward(plain, b) for b in parts])
    d = r[:, 1] - r[:, 0]
    want = F.binary_cross_entropy_with_logits(d, weak[:, 1].double(), weight, reduction="sum")
    # The weak label sums to 1 up to fp32 rounding only.
    assert abs(loss.loss_sum - want) < 1e-5
    (want / weight.sum()).backward()
    for (name, a), (_, b) in zip(model.named_parameters(), plain.named_parameters(), strict=True):
        assert a.grad is not None and (a.grad - b.grad).abs().max() < 1e-7, name


def test_predictions_are_sigmoids(tokenizer: Any) -> None:
    rows = _rows()
    model = _model(tokenizer)
    data = _data(tokenizer, rows)
    got = predict(model, data, batch_size=5)
    d = _rewards(model.eval(), data).diff(dim=1)[:, 0].detach()
    assert got.shape == (N, 2) and np.allclose(got[:, 1], d.sigmoid(), atol=1e-6)
    swapped = _data(tokenizer, Rows(rows.ids, rows.pairs or (), rows.texts))
    assert np.allclose(predict(model, swapped), got[:, ::-1], atol=1e-6)
    assert model.head.weight.shape == (1, 16) and model.head.bias is None
    states = hidden_states(model, data)
    assert np.allclose(states @ model.head.weight[0].detach().numpy(), d, atol=1e-6)


def test_it_learns_a_preference(tokenizer: Any, tmp_path: Path) -> None:
    """A bag of words learns which word is liked, from both sides; weights go to disk and back."""
    rng = np.random.default_rng(0)
    liked = rng.integers(0, 2, 60)
    words = np.array(["red", "old"])
    rows = Rows(
        tuple(map(str, range(60))),
        tuple(f"the {words[1 - x]} key" for x in liked),
        tuple(f"the {words[x]} key" for x in liked),
    )
    data = _data(tokenizer, rows)
    cfg = ModelConfig("bow")
    model = _model(tokenizer, cfg)
    train(model, data, liked.astype(np.int64), make_loss("logconf"), TrainConfig(lr=0.5), 0)
    assert (predict(model, data).argmax(1) == liked).all()
    save_weights(model, tmp_path / "m.safetensors")
    again = _model(tokenizer, cfg)
    load_weights(again, tmp_path / "m.safetensors")
    assert np.array_equal(predict(again, data), predict(model, data))


@pytest.mark.parametrize("spec", ["logconf", "logconf_paper", "product"])
def test_micro_batches_change_nothing(tokenizer: Any, spec: str) -> None:
    """Thresholds over examples: as many as completions would give another one."""
    ends = []
    for size in (None, 3):
        model = _model(tokenizer).double()
        cfg = replace(RECIPE, micro_batch_size=size)
        train(model, _data(tokenizer), SOFT, make_loss(spec), cfg, 0)
        ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert (ends[0] - ends[1]).abs().max() < 1e-9


def test_resume(tokenizer: Any, tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def kill(step: int, _steps: int, _loss: float) -> None:
        if step == 4:
            raise Killed

    cfg = replace(RECIPE, checkpoint_every=2, micro_batch_size=4)
    job: dict[str, Any] = {"loss": make_loss("logconf"), "cfg": cfg, "seed": 0}
    straight, resumed = _model(tokenizer), _model(tokenizer)
    data = _data(tokenizer)
    log = train(straight, data, SOFT, **job)
    with pytest.raises(Killed):
        train(_model(tokenizer), data, SOFT, checkpoint_dir=tmp_path, progress=kill, **job)
    again = train(resumed, data, SOFT, checkpoint_dir=tmp_path, **job)
    assert log["losses"] == again["losses"]
    for name, t in module_tensors(straight).items():
        assert torch.equal(t, module_tensors(resumed)[name])


def test_bad_kinds(tokenizer: Any) -> None:
    with pytest.raises(W2SError, match="n_classes is 3; expected 2 completions"):
        build_model(CFG, 3, tokenizer, 0, kind="preference")
    with pytest.raises(
        W2SError, match="kind is 'reward'; expected one of classification, preference"
    ):
        build_model(CFG, 2, tokenizer, 0, kind="reward")


def fit(zero: int, micro: int) -> dict[str, Any]:
    tokenizer = agreement_tokenizer()
    model: nn.Module = _model(tokenizer)
    data = _data(tokenizer)
    cfg = replace(RECIPE, zero_stage=zero, micro_batch_size=micro)
    log = train(model, data, SOFT, make_loss("logconf"), cfg, 0)
    flat = []
    for t in module_tensors(model).values():
        with gathered([t]):
            flat += t.detach().double().flatten().tolist()
    return {"losses": log["losses"], "weights": flat, "probs": predict(model, data).tolist()}


@pytest.mark.slow
@pytest.mark.dist
def test_sharded(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    out = tmp_path / "out.json"
    ranks.run(__file__, 2, {"stages": [0, 2, 3], "out": str(out)})
    want = fit(0, 4)
    for got in json.loads(out.read_text()):
        for name in ("losses", "weights", "probs"):
            assert np.allclose(got[name], want[name], atol=1e-5), name


def main(job: dict[str, Any]) -> None:
    world = init_distributed(60)
    found = [fit(zero, 2) for zero in job["stages"]]
    if world.is_main_process:
        Path(job["out"]).write_text(json.dumps(found))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
    exit_process(0)
