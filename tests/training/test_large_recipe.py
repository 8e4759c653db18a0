"""The recipe for large students, bf16 under ZeRO-3, on every kind of task. Real processes, gloo."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import quick_build, ranks
from helpers.generation_cases import checkpoint, texts

from w2s_fast.distributed.world import exit_process, init_distributed
from w2s_fast.losses import make_loss
from w2s_fast.models import ModelConfig, build_model
from w2s_fast.tasks.datasets.agreement import tokenizer as agreement_tokenizer
from w2s_fast.training import TrainConfig, encode, encode_completions, train
from w2s_fast.training.deepspeed.partition import partitioned_init
from w2s_fast.training.deepspeed.setup import check_offload, load_deepspeed

N = 16
KINDS = ("classification", "preference", "generation")


@dataclass(frozen=True)
class Rows:
    ids: tuple[str, ...]
    texts: tuple[str, ...]
    pairs: tuple[str, ...] | None = None


@pytest.fixture(autouse=True)
def build_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in quick_build.environment().items():
        monkeypatch.setenv(name, value)


def _data(kind: str, tokenizer: Any) -> tuple[Any, np.ndarray]:
    prompts, answers = texts(N)
    if kind == "generation":
        data = encode_completions(tokenizer, prompts, answers)
        return data, data.labels
    pairs = tuple(reversed(prompts)) if kind == "preference" else None
    rows = Rows(tuple(map(str, range(N))), tuple(prompts), pairs)
    labels = np.random.default_rng(0).dirichlet([1, 1], size=N).astype(np.float32)
    return encode(tokenizer, rows, kind=kind), labels


def losses_of(
    source: str, kind: str, sharding: dict[str, Any], fields: dict[str, Any]
) -> list[float]:
    """Build and train a student as the pipeline does; return the loss of every step."""
    cfg = TrainConfig(epochs=2, batch_size=8, micro_batch_size=2, lr=1e-3, **sharding)
    tokenizer = agreement_tokenizer()
    model_cfg = ModelConfig(source, dtype="bf16", **fields)
    with partitioned_init(cfg, "bf16", "cpu"):
        model = build_model(model_cfg, 2, tokenizer, 0, kind)
    data, weak_labels = _data(kind, tokenizer)
    return train(model, data, weak_labels, make_loss("xent"), cfg, 0)["losses"]


@pytest.mark.slow
@pytest.mark.dist
def test_zero_3_trains_what_zero_2_trains(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    source = checkpoint("llama", tmp_path / "llama", agreement_tokenizer())
    cells = [(kind, {}) for kind in KINDS] + [("classification", {"lora_rank": 2})]
    jobs = [(kind, {"zero_stage": z}, fields) for kind, fields in cells for z in (2, 3)]
    curves = _curves(source, jobs, tmp_path)
    for (kind, fields), two, three in zip(cells, curves[::2], curves[1::2], strict=True):
        _close(two, three, (kind, fields))


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.timeout(900)  # the first time, DeepSpeed's parts are compiled
@pytest.mark.parametrize("place", ["cpu", "nvme"])
def test_offload_trains_the_same(place: str, tmp_path: Path) -> None:
    """Weights and optimizer state outside of the device; for every kind of task in long runs."""
    pytest.importorskip("deepspeed")
    offload = {"zero_stage": 3, "offload_optimizer": place, "offload_params": place}
    if place == "nvme":
        offload["nvme_path"] = str(tmp_path / "disk")
    if lacking := _lacking(place):
        pytest.skip(f"offload to {place} needs {lacking}")
    check_offload(TrainConfig(**offload))
    source = checkpoint("llama", tmp_path / "llama", agreement_tokenizer())
    kinds = KINDS if ranks.LONG else KINDS[:1]
    jobs = [(kind, sharding, {}) for kind in kinds for sharding in ({"zero_stage": 2}, offload)]
    curves = _curves(source, jobs, tmp_path)
    for kind, whole, offloaded in zip(kinds, curves[::2], curves[1::2], strict=True):
        _close(whole, offloaded, kind)


def _lacking(place: str) -> str:
    """Return what this machine lacks to compile the offload, "" if nothing."""
    tools = ", ".join(name for name in ("ninja", "c++") if shutil.which(name) is None)
    if tools or place == "cpu":
        return tools
    load_deepspeed()
    from deepspeed.ops.op_builder import AsyncIOBuilder

    return "" if AsyncIOBuilder().is_compatible(verbose=False) else "libaio"


def _curves(source: Path, jobs: list[Any], folder: Path) -> list[np.ndarray]:
    """Return the loss curve of each job, trained by two processes."""
    out = folder / "out.json"
    ranks.run(__file__, 2, {"source": str(source), "jobs": jobs, "out": str(out)})
    return [np.array(curve) for curve in json.loads(out.read_text())]


def _close(expected: np.ndarray, curve: np.ndarray, cell: Any) -> None:
    """Compare two curves of a bf16 training: a few times its rounding apart."""
    assert np.isfinite(expected).all() and expected[0] > 0, cell
    assert np.abs(expected - curve).max() <= 0.02 * expected.max(), cell


def main(job: dict[str, Any]) -> None:
    world = init_distributed(60)
    curves = [losses_of(job["source"], *cell) for cell in job["jobs"]]
    if world.is_main_process:
        Path(job["out"]).write_text(json.dumps(curves))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
    exit_process(0)
