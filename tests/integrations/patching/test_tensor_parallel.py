"""Patched models that transformers has sharded with ``tp_plan``: the loss of the whole model."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import ranks
from helpers.tiny_lms import B, T, V, batch, tiny_lm
from torch import Tensor

import w2s_fast
from w2s_fast.distributed.world import exit_process, init_distributed
from w2s_fast.errors import W2SError
from w2s_fast.integrations.patching.logit_transform import LogitTransform
from w2s_fast.ops.lazy_logits import Projected

# Soft-cap, factors and a head with a bias; 67 classes divide by no number of ranks.
MODELS = ("llama", "gemma2", "granite", "phi")
LOSSES = ("xent", "logconf", "window:radius=0.1", "focal", "smoothing")
# Large weights: the top probabilities of some rows are above one half, as ``window`` asks.
SIZES = {"num_attention_heads": 4, "num_key_value_heads": 4, "initializer_range": 0.8}


@pytest.mark.dist
@pytest.mark.slow
def test_loss_and_gradients_are_those_of_the_whole_model(tmp_path: Path) -> None:
    ranks.run(__file__, 2, str(tmp_path))


def columns(kind: str) -> dict[str, Tensor]:
    """Weak columns of a batch: class ids, the top three, or all probabilities."""
    g = torch.Generator().manual_seed(1)
    probs = torch.randn(B, T, V, generator=g).mul(2).softmax(-1)
    weight = torch.rand(B, T, generator=g)
    if kind == "hard":
        return {"weak_labels": probs.argmax(-1), "weak_weight": weight}
    if kind == "dense":
        return {"weak_labels": probs, "weak_weight": weight}
    top, ids = probs.topk(3, -1)
    return {"weak_ids": ids, "weak_probs": top, "weak_rest": 1 - top.sum(-1)}


def sharded(folder: str) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, tp_plan="auto").train()


def saved(name: str, folder: Path) -> Any:
    """Return the whole model, which rank 0 has saved for all."""
    import torch.distributed as dist

    lm = tiny_lm(name, **SIZES)
    if dist.get_rank() == 0:
        lm.save_pretrained(folder / name)
    dist.barrier()
    return lm


def gradients(lm: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    lm.zero_grad()
    loss = lm(**inputs, weak_frac=torch.tensor(0.5)).loss
    loss.backward()
    grads = {n: p.grad for n, p in lm.named_parameters() if p.grad is not None}
    whole = {n: g.full_tensor() if hasattr(g, "full_tensor") else g for n, g in grads.items()}
    return loss.detach(), whole


def assert_same(found: tuple[Any, Any], expected: tuple[Any, Any], what: object) -> None:
    torch.testing.assert_close(found[0], expected[0], msg=lambda m: f"{what}: {m}")
    assert found[1].keys() == expected[1].keys()
    for name, grad in expected[1].items():
        size = float(grad.abs().max()) + 1e-6
        worst = float((found[1][name] - grad).abs().max())
        assert worst < 2e-5 * size + 1e-7, (what, name, worst, size)


def check_model(name: str, folder: Path) -> None:
    """Plain labels with the loss of the model itself, and logits once it is unpatched."""
    whole, lm, inputs = saved(name, folder), sharded(str(folder / name)), batch()
    w2s_fast.patch(whole)
    before = lm.lm_head.forward
    with torch.no_grad():
        logits = lm(inputs["input_ids"]).logits
    w2s_fast.patch(lm)
    assert_same(gradients(lm, inputs), gradients(whole, inputs), name)
    with torch.no_grad():
        assert torch.equal(lm(inputs["input_ids"]).logits, logits)
    w2s_fast.unpatch(lm)
    assert lm.lm_head.forward is before


def check_losses(folder: Path) -> None:
    inputs, of_sparse = batch(), set()
    for spec in LOSSES:
        whole, lm = tiny_lm(**SIZES), sharded(str(folder / "llama"))
        w2s_fast.patch(whole, loss=spec, memory_mib=0.001)
        w2s_fast.patch(lm, loss=spec, memory_mib=0.001)
        for kind in ("hard", "sparse", "dense"):
            given = {**inputs, **columns(kind)}
            try:
                expected = gradients(whole, given)
            except W2SError as error:
                with pytest.raises(W2SError, match=str(error)[:30]):
                    gradients(lm, given)
            else:
                assert_same(gradients(lm, given), expected, (spec, kind))
                if kind == "sparse":
                    of_sparse.add(round(float(expected[0]), 4))
    assert len(of_sparse) == len(LOSSES), of_sparse


def check_errors(folder: Path) -> None:
    from peft import LoraConfig, get_peft_model

    lm = w2s_fast.patch(sharded(str(folder / "llama")))
    with pytest.raises(W2SError, match="DTensor, which this function does not take"):
        lm(**batch(), return_logprob=True)
    cut = lm._w2s_fast.project(Projected, LogitTransform(0.0, 1.0, None, 60))
    with pytest.raises(W2SError, match="cuts or shifts the logits"):
        cut(torch.ones(1, 16), lm.lm_head.weight, None)
    lora = LoraConfig(r=2, target_modules=["lm_head"])
    adapted = get_peft_model(sharded(str(folder / "llama")), lora)
    with pytest.raises(W2SError, match="tensor parallelism and has adapters"):
        w2s_fast.patch(adapted)


def main(folder: Path) -> None:
    init_distributed(60)
    for name in MODELS:
        check_model(name, folder)
    check_losses(folder)
    check_errors(folder)


if __name__ == "__main__":
    main(Path(json.loads(sys.argv[1])))
    exit_process(0)
