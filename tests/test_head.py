"""The fused head as a module, alone and under ZeRO: gradients of the unfused single process."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import ranks
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import w2s_fast
from w2s_fast.distributed.world import World, exit_process, init_distributed
from w2s_fast.errors import W2SError
from w2s_fast.models.lm_head import LMHeadLoss
from w2s_fast.testing import BACKWARD, assert_within_budget

pytest.importorskip("deepspeed")
B, T, V, D = 4, 7, 101, 12  # V and D: no size that a number of ranks divides
CASES = ("untied", "tied", "frozen_head", "frozen_body", "lora", "bias")


def causal_lm(case: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=V, hidden_size=D, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, intermediate_size=20, tie_word_embeddings=case == "tied",
        initializer_range=0.3,
    )  # fmt: skip
    lm = LlamaForCausalLM(config).to(dtype)
    if case == "bias":
        lm.lm_head.bias = nn.Parameter(torch.linspace(-1, 1, V, dtype=dtype))
    if case == "frozen_head":
        lm.lm_head.requires_grad_(False)
    if case == "frozen_body":
        lm.model.requires_grad_(False)
    if case == "lora":
        from peft import LoraConfig, get_peft_model

        lm.requires_grad_(False)
        lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        lm.model = get_peft_model(lm.model, lora)
        lm.to(dtype)
    return lm


class Student(nn.Module):
    """A causal LM whose forward gives the loss, with the fused head or from logits in full."""

    def __init__(self, lm: nn.Module, fused: bool) -> None:
        super().__init__()
        self.lm: Any = lm
        self.loss = LMHeadLoss(lm.lm_head, memory_mib=0.003) if fused else None  # type: ignore

    def forward(self, ids: Tensor, weak: Tensor, aux: float) -> Tensor:
        hidden = self.lm.model(input_ids=ids).last_hidden_state
        options: dict[str, Any] = {"aux": aux, "threshold": "median", "reduction": "sum"}
        if self.loss is not None:
            return self.loss(hidden[:, :-1], weak[:, 1:], **options)
        logits = self.lm.lm_head(hidden[:, :-1]).flatten(0, 1)
        return w2s_fast.cross_entropy(logits, weak[:, 1:].flatten(), **options)


def batch(micro: int, rank: int) -> tuple[Tensor, Tensor]:
    """Ids and weak labels; rank 1 has no labelled position in its first micro-batch."""
    g = torch.Generator().manual_seed(10 * micro + rank)
    ids = torch.randint(V, (B, T), generator=g)
    weak = torch.where(torch.rand(B, T, generator=g) < 0.6, ids.roll(1, 0), -100)
    return ids, torch.full_like(weak, -100) if (micro, rank) == (0, 1) else weak


def unfused(case: str, size: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Gradients of one process: every micro-batch of every rank, from logits in full."""
    model = Student(causal_lm(case, dtype), fused=False)
    for micro in range(2):
        for rank in range(size):
            model(*batch(micro, rank), 0.5).backward()
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


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
