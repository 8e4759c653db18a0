"""Watching a training: the trajectory is that of the weights, the best moment comes back, and
neither an interruption nor looking itself changes anything."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import ranks
from torch import nn

from w2s_fast.distributed.world import SINGLE_PROCESS, exit_process, init_distributed
from w2s_fast.errors import W2SError
from w2s_fast.losses import make_loss
from w2s_fast.models import ModelConfig, build_model
from w2s_fast.models.weights import gathered, module_tensors
from w2s_fast.store import StoreWarning
from w2s_fast.tasks.datasets.agreement import tokenizer as agreement_tokenizer
from w2s_fast.training import Encoded, TrainConfig, Watch, encode, predict, train
from w2s_fast.training.checkpoint import finished, owned
from w2s_fast.training.monitor import Monitor

N = 23  # 12 steps of 8 rows in 4 epochs, which end after steps 3, 6, 9 and 12
CFG = TrainConfig(epochs=4, batch_size=8, lr=1e-2)
EPOCHS = [3, 6, 9, 12]


@dataclass(frozen=True)
class Rows:
    ids: tuple[str, ...]
    texts: tuple[str, ...]
    pairs: tuple[str, ...] | None = None


def _encoded(tokenizer: Any, n: int, seed: int) -> Encoded:
    words = ["the", "old", "key", "near", "a", "boy", "door", "cat", "dog", "red"]
    rng = np.random.default_rng(seed)
    texts = tuple(" ".join(rng.choice(words, rng.integers(1, 9))) for _ in range(n))
    return encode(tokenizer, Rows(tuple(map(str, range(n))), texts))


SOFT = np.random.default_rng(1).dirichlet([1, 1], size=N)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return agreement_tokenizer()


@pytest.fixture(scope="module")
def data(tokenizer: Any) -> Encoded:
    return _encoded(tokenizer, N, 0)


@pytest.fixture(scope="module")
def held(tokenizer: Any) -> Encoded:
    return _encoded(tokenizer, 7, 1)


def _model(tokenizer: Any, dtype: str = "fp32") -> nn.Module:
    cfg = ModelConfig("scratch", hidden=16, heads=2, head_init="small", dtype=dtype)
    return build_model(cfg, 2, tokenizer, 0)


class Scripted:
    """Scores as given, one a look: the best moment is known beforehand."""

    def __init__(self, *scores: float) -> None:
        self.left = list(scores)

    def __call__(self, probs: np.ndarray) -> float:
        return self.left.pop(0)


def _first(probs: np.ndarray) -> float:
    return float(probs[0, 0])


def _share(probs: np.ndarray, power: float, rows: Any = None) -> float:
    return float((probs[:, 0] ** power).mean())


@dataclass(frozen=True)
class Power:
    power: float

    def __call__(self, probs: np.ndarray) -> float:
        return _share(probs, self.power)

    def score(self, probs: np.ndarray) -> float:
        return self(probs)


def _fit(model: nn.Module, data: Encoded, watch: Watch | None, **fields: Any) -> dict[str, Any]:
    options = {k: fields.pop(k) for k in ("checkpoint_dir", "progress") if k in fields}
    cfg = replace(CFG, **fields)
    return train(model, data, SOFT, make_loss("logconf"), cfg, 3, watch=watch, **options)


def _same(a: nn.Module, b: nn.Module) -> bool:
    other = module_tensors(b)
    return all(torch.equal(t, other[n]) for n, t in module_tensors(a).items())


def test_looking_changes_nothing(tokenizer: Any, data: Encoded, held: Encoded) -> None:
    """Dropout on: a look that used random numbers or left a mode behind would show."""
    ends = []
    for watch in (None, Watch(held, every=1)):
        model = _model(tokenizer)
        for module in model.modules():
            if hasattr(module, "attention_dropout"):
                module.attention_dropout = 0.3
        log = _fit(model, data, watch, dropout=True, micro_batch_size=4)
        ends.append((model, log["losses"]))
    assert ends[0][1] == ends[1][1] and _same(ends[0][0], ends[1][0])
    assert "trajectory" not in _fit(_model(tokenizer), data, None)


def test_trajectory(tokenizer: Any, data: Encoded, held: Encoded) -> None:
    """Each look equals the prediction of a model whose training ended there."""
    model = _model(tokenizer)
    log = _fit(model, data, Watch(held), schedule="constant")
    assert log["watched"] == EPOCHS and log["scores"] is None and log["best"] is None
    assert log["trajectory"].shape == (4, 7, 2) and log["trajectory"].dtype == np.float32
    for epochs in (1, 2, 4):
        part = _model(tokenizer)
        _fit(part, data, None, schedule="constant", epochs=epochs, batch_size=N)
    exact = TrainConfig(epochs=4, batch_size=N, lr=1e-2, schedule="constant")
    whole_log = train(_model(tokenizer), data, SOFT, make_loss("xent"), exact, 3, watch=Watch(held))
    for epoch in (1, 2, 3, 4):
        part = _model(tokenizer)
        train(part, data, SOFT, make_loss("xent"), replace(exact, epochs=epoch), 3)
        assert np.array_equal(whole_log["trajectory"][epoch - 1], predict(part, held))
    assert np.array_equal(log["trajectory"][-1], predict(model, held))


@pytest.mark.parametrize(
    ("every", "looks"), [(0, EPOCHS), (5, [5, 10, 12]), (4, [4, 8, 12]), (50, [12])]
)
def test_when(every: int, looks: list[int], tokenizer: Any, data: Encoded, held: Encoded) -> None:
    assert _fit(_model(tokenizer), data, Watch(held, every=every))["watched"] == looks


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("scores", "best"), [((1, 3, 2, 0), 6), ((3, 3, 3, 3), 3), ((0, 1, 2, 3), 12)]
)
def test_best_comes_back(
    scores: tuple[float, ...],
    best: int,
    dtype: str,
    tokenizer: Any,
    data: Encoded,
    held: Encoded,
    tmp_path: Path,
) -> None:
    """With and without a checkpoint folder; equal scores: the first."""
    for folder in (None, tmp_path):
        model = _model(tokenizer, dtype)
        watch = Watch(held, Scripted(*scores), keep="best")
        log = _fit(model, data, watch, checkpoint_dir=folder)
        assert log["best"] == best and log["scores"] == list(map(float, scores))
        now = predict(model, held)
        for step, then in zip(EPOCHS, log["trajectory"], strict=True):
            assert np.array_equal(now, then) == (step == best)
    assert [p.name for p in tmp_path.glob("[!.]*")] == [f"best-{best:08d}"]
    last = _model(tokenizer, dtype)
    log = _fit(last, data, Watch(held, Scripted(*scores)))
    assert log["best"] == best and np.array_equal(predict(last, held), log["trajectory"][-1])


class Killed(Exception):
    pass


@pytest.mark.parametrize("stop", (4, 6, 7, 11))
def test_resume_is_the_straight_run(
    stop: int, tokenizer: Any, data: Encoded, held: Encoded, tmp_path: Path
) -> None:
    """Killed before or after the best look; the score is a function of the answers alone."""

    def fit(model: nn.Module, **options: Any) -> dict[str, Any]:
        watch = Watch(held, lambda p: float(p[0, 0] * 1e3 % 1), every=1, keep="best")
        return _fit(model, data, watch, checkpoint_every=2, micro_batch_size=4, **options)

    straight, resumed = _model(tokenizer), _model(tokenizer)
    log = fit(straight)
    assert 2 < log["best"] < 11, log["scores"]

    def kill(step: int, _steps: int, _loss: float) -> None:
        if step == stop:
            raise Killed

    with pytest.raises(Killed):
        fit(_model(tokenizer), checkpoint_dir=tmp_path, progress=kill)
    done: list[int] = []
    again = fit(resumed, checkpoint_dir=tmp_path, progress=lambda s, _n, _l: done.append(s))
    assert done[0] == (stop - 1) // 2 * 2 + 1
    for name in ("watched", "scores", "best", "losses"):
        assert again[name] == log[name], name
    assert np.array_equal(again["trajectory"], log["trajectory"]) and _same(straight, resumed)
    kept = {p.name for p in tmp_path.glob("best-*")}
    assert f"best-{log['best']:08d}" in kept and len(kept) <= 3
    assert len(finished(tmp_path)) == 2


def test_a_damaged_checkpoint_finds_the_best_of_the_one_before(
    tokenizer: Any, data: Encoded, held: Encoded, tmp_path: Path
) -> None:
    """Both checkpoints that are kept refer to weights that are still there."""
    rising = Watch(held, Scripted(*range(12)), every=1, keep="best")
    model = _model(tokenizer)
    _fit(model, data, rising, checkpoint_every=2, checkpoint_dir=tmp_path)
    assert {p.name for p in tmp_path.glob("best-*")} == {f"best-{s:08d}" for s in (8, 10, 12)}
    (finished(tmp_path)[-1] / "state.json").write_text("{}")
    again = Watch(held, Scripted(8, 1, 2, 3), every=1, keep="best")
    resumed = _model(tokenizer)
    with pytest.warns(UserWarning, match="continuing from step-00000008"):
        log = _fit(resumed, data, again, checkpoint_every=2, checkpoint_dir=tmp_path)
    assert log["best"] == 9 and np.array_equal(log["trajectory"][8], predict(resumed, held))


def test_a_resumed_training_keeps_the_best_of_the_checkpoint_before(
    tokenizer: Any, data: Encoded, held: Encoded, tmp_path: Path
) -> None:
    """Killed after an evaluation of a resumed training: both checkpoints still have theirs."""

    def fit(*scores: int, until: int) -> None:
        def kill(step: int, _steps: int, _loss: float) -> None:
            if step == until:
                raise Killed

        rising = Watch(held, Scripted(*scores), every=1, keep="best")
        options = {"checkpoint_every": 2, "checkpoint_dir": tmp_path, "progress": kill}
        with pytest.raises(Killed):
            _fit(_model(tokenizer), data, rising, **options)

    fit(*range(12), until=5)
    fit(*range(4, 12), until=6)  # evaluated step 5, whose weights no checkpoint has
    assert {"best-00000002", "best-00000004"} <= {p.name for p in tmp_path.glob("best-*")}
    (finished(tmp_path)[-1] / "state.json").write_text("{}")
    with pytest.warns(UserWarning, match="continuing from step-00000002"):
        fit(*range(2, 12), until=3)


def test_what_a_checkpoint_refuses(
    tokenizer: Any, data: Encoded, held: Encoded, tmp_path: Path
) -> None:
    def fit(watch: Watch | None) -> None:
        _fit(_model(tokenizer), data, watch, checkpoint_every=5, checkpoint_dir=tmp_path)

    fit(Watch(held, Scripted(2, 3, 1, 0), keep="best"))
    for watch, part in (
        (None, "watch was {"),
        (Watch(held), "watch.keep was best, now it is last"),
        (Watch(data, Scripted(), keep="best"), "watch.data was"),
        (Watch(held, _first, keep="best"), "watch.score was .*Scripted, now it is .*_first"),
        (
            Watch(held, lambda p: -_first(p), keep="best"),
            "watch.score was .*Scripted, now .*<lambda> [0-9a-f]{12};",
        ),
    ):
        with pytest.raises(W2SError, match=part):
            fit(watch)
    for part in tmp_path.glob("best-*"):
        part.rename(tmp_path / f"moved-{part.name}")
    with pytest.warns(StoreWarning, match="best-00000006/model.safetensors: No such file"):
        fit(Watch(held, Scripted(2, 3, 1, 0), keep="best"))


def test_a_folder_has_one_training_at_a_time(
    tokenizer: Any, data: Encoded, held: Encoded, tmp_path: Path
) -> None:
    watch = Watch(held, Scripted(2, 3, 1, 0), keep="best")
    folder = tmp_path / "{checkpoints}"
    with owned(folder, SINGLE_PROCESS):
        found = {p: p.read_bytes() for p in folder.iterdir()}
        with pytest.raises(W2SError, match=r"is in use by the training of process \d+; give every"):
            _fit(_model(tokenizer), data, watch, checkpoint_dir=folder)
        assert found == {p: p.read_bytes() for p in folder.iterdir()}
    _fit(_model(tokenizer), data, watch, checkpoint_dir=folder)


def test_best_weights_that_changed_are_not_restored(
    tokenizer: Any, data: Encoded, held: Encoded, tmp_path: Path
) -> None:
    scores = [2.0, 3.0, 1.0, 0.0]

    def score(probs: np.ndarray) -> float:
        if scores[0] == 1:
            (path,) = tmp_path.glob("best-00000006/*.safetensors")
            changed = bytearray(path.read_bytes())
            changed[-1] ^= 1
            path.write_bytes(changed)
        return scores.pop(0)

    with pytest.raises(W2SError, match="the best weights, .*, changed after they were written"):
        _fit(_model(tokenizer), data, Watch(held, score, keep="best"), checkpoint_dir=tmp_path)


def test_how_scores_are_told_apart(held: Encoded) -> None:
    """By their names; what has none to tell is no error."""

    def names(*scores: Any) -> list[str | None]:
        found = [Watch(held, score).identity()["score"] for score in scores]
        assert found == json.loads(json.dumps(found))
        return found

    a, b = (lambda p: float(p.mean()) for _ in range(2))
    assert len(set(names(a, b))) == 1
    different = (
        _first, a, lambda p: float(p.max()), lambda p: float(p.mean() + 1), Power(1.0).score,
        partial(_share, power=1.0), partial(_share, power=2.0), partial(partial(_share, power=2.0)),
        Power(1.0), Power(2.0), Scripted(), np.mean, np.max, len, None,
    )  # fmt: skip
    assert len(set(names(*different))) == len(different) - 1  # partials of partials are flat
    rows = [partial(_share, power=1.0, rows=np.arange(n)) for n in (1, 2)]
    assert len(set(names(*rows, partial(_share, np.zeros(2))))) == 2  # arrays are not read
    assert names(Scripted(1), Scripted(2), partial(Scripted(3), 1))[0] == names(Scripted(3))[0]


def test_bad_watches(tokenizer: Any, data: Encoded, held: Encoded) -> None:
    for fields, says in (
        ({"keep": "bets"}, "keep is 'bets'; expected one of last, best; did you mean 'best'"),
        ({"every": -1}, "every is -1"),
        ({"keep": "best"}, "needs a score"),
    ):
        with pytest.raises(W2SError, match=says):
            Watch(held, **fields)  # type: ignore[arg-type]
    with pytest.raises(W2SError, match="score at step 6 is nan"):
        _fit(_model(tokenizer), data, Watch(held, Scripted(1, float("nan")), keep="best"))


def fit(job: dict[str, Any]) -> dict[str, Any]:
    tokenizer = agreement_tokenizer()
    data, held = _encoded(tokenizer, N, 0), _encoded(tokenizer, 7, 1)
    model = _model(tokenizer, job["dtype"])
    watch = Watch(held, Scripted(1, 3, 2, 0), keep=job["keep"]) if job["keep"] else None
    folder = Path(job["folder"]) / f"{job['zero_stage']}-{job['dtype']}-{job['keep']}"
    log = _fit(
        model, data, watch,
        checkpoint_dir=folder, zero_stage=job["zero_stage"], micro_batch_size=job["micro"],
        checkpoint_every=5,
    )  # fmt: skip
    flat = []
    for t in module_tensors(model).values():
        with gathered([t]):
            flat += t.detach().double().flatten().tolist()
    log |= {"weights": flat, "probs": predict(model, held).tolist()}
    log["trajectory"] = np.asarray(log.get("trajectory", 0)).tolist()
    return log


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.parametrize(("zero", "dtype"), [(0, "fp32"), (2, "fp32"), (3, "fp32"), (3, "bf16")])
def test_sharded(zero: int, dtype: str, tmp_path: Path) -> None:
    """Two processes: looks between the steps change no bit, and give what one process gives."""
    pytest.importorskip("deepspeed")
    job = {"zero_stage": zero, "micro": 2, "dtype": dtype, "folder": str(tmp_path)}
    out = tmp_path / "out.json"
    ranks.run(__file__, 2, {"jobs": [{**job, "keep": k} for k in (None, "last", "best")],
                            "out": str(out)})  # fmt: skip
    blind, last, best = json.loads(out.read_text())
    assert blind["losses"] == last["losses"] == best["losses"]
    assert blind["weights"] == last["weights"] and last["trajectory"] == best["trajectory"]
    assert best["best"] == 6
    assert best["probs"] == best["trajectory"][1] and last["probs"] == last["trajectory"][3]
    if dtype == "fp32":
        alone = fit(
            {**job, "zero_stage": 0, "micro": 4, "keep": "best", "folder": str(tmp_path / "1")}
        )
        for name in ("trajectory", "weights"):
            assert np.allclose(best[name], alone[name], atol=1e-4), name


def main(job: dict[str, Any]) -> None:
    world = init_distributed(60)
    found = [fit(one) for one in job["jobs"]]
    if world.is_main_process:
        Path(job["out"]).write_text(json.dumps(found))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
    exit_process(0)


def test_the_weights_of_two_checkpoints_are_kept(tmp_path: Path) -> None:
    monitor = object.__new__(Monitor)
    monitor._directory = tmp_path
    for name in ("best-00000001", "best-00000002", "best-00000004", "best-00000007", "best-of-all"):
        (tmp_path / name).mkdir()
    assert monitor._kept_until(4) == [2, 4]
