"""``w2s-fast plan``: counts of real models, DeepSpeed's estimate, and the printed tables."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from w2s_fast.cli.estimate import estimate_step, memory_by_part, traffic_by_exchange
from w2s_fast.cli.main import main
from w2s_fast.config import RunConfig
from w2s_fast.distributed.world import SINGLE_PROCESS
from w2s_fast.errors import W2SError
from w2s_fast.models import ModelConfig, build_model
from w2s_fast.models.param_count import Counts, count
from w2s_fast.training import TrainConfig
from w2s_fast.training.deepspeed.setup import load_deepspeed
from w2s_fast.training.optim import MasterAdamW

pytest.importorskip("deepspeed")
C = Counts(70_000_000, 70_000_000, 4_000_000, 10_000, 60_000_000, 0, 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import LlamaConfig, LlamaModel

    path = tmp_path_factory.mktemp("model")
    config = LlamaConfig(
        vocab_size=500, hidden_size=32, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=64,
    )  # fmt: skip
    LlamaModel(config).save_pretrained(path)
    return path


class Tokens:
    def __len__(self) -> int:
        return 500


def test_counts_are_those_of_the_model(folder: Path) -> None:
    model = build_model(ModelConfig(str(folder), pretrained=False), 2, Tokens(), 0)
    got = count(ModelConfig(str(folder)), 4, 16, checkpointing=False)
    assert got.parameters == got.trained == sum(p.numel() for p in model.parameters())
    assert got.largest == 500 * 32
    # What autograd keeps of the real model, storages that are not weights.
    saved: dict[int, Any] = {}
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def keep(t: torch.Tensor) -> torch.Tensor:
        s = t.untyped_storage()
        if s.data_ptr() not in own:
            saved[s.data_ptr()] = s
        return t

    base: Any = model.base
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        base(input_ids=torch.zeros((4, 16), dtype=torch.int64))
    real = sum(s.nbytes() for s in saved.values())
    assert real <= got.activations <= 1.1 * real  # the plan has a mask that eager leaves out
    less = count(ModelConfig(str(folder)), 4, 16, checkpointing=True)
    assert less.activations < 0.6 * got.activations
    low = ModelConfig(str(folder), lora_rank=2)
    lora, adapted = count(low, 4, 16, checkpointing=False), build_model(low, 2, Tokens(), 0)
    assert lora.trained == sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert lora.parameters == sum(p.numel() for p in adapted.parameters())


@pytest.mark.parametrize("stage", [2, 3])
def test_model_states_as_deepspeed_estimates_them(stage: int) -> None:
    """DeepSpeed estimates 18 bytes per parameter: ours, and 2 for 16-bit gradients at stage 2."""
    load_deepspeed()
    from deepspeed.runtime.zero import stage3, stage_1_and_2

    n = 8
    ours, _ = memory_by_part(C, TrainConfig(zero_stage=stage), "bf16", n)
    states = ours["weights"] + ours["gradients"] + ours["optimizer"]
    if stage == 2:
        theirs = stage_1_and_2.estimate_zero2_model_states_mem_needs(
            C.parameters, n, 1, cpu_offload=False
        )[1]
        assert states == theirs - 2 * C.parameters // n
    else:
        theirs = stage3.estimate_zero3_model_states_mem_needs(
            C.parameters, C.largest, n, 1, cpu_offload=False, cpu_offload_params=False
        )[1]
        assert states == pytest.approx(theirs - 4 * C.largest, rel=0.01)


def test_offload_moves_and_stages_shard() -> None:
    whole = memory_by_part(C, TrainConfig(), "fp32", 8)[0]
    assert whole["weights"] == 280_000_000 and whole["optimizer"] == 560_000_000
    device, host = memory_by_part(C, TrainConfig(zero_stage=3, offload_optimizer="cpu"), "bf16", 8)
    assert "optimizer" not in device and host == {"optimizer": 12 * 70_000_000 // 8}
    assert traffic_by_exchange(C, TrainConfig(), "bf16", 1, 1) == {"sum gradients": 0}
    z3 = traffic_by_exchange(C, TrainConfig(zero_stage=3), "bf16", 4, 2)
    assert z3 == {"gather weights": 420_000_000, "scatter gradients": 210_000_000}


def test_average_of_weights_is_sharded_without_zero_too() -> None:
    for stage in (0, 3):
        train = TrainConfig(zero_stage=stage, average_frac=0.1)
        averaged, plain = (
            memory_by_part(C, t, "bf16", 8)[0] for t in (train, replace(train, average_frac=0.0))
        )
        assert averaged == plain | {"average of weights": 4 * 70_000_000 // 8}
        for fields, copies in (({"ema_decay": 0.9}, 1), ({"interpolation": 0.5}, 2)):
            other = replace(train, average_frac=0.0, **fields)
            memory = memory_by_part(C, other, "bf16", 8)[0]
            assert memory == plain | {"average of weights": copies * 4 * 70_000_000 // 8}


def test_states_without_zero_are_those_of_the_optimizer() -> None:
    """Weights in bf16; master weights, both moments and the sum of the gradients in fp32."""
    model = torch.nn.Linear(64, 32, bias=False, dtype=torch.bfloat16)
    optimizer = MasterAdamW(model, TrainConfig(), SINGLE_PROCESS)
    model(torch.ones(2, 64, dtype=torch.bfloat16)).sum().backward()
    optimizer.accumulate()
    gradients = sum(m.grad.nbytes for m in optimizer.masters.values() if m.grad is not None)
    optimizer.step(0.1)
    states = sum(t.nbytes for t in optimizer.tensors().values() if t.ndim)
    counts = Counts(64 * 32, 64 * 32, 64 * 32, 0, 64 * 32, 0, 0)
    planned, _ = memory_by_part(counts, TrainConfig(), "bf16", 1)
    assert planned["weights"] == model.weight.nbytes
    assert (planned["gradients"], planned["optimizer"]) == (gradients, states)


M = 1_000_000
PARTS: list[tuple[int, str, dict[str, int]]] = [
    (0, "fp32", {"weights": 1600 * M, "gradients": 400 * M, "optimizer": 800 * M}),
    (0, "bf16", {"weights": 800 * M, "gradients": 400 * M, "optimizer": 1200 * M,
                 "16-bit gradients, beyond activations": 199 * M}),
    (1, "bf16", {"weights": 800 * M, "gradients": 400 * M, "gradient bucket": 100 * M,
                 "optimizer": 300 * M, "step, beyond those two": 99 * M}),
    (2, "bf16", {"weights": 800 * M, "gradients": 100 * M, "gradient bucket": 100 * M,
                 "optimizer": 300 * M, "step, beyond those two": 99 * M}),
    (3, "bf16", {"weights": 200 * M + 2000, "gradients": 100 * M, "gradient bucket": 100 * M,
                 "optimizer": 300 * M, "weights in use": 900 * M}),
]  # fmt: skip


@pytest.mark.parametrize(("stage", "dtype", "parts"), PARTS)
def test_every_part_by_hand(stage: int, dtype: str, parts: dict[str, int]) -> None:
    """400 M parameters, 100 M of them trained, on 4 devices. At ZeRO-3 everything is in use at
    once, and what is fetched comes on top: (400 M + 50 M) x 2 bytes, more than the step takes."""
    c = Counts(400 * M, 100 * M, 4 * M, 1000, 300 * M, activations=M // 2, transient=M // 4)
    assert memory_by_part(c, TrainConfig(zero_stage=stage), dtype, 4)[0] == parts | {
        "activations": M
    }
    assert (
        traffic_by_exchange(c, TrainConfig(zero_stage=stage), dtype, 4, 3)
        == {
            0: {"sum gradients": 600 * M},
            1: {"scatter gradients": 150 * M, "gather weights": 150 * M},
            2: {"scatter gradients": 450 * M, "gather weights": 150 * M},
            3: {"scatter gradients": 450 * M, "gather weights": 3600 * M},
        }[stage]
    )


def test_time_and_table(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cfg = replace(RunConfig(), student=ModelConfig(str(folder)))
    p = estimate_step(cfg, 2, 16, tflops=1e-3, gbytes=1e-3)
    rows = cfg.student_train.batch_size // 2
    assert p.operations == 6 * p.counts.matrix * rows * 16
    assert p.step_s == pytest.approx(p.operations / 1e9 + sum(p.sent.values()) / 1e6)
    args = ["plan", "--gpus", "2x1", "--model", str(folder), "--zero", "3", "--tokens", "16"]
    assert main(args) == 0
    shown = capsys.readouterr().out
    assert "zero_stage=3, 2 devices" in shown and "give --tflops and --gbytes" in shown
    for bad, message in (
        (["--gpus", "8by4"], "--gpus is '8by4'"),
        (["--gpus", "2", "--tokens", "-1"], "--tokens is '-1'; expected a whole number above 0"),
        (["--gpus", "2", "--tokens", "inf"], "--tokens is 'inf'; expected a whole number above 0"),
        (["--gpus", "2", "--tokens", "0.5"], "--tokens is '0.5'; expected a whole number above 0"),
        (["--gpus", "2", "--tflops", "inf"], "--tflops is 'inf'; expected a number above 0"),
        (["--gpus", "5", "--model", str(folder)], "does not split over 5"),
    ):
        assert main(["plan", *bad]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(W2SError, match="has to be pretrained first"):
        estimate_step(RunConfig(), 2, 16)


@pytest.mark.parametrize("source", ["bow", "scratch", "/nowhere"])
def test_a_student_without_a_checkpoint_has_no_plan(
    source: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Runs build "bow" and "scratch" from their texts, which a plan does not read."""
    assert main(["plan", "--gpus", "4", "--model", source]) == 2
    error = capsys.readouterr().err
    assert f"student {source!r} has no config.json; give the folder of a checkpoint" in error
    assert "did you mean" not in error


@pytest.mark.parametrize(
    ("config", "message"),
    [(None, "has no config.json; give the folder"), ("{", "config.json cannot be read")],
    ids=["none", "damaged"],
)
def test_a_folder_without_a_configuration_is_one_line(
    config: str | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    assert main(["plan", "--gpus", "4", "--model", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err
