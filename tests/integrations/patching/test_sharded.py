"""Patched models, and a head with its loss, over two processes: gradients of the unpatched one."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import ranks
from helpers.lm_students import Student
from helpers.patched import assert_same, expected
from helpers.tiny_lms import batch, tiny_lm
from safetensors.torch import load_file, save_file
from torch import Tensor

import w2s_fast
from w2s_fast.distributed.world import World, exit_process, init_distributed
from w2s_fast.errors import W2SError

# DDP; FSDP2 with every layer and the head a group, tied with the rest in the root's; a LoRA head;
# log-probabilities instead of a loss.
CASES = (
    "ddp",
    "ddp_tied",
    "fsdp",
    "fsdp_tied",
    "fsdp_layers",
    "fsdp_meta",
    "fsdp_first",
    "fsdp_lora",
    "fsdp_logprob",
    "fsdp_loss",
    "fsdp_loss_group",
)
ZERO = ("plain-2", "plain-3", "tied-3", "logprob-3", "partitioned-3")  # and the stage
ITEMS = 20  # what Trainer would count over both processes


def model(case: str, dtype: torch.dtype = torch.float32) -> Any:
    lm = tiny_lm(dtype=dtype, tie_word_embeddings=case.endswith("tied"), num_hidden_layers=1)
    if case.endswith("lora"):
        from peft import LoraConfig, get_peft_model

        lora = LoraConfig(r=2, target_modules=["q_proj", "lm_head"], init_lora_weights=False)
        return get_peft_model(lm, lora).to(dtype)
    return lm


def part(rank: int) -> dict[str, Tensor]:
    """Rank 1 has no labelled position."""
    inputs = batch(rank)
    if rank == 1:
        inputs["labels"][:] = -100
    return inputs


def whole(case: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """One process, unpatched, the parts of both ranks."""
    lm = model(case, dtype)
    loss: Any = 0
    for rank in range(2):
        if case.endswith("logprob"):
            loss = loss - expected(lm, part(rank)).sum()
        elif case.startswith("fsdp_loss"):
            inputs = part(rank)
            loss = loss + Student(lm, fused=False)(inputs["input_ids"], inputs["labels"], 0.0)
        else:
            loss = loss + lm(**part(rank), num_items_in_batch=ITEMS).loss
    loss.backward()
    grads = {n: p.grad for n, p in lm.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **grads}


def sharded(case: str, world: World) -> dict[str, Tensor]:
    from torch.distributed.fsdp import fully_shard

    with torch.device("meta" if case == "fsdp_meta" else "cpu"):
        lm = model(case)
    inputs = part(world.rank)
    if case.startswith("fsdp_loss"):
        student = Student(lm, fused=True)
        if case.endswith("group"):
            fully_shard([lm.lm_head, student.loss])
        loss = fully_shard(student)(inputs["input_ids"], inputs["labels"], 0.0)
    else:
        if case == "fsdp_first":
            fully_shard(lm)
        w2s_fast.patch(lm)
        if case == "fsdp_layers":
            for module in (*lm.model.layers, lm.lm_head):
                fully_shard(module)
        run = lm if case == "fsdp_first" else wrapped(case, lm)
        if case == "fsdp_meta":
            filled(lm)
        loss = loss_of(case, run, inputs)
        assert lm_of(lm)._w2s_fast.compared
    (loss * world.size).backward()
    found = {"loss": world.sum(loss.detach()), **full_grads(lm)}
    if case == "fsdp_layers":
        past_the_model(lm)
    return found


def loss_of(case: str, run: Any, inputs: dict[str, Tensor]) -> Tensor:
    if case.endswith("logprob"):
        return -run(**inputs, return_logprob=True).sum()
    return run(**inputs, num_items_in_batch=ITEMS).loss


def wrapped(case: str, lm: Any) -> Any:
    from torch.distributed.fsdp import fully_shard
    from torch.nn.parallel import DistributedDataParallel

    return DistributedDataParallel(lm) if case.startswith("ddp") else fully_shard(lm)


def filled(lm: Any) -> None:
    """Give a sharded model on the meta device the weights of ``model``."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    assert not lm._w2s_fast.compared
    ready = model("fsdp")
    lm.to_empty(device="cpu")
    set_model_state_dict(lm, ready.state_dict(), options=StateDictOptions(full_state_dict=True))
    lm.model.rotary_emb = ready.model.rotary_emb


def lm_of(lm: Any) -> Any:
    return lm.get_base_model() if hasattr(lm, "get_base_model") else lm


def full_grads(lm: Any) -> dict[str, Tensor]:
    grads = {n: p.grad for n, p in lm.named_parameters() if p.grad is not None}
    return {n: g.full_tensor() if hasattr(g, "full_tensor") else g for n, g in grads.items()}


def past_the_model(lm: Any) -> None:
    """A head that is read while its parts are apart says so."""
    loss = w2s_fast.LMHeadLoss(lm.lm_head)
    with pytest.raises(W2SError, match="the head is sharded, this process holds .* as DTensor"):
        loss(torch.zeros(2, 16), torch.zeros(2, dtype=torch.long))


def zero_config(stage: str) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": 3,
        "optimizer": {"type": "AdamW", "params": {"lr": 0.0, "torch_adam": True}},
        "zero_optimization": {"stage": int(stage), "stage3_param_persistence_threshold": 0},
        "zero_allow_untested_optimizer": True,
    }


def zero(case: str, stage: str) -> dict[str, Tensor]:
    from deepspeed.utils import safe_get_full_grad

    from w2s_fast.training.deepspeed.setup import init_deepspeed

    deepspeed = init_deepspeed(60)
    world = init_distributed(60)
    lm = model(case)
    if case == "partitioned":
        deepspeed.zero.Init(module=lm, config_dict_or_path=zero_config(stage))
    w2s_fast.patch(lm)
    assert lm._w2s_fast.compared == (case != "partitioned")
    engine, *_ = deepspeed.initialize(
        model=lm,
        model_parameters=list(lm.parameters()),
        config=zero_config(stage),
    )
    loss = loss_of(case, engine, part(world.rank))
    engine.backward(loss * world.size)
    found = {n: safe_get_full_grad(p).detach().clone() for n, p in lm.named_parameters()}
    return {"loss": world.sum(loss.detach()), **found}


def assert_all(folder: Path, cases: tuple[str, ...]) -> None:
    for case in cases:
        kind = case.partition("-")[0]
        truth, baseline = (whole(kind, d) for d in (torch.float64, torch.float32))
        assert_same(load_file(folder / f"{case}.safetensors"), truth, baseline)


@pytest.mark.dist
def test_ddp_and_fsdp(tmp_path: Path) -> None:
    ranks.run(__file__, 2, {"folder": str(tmp_path), "zero": False})
    assert_all(tmp_path, CASES)


@pytest.mark.slow
@pytest.mark.dist
def test_zero(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    ranks.run(__file__, 2, {"folder": str(tmp_path), "zero": True})
    assert_all(tmp_path, ZERO)


def main(job: dict[str, Any]) -> None:
    world = init_distributed(60)
    if job["zero"]:
        found = {case: zero(*case.split("-")) for case in ZERO}
    else:
        found = {case: sharded(case, world) for case in CASES}
    for name, tensors in found.items():
        if world.is_main_process:
            tensors = {n: t.contiguous().clone() for n, t in tensors.items()}
            save_file(tensors, Path(job["folder"]) / f"{name}.safetensors")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
    exit_process(0)
