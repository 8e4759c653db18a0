"""A frozen base stays as it was, bit for bit, and hidden states are those of the model itself."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import ranks
from torch import nn

from w2s_fast.distributed.world import exit_process, init_distributed
from w2s_fast.errors import W2SError
from w2s_fast.losses import make_loss
from w2s_fast.models import ModelConfig, build_model, load_weights, save_weights
from w2s_fast.models.weights import gathered, module_tensors
from w2s_fast.probing import hidden_states
from w2s_fast.tasks.datasets.agreement import tokenizer as agreement_tokenizer
from w2s_fast.training import Encoded, TrainConfig, encode, predict, train
from w2s_fast.training.checkpoint import finished
from w2s_fast.training.optim import MasterAdamW

N = 23
CFG = ModelConfig("scratch", hidden=16, heads=2, layers=3, freeze="base", head_init="small")
RECIPE = TrainConfig(epochs=2, batch_size=8, lr=1e-1)


@dataclass(frozen=True)
class Rows:
    ids: tuple[str, ...]
    texts: tuple[str, ...]
    pairs: tuple[str, ...] | None = None


def _data(tokenizer: Any) -> tuple[Encoded, np.ndarray]:
    words = ["the", "old", "key", "near", "a", "boy", "door", "cat", "dog", "red"]
    rng = np.random.default_rng(0)
    texts = tuple(" ".join(rng.choice(words, rng.integers(1, 9))) for _ in range(N))
    p = rng.uniform(size=N)
    return encode(tokenizer, Rows(tuple(map(str, range(N))), texts)), np.stack([1 - p, p], 1)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return agreement_tokenizer()


def _copy(model: nn.Module) -> dict[str, torch.Tensor]:
    return {n: t.detach().clone() for n, t in module_tensors(model).items()}


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_only_the_head_trains(tokenizer: Any, tmp_path: Path, dtype: str) -> None:
    data, soft = _data(tokenizer)
    model = build_model(replace(CFG, dtype=dtype), 2, tokenizer, 0)
    before = _copy(model)
    assert set(MasterAdamW(model, RECIPE).tensors()) == set()
    graphs: list[bool] = []
    model.base.register_forward_hook(
        lambda _m, _i, out: graphs.append(out.last_hidden_state.requires_grad)
    )
    cfg = replace(RECIPE, checkpoint_every=2, micro_batch_size=4)
    train(model, data, soft, make_loss("logconf"), cfg, 0, checkpoint_dir=tmp_path)
    assert graphs and not any(graphs)
    for name, t in module_tensors(model).items():
        assert torch.equal(t, before[name]) == name.startswith("base."), name
    whole_file = finished(tmp_path)[-1] / "state-00000.safetensors"
    from safetensors.torch import load_file

    saved = load_file(whole_file)
    assert {f"model.{n}" for n in before} <= saved.keys()
    state = [n for n in saved if n.startswith("optimizer.")]
    assert state and all(n.partition(".")[2].endswith(("head.weight", "head.bias")) for n in state)
    save_weights(model, tmp_path / "m.safetensors")
    again = build_model(replace(CFG, dtype=dtype), 2, tokenizer, 9)
    load_weights(again, tmp_path / "m.safetensors")
    assert np.array_equal(predict(again, data), predict(model, data))


def test_a_frozen_base_is_logistic_regression_on_its_states(tokenizer: Any) -> None:
    """The same head, trained by hand on the hidden states alone."""
    data, soft = _data(tokenizer)
    model = build_model(CFG, 2, tokenizer, 0).double()
    head = nn.Linear(16, 2).double()
    head.load_state_dict(model.head.state_dict())
    x = _exact_states(model, data)
    cfg = TrainConfig(epochs=5, batch_size=N, lr=1e-2, schedule="constant")
    train(model, data, soft, make_loss("xent"), cfg, 0)
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-2, weight_decay=0.0)
    for _ in range(5):
        optimizer.zero_grad()
        w = torch.from_numpy(soft).float().double()
        nn.functional.cross_entropy(head(x), w).backward()
        optimizer.step()
    assert (head.weight - model.head.weight).abs().max() < 1e-9


def _exact_states(model: Any, data: Encoded) -> torch.Tensor:
    """fp64, one row at a time, by a hook on the head."""
    found: list[torch.Tensor] = []
    handle = model.head.register_forward_pre_hook(lambda _m, x: found.append(x[0].detach()))
    for i in range(len(data)):
        batch = data.batch(np.array([i]))
        model(batch.input_ids, batch.attention_mask)
    handle.remove()
    return torch.cat(found)


def test_a_checkpoint_of_the_whole_model_is_another_training(
    tokenizer: Any, tmp_path: Path
) -> None:
    data, soft = _data(tokenizer)
    cfg = replace(RECIPE, checkpoint_every=2)
    whole_model = build_model(replace(CFG, freeze="none"), 2, tokenizer, 0)
    train(whole_model, data, soft, make_loss("xent"), cfg, 0, checkpoint_dir=tmp_path)
    with pytest.raises(W2SError, match="model was"):
        train(
            build_model(CFG, 2, tokenizer, 0), data, soft, make_loss("xent"), cfg, 0,
            checkpoint_dir=tmp_path,
        )  # fmt: skip


def test_bad_freezes() -> None:
    with pytest.raises(W2SError, match="freeze is 'body'; expected one of none, base"):
        ModelConfig(freeze="body")
    for fields in ({"source": "bow"}, {"lora_rank": 2}):
        with pytest.raises(W2SError, match="nothing but a head would train"):
            ModelConfig(freeze="base", **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("pooling", ["last", "mean", "cls"])
def test_hidden_states(tokenizer: Any, pooling: str) -> None:
    data, _ = _data(tokenizer)
    model: Any = build_model(replace(CFG, pooling=pooling), 2, tokenizer, 0)
    model.train()
    state = torch.get_rng_state()
    layers: dict[int | str, np.ndarray] = {
        name: hidden_states(model, data, name, batch_size=5)
        for name in (-1, 3, 0, 1, "half", "last")
    }
    assert model.training and torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(layers["last"], layers[-1])
    assert np.array_equal(layers[-1], layers[3]) and np.array_equal(layers["half"], layers[1])
    assert layers[-1].shape == (N, 16) and layers[-1].dtype == np.float32
    logits = model.head(torch.from_numpy(layers[-1]))
    assert np.allclose(logits.softmax(1).detach(), predict(model, data), atol=1e-6)
    for i in (0, N - 1):
        batch = data.batch(np.array([i]))
        out = model.base(input_ids=batch.input_ids, output_hidden_states=True).hidden_states
        where = {"last": slice(-1, None), "mean": slice(None), "cls": slice(1)}[pooling]
        for layer in (0, 1):
            want = out[layer][0, where].mean(0).detach()
            assert np.allclose(layers[layer][i], want, atol=1e-6)
    if pooling == "last":  # in the same batches
        assert np.array_equal(hidden_states(model.base, data, batch_size=5), layers[-1])


def test_bad_layers(tokenizer: Any) -> None:
    data, _ = _data(tokenizer)
    model = build_model(CFG, 2, tokenizer, 0)
    for layer in (4, -5, "middle"):
        with pytest.raises(W2SError, match="expected -4 to 3, 'half' or 'last'"):
            hidden_states(model, data, layer)
    with pytest.raises(W2SError, match="BagOfWords has no layers"):
        hidden_states(build_model(ModelConfig("bow"), 2, tokenizer, 0), data)


def fit(zero: int) -> dict[str, Any]:
    tokenizer = agreement_tokenizer()
    data, soft = _data(tokenizer)
    cfg = replace(RECIPE, zero_stage=zero, micro_batch_size=2)
    model = build_model(CFG, 2, tokenizer, 0)
    log = train(model, data, soft, make_loss("logconf"), cfg, 0)
    flat = []
    for t in module_tensors(model).values():
        with gathered([t]):
            flat += t.detach().double().flatten().tolist()
    return {
        "losses": log["losses"],
        "weights": flat,
        "states": hidden_states(model, data, "half").tolist(),
        "probs": predict(model, data).tolist(),
    }


@pytest.mark.slow
@pytest.mark.dist
def test_sharded(tmp_path: Path) -> None:
    """ZeRO 0, 2 and 3 on two processes: what one process gives."""
    pytest.importorskip("deepspeed")
    out = tmp_path / "out.json"
    ranks.run(__file__, 2, {"stages": [0, 2, 3], "out": str(out)})
    want = fit(0)
    for got in json.loads(out.read_text()):
        # The same batches of the same frozen base, but products of other threads: other sums.
        assert np.allclose(got["states"], want["states"], rtol=0, atol=1e-6)
        for name in ("losses", "weights", "probs"):
            assert np.allclose(got[name], want[name], atol=1e-5), name


def main(job: dict[str, Any]) -> None:
    world = init_distributed(60)
    found = [fit(zero) for zero in job["stages"]]
    if world.is_main_process:
        Path(job["out"]).write_text(json.dumps(found))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
    exit_process(0)
