"""Damage to what a killed training leaves: the result is that of the straight run, or one line
says what is computed again. Never another result, never a traceback."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import ranks, sharded_training
from helpers.damage import damaged
from helpers.sharded_training import RECIPE
from helpers.training_rows import BASE, N, Rows, small_model
from torch import nn

from w2s_fast.losses import make_loss
from w2s_fast.models.weights import module_tensors
from w2s_fast.store import StoreWarning
from w2s_fast.tasks.datasets.agreement import tokenizer as agreement_tokenizer
from w2s_fast.training import Watch, encode, train
from w2s_fast.training.checkpoint import finished


class Killed(Exception):
    pass


def _kill(step: int, _steps: int, _loss: float) -> None:
    if step == 5:
        raise Killed


class Training:
    """Six steps with a checkpoint every two; the weights after the first two score best."""

    def __init__(self) -> None:
        self.tokenizer = agreement_tokenizer()
        words = ["the", "old", "key", "near", "a", "boy", "door", "cat", "dog", "red"]
        rng = np.random.default_rng(0)
        texts = tuple(" ".join(rng.choice(words, rng.integers(1, 9))) for _ in range(N))
        self.data = encode(self.tokenizer, Rows(tuple(map(str, range(N))), texts))
        self.soft = rng.dirichlet([1, 1], size=N)

    def run(self, **options: Any) -> tuple[dict[str, Any], nn.Module]:
        """Train a new model; return its log without the time, and the model."""
        model = small_model(self.tokenizer)
        watch = Watch(self.data, lambda p: float(p[0, 0] * 1e3 % 1), every=1, keep="best")
        cfg = replace(BASE, checkpoint_every=2, micro_batch_size=16)
        log = train(
            model, self.data, self.soft, make_loss("logconf"), cfg, 3, watch=watch, **options
        )
        return log, model

    def is_straight(self, log: dict[str, Any], model: nn.Module) -> bool:
        """Return whether log and weights equal those of the straight run, bit for bit."""
        want, straight = self.straight
        same = all(log[k] == want[k] for k in ("losses", "agreement", "watched", "scores", "best"))
        other = module_tensors(straight)
        return (
            same
            and np.array_equal(log["trajectory"], want["trajectory"])
            and all(torch.equal(t, other[name]) for name, t in module_tensors(model).items())
        )


@pytest.fixture(scope="module")
def training() -> Training:
    one = Training()
    one.straight = one.run()
    return one


@pytest.fixture
def killed(training: Training, tmp_path: Path) -> Path:
    with pytest.raises(Killed):
        training.run(checkpoint_dir=tmp_path / "killed", progress=_kill)
    assert len(finished(tmp_path / "killed")) == 2 and list(tmp_path.glob("killed/best-*"))
    return tmp_path / "killed"


def _damages(folder: Path) -> Iterator[tuple[Path, bytes]]:
    for seed, path in enumerate(sorted(p for p in folder.rglob("*") if p.is_file())):
        for content in damaged(path.read_bytes(), 4, seed):
            yield path.relative_to(folder), content


def test_every_file_of_a_killed_training(training: Training, killed: Path, tmp_path: Path) -> None:
    said = []
    for name, content in _damages(killed):
        folder = tmp_path / "resumed"
        shutil.copytree(killed, folder)
        (folder / name).write_bytes(content)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", StoreWarning)
            log, model = training.run(checkpoint_dir=folder)
        assert training.is_straight(log, model), name
        said.append([str(w.message) for w in caught if w.category is StoreWarning])
        assert len(said[-1]) <= 1 and "\n" not in "".join(said[-1]), name
        shutil.rmtree(folder)
    assert sum(map(bool, said)) > len(said) // 3  # the older checkpoint is not read otherwise


@pytest.mark.parametrize("name", ["state.json", "state-00000.safetensors"])
def test_both_checkpoints(name: str, training: Training, killed: Path) -> None:
    for folder in finished(killed):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(next(damaged(whole, 1)))
    with pytest.warns(StoreWarning, match="starting the training again"):
        log, model = training.run(checkpoint_dir=killed)
    assert training.is_straight(log, model)


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.parametrize("zero", [0, 3])
def test_two_processes_agree_on_what_is_damaged(zero: int, tmp_path: Path) -> None:
    """Each verifies its share; damage that one of them finds counts for both."""
    if zero:
        pytest.importorskip("deepspeed")
    found = []
    names = ["state.json", "state-00000.safetensors", "state-00001.safetensors"]
    cell = {**RECIPE, "zero_stage": zero}
    places = [{**cell, "directory": str(tmp_path / name)} for name in names]
    for jobs in ([cell, *({**p, "stop": 5} for p in places)], places):
        out = tmp_path / "out.json"
        ranks.run(sharded_training.__file__, 2, {"fits": jobs, "out": str(out)})
        found.append(json.loads(out.read_text()))
        for name in names if jobs is not places else []:
            newest = finished(tmp_path / name)[-1] / name
            newest.write_bytes(next(damaged(newest.read_bytes(), 1)))
    assert all(resumed == found[0][0] for resumed in found[1])
