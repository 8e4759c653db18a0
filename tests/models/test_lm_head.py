"""The fused head as a module, alone and under ZeRO: gradients of the unfused single process."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import ranks
from helpers.lm_students import B, D, Student, V, batch, causal_lm, unfused
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from w2s_fast.distributed.world import World, exit_process, init_distributed
from w2s_fast.errors import W2SError
from w2s_fast.models.lm_head import LMHeadLoss
from w2s_fast.testing import BACKWARD, assert_within_budget

pytest.importorskip("deepspeed")
CASES = ("untied", "tied", "frozen_head", "frozen_body", "lora", "bias")


def sharded(case: str, stage: int, world: World) -> dict[str, Tensor]:
    """The same, fused, under ZeRO, two micro-batches accumulated."""
    from deepspeed.utils import safe_get_full_grad

    from w2s_fast.training.deepspeed.setup import init_deepspeed

    deepspeed = init_deepspeed(60)
    model = Student(causal_lm(case), fused=True)
    engine, *_ = deepspeed.initialize(
        model=model,
        model_parameters=[p for p in model.parameters() if p.requires_grad],
        config={
            "train_micro_batch_size_per_gpu": B,
            "gradient_accumulation_steps": 2,
            "optimizer": {"type": "AdamW", "params": {"lr": 0.0, "torch_adam": True}},
            "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
            "zero_allow_untested_optimizer": True,
        },
    )
    for micro in range(2):
        engine.set_gradient_accumulation_boundary(micro == 1)
        loss = engine(*batch(micro, world.rank), 0.5)
        engine.backward(loss * world.size, scale_wrt_gas=False)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    found = {n: safe_get_full_grad(p).detach().clone() for n, p in trained.items()}
    engine.step()
    return found


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.parametrize("size", [1, 2])
def test_gradients_under_zero(size: int, tmp_path: Path) -> None:
    ranks.run(__file__, size, {"folder": str(tmp_path)})
    for case in CASES:
        truth, baseline = (unfused(case, size, d) for d in (torch.float64, torch.float32))
        for stage in (1, 2, 3):
            got = load_file(tmp_path / f"{case}-{stage}.safetensors")
            assert got.keys() == truth.keys(), (case, stage)
            for name, grad in got.items():
                assert_within_budget(
                    grad, truth[name], baseline[name], BACKWARD, f"{case} {stage} {name}"
                )


@pytest.mark.parametrize("case", CASES)
def test_alone(case: str) -> None:
    lm = causal_lm(case)
    fused, plain = Student(lm, True), Student(causal_lm(case), False)
    assert fused.loss is not None and fused.loss.weight is lm.lm_head.weight  # type: ignore
    for model in (fused, plain):
        model(*batch(1, 0), 0.5).backward()
    for (name, a), (_, b) in zip(
        fused.lm.named_parameters(), plain.lm.named_parameters(), strict=True
    ):
        assert (a.grad is None) == (b.grad is None), name
        if a.grad is not None:
            assert torch.allclose(a.grad, b.grad, atol=1e-4, rtol=1e-4), name


def test_no_labelled_row_gives_zero_gradients() -> None:
    model = Student(causal_lm("untied"), True)
    ids, weak = batch(0, 1)
    loss = model(ids, weak, 0.5)
    loss.backward()
    assert float(loss.detach()) == 0
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_not_a_head() -> None:
    with pytest.raises(W2SError, match=r"Dropout without a weight \(V, D\)"):
        LMHeadLoss(nn.Dropout())
    with pytest.raises(W2SError, match="LayerNorm without"):
        LMHeadLoss(nn.LayerNorm(3))
    assert "classes=101, hidden=12" in repr(LMHeadLoss(nn.Linear(D, V)))


def main(job: dict[str, Any]) -> None:
    world = init_distributed(60)
    for case in CASES:
        for stage in (1, 2, 3):
            found = sharded(case, stage, world)
            if world.is_main_process:
                save_file(found, Path(job["folder"]) / f"{case}-{stage}.safetensors")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
    exit_process(0)
