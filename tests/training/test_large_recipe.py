"""The recipe for large students, bf16 under ZeRO-3, on every kind of task. Real processes, gloo."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import ranks
from helpers.generation_cases import checkpoint, texts

from w2s_fast.distributed.world import exit_process, init_distributed
from w2s_fast.losses import make_loss
from w2s_fast.models import ModelConfig, build_model
from w2s_fast.tasks.datasets.agreement import tokenizer as agreement_tokenizer
from w2s_fast.training import TrainConfig, encode, encode_completions, train
from w2s_fast.training.deepspeed.partition import partitioned_init

N = 16
KINDS = ("classification", "preference", "generation")


@dataclass(frozen=True)
class Rows:
    ids: tuple[str, ...]
    texts: tuple[str, ...]
    pairs: tuple[str, ...] | None = None


def _data(kind: str, tokenizer: Any) -> tuple[Any, np.ndarray]:
    prompts, answers = texts(N)
    if kind == "generation":
        data = encode_completions(tokenizer, prompts, answers)
        return data, data.labels
    pairs = tuple(reversed(prompts)) if kind == "preference" else None
    rows = Rows(tuple(map(str, range(N))), tuple(prompts), pairs)
    labels = np.random.default_rng(0).dirichlet([1, 1], size=N).astype(np.float32)
    return encode(tokenizer, rows, kind=kind), labels


def losses_of(source: str, kind: str, stage: int, fields: dict[str, Any]) -> list[float]:
    """Build and train a student as the pipeline does; return the loss of every step."""
    cfg = TrainConfig(epochs=2, batch_size=8, micro_batch_size=2, lr=1e-3, zero_stage=stage)
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
    jobs = [(kind, stage, fields) for kind, fields in cells for stage in (2, 3)]
    out = tmp_path / "out.json"
    ranks.run(__file__, 2, {"source": str(source), "jobs": jobs, "out": str(out)})
    curves = [np.array(curve) for curve in json.loads(out.read_text())]
    for (kind, fields), two, three in zip(cells, curves[::2], curves[1::2], strict=True):
        assert np.isfinite(two).all() and two[0] > 0, (kind, fields)
        assert np.abs(two - three).max() <= 0.02 * two.max(), (kind, fields)


def main(job: dict[str, Any]) -> None:
    world = init_distributed(60)
    curves = [losses_of(job["source"], *cell) for cell in job["jobs"]]
    if world.is_main_process:
        Path(job["out"]).write_text(json.dumps(curves))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
    exit_process(0)
