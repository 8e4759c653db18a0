"""A student is built in parts under ZeRO-3, and whole under every other stage. Real processes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers import ranks
from helpers.generation_cases import checkpoint

from w2s_fast.distributed.world import exit_process, init_distributed
from w2s_fast.models import ModelConfig, build_model
from w2s_fast.models.weights import is_partitioned
from w2s_fast.tasks.datasets.agreement import tokenizer as agreement_tokenizer
from w2s_fast.training import TrainConfig
from w2s_fast.training.deepspeed.partition import partitioned_init


@pytest.mark.slow
@pytest.mark.dist
def test_no_process_ever_holds_the_whole_backbone(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    source = checkpoint("llama", tmp_path / "llama", agreement_tokenizer())
    out = tmp_path / "out.json"
    ranks.run(__file__, 2, {"source": str(source), "stages": [0, 2, 3], "out": str(out)})
    assert json.loads(out.read_text()) == [0.0, 0.0, 1.0]


def partitioned_share(source: str, stage: int) -> float:
    """Return the share of the backbone's parameters that are partitioned once it is built."""
    cfg = TrainConfig(batch_size=2, zero_stage=stage)
    with partitioned_init(cfg, "fp32", "cpu"):
        model: Any = build_model(ModelConfig(source), 2, agreement_tokenizer(), 0)
    backbone = [p for name, p in model.named_parameters() if not name.startswith("head.")]
    partitioned = [is_partitioned(p) for p in backbone]
    return sum(partitioned) / len(partitioned)


def main(job: dict[str, Any]) -> None:
    world = init_distributed(60)
    shares = [partitioned_share(job["source"], stage) for stage in job["stages"]]
    if world.is_main_process:
        Path(job["out"]).write_text(json.dumps(shares))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
    exit_process(0)
