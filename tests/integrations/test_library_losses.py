"""Losses that plug into torchtitan, NeMo Automodel and verl: what the libraries' own losses train.

They run where the library is installed.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from typing import Any

import pytest
import torch
from helpers import ranks
from helpers.example_trainings import descent, door, reference, same
from torch import Tensor

from w2s_fast.errors import W2SError


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_torchtitan_trains_as_its_own_loss() -> None:
    """Soft labels: the formula. Hard labels: torchtitan's cross-entropy."""
    example = door("torchtitan_loss")
    from torchtitan.components.loss import CrossEntropyLoss

    same(example.main(adam=descent, aux=0.0), reference(6, 8, False))
    ours = example.main(adam=descent, aux=0.0, soft=False)
    theirs = example.main(adam=descent, soft=False, loss_config=CrossEntropyLoss.Config())
    same(ours, theirs)


def test_torchtitan_confidence() -> None:
    """Half of the tokens take the self-target, and both terms are divided by the valid tokens."""
    example = door("torchtitan_loss")
    pred, labels = normal(2, 6, 11, seed=1).requires_grad_(), torch.randint(0, 11, (2, 6))
    labels[0, :2] = -100
    loss, metrics = example.WeakLoss.Config(aux=0.3).build()(pred, labels, torch.tensor(20))
    rows, counted = pred.flatten(0, 1), labels.flatten() >= 0
    logp = rows.log_softmax(-1)
    top = logp.amax(-1)
    trusted = top >= torch.quantile(top[counted], 0.5)
    own = -(logp.gather(1, labels.flatten().clamp_min(0)[:, None])[:, 0])
    each = torch.where(trusted, 0.7 * own - 0.3 * top, own)
    torch.testing.assert_close(loss, each[counted].sum() / 20)
    agree = (rows.argmax(1) == labels.flatten())[counted].sum() / 20
    torch.testing.assert_close(metrics["weak/agreement_mean"], agree)


def test_torchtitan_chunks() -> None:
    """Inside torchtitan's wrapper, which calls the head and the loss for parts of a sequence."""
    example = door("torchtitan_loss")
    from torchtitan.components.loss import ChunkedLossWrapper

    head = torch.nn.Linear(5, 11, bias=False)
    hidden, labels = normal(2, 6, 5, seed=1).requires_grad_(), torch.randint(0, 11, (2, 6))
    config = example.WeakLoss.Config(aux=0.4, threshold=0.3)
    wrapper = ChunkedLossWrapper.Config(num_chunks=3, loss_fn=config).build()
    wrapper.set_lm_head(head)
    total = torch.tensor(12)
    loss, metrics = wrapper(hidden, labels, total)
    loss.backward()
    found = hidden.grad, head.weight.grad
    hidden.grad = head.weight.grad = None
    whole, agreement = config.build()(head(hidden), labels, total)
    whole.backward()
    torch.testing.assert_close(loss, whole)
    torch.testing.assert_close(metrics, agreement)
    torch.testing.assert_close(found, (hidden.grad, head.weight.grad))


@pytest.mark.dist
def test_torchtitan_on_sharded_logits() -> None:
    """Under tensor parallelism, 13 classes on two ranks: its loss-parallel cross-entropy."""
    door("torchtitan_loss")
    ranks.run(__file__, 2, {})


def sharded() -> None:
    from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh
    from torchtitan.components.loss import CrossEntropyLoss
    from torchtitan.distributed.spmd_types import set_current_spmd_mesh
    from torchtitan.distributed.utils import set_spmd_backend

    example = door("torchtitan_loss")
    torch.distributed.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("tp",))
    labels = torch.randint(0, 13, (2, 6), generator=torch.Generator().manual_seed(0))
    labels[0, :2] = -100
    logits = distribute_tensor(normal(2, 6, 13, seed=1), mesh, [Shard(2)])
    configs = [
        kind(global_vocab_size=13, **more)
        for kind, more in ((example.WeakLoss.Config, {"aux": 0.0}), (CrossEntropyLoss.Config, {}))
    ]
    for backend in ("partial_dtensor", "spmd_types"):
        set_spmd_backend(backend)
        plain = backend == "spmd_types"
        found = []
        for config in configs:
            pred = (logits.to_local() if plain else logits).detach().requires_grad_()
            with set_current_spmd_mesh(mesh) if plain else contextlib.nullcontext():
                loss, _ = config.build()(pred, labels, torch.tensor(10))
            loss.backward()
            assert plain or pred.grad.placements == (Shard(2),)
            found.append((loss.detach(), pred.grad if plain else pred.grad.full_tensor()))
        torch.testing.assert_close(*found)
    with pytest.raises(W2SError, match="global_vocab_size is None"), set_current_spmd_mesh(mesh):
        example.WeakLoss.Config().build()(logits.to_local(), labels)
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("weighted", [False, True])
def test_nemo_automodel_trains_as_its_own_loss(weighted: bool) -> None:
    example = door("nemo_automodel_loss")
    ours = example.main(adam=descent, aux=0.0, weighted=weighted)
    theirs = example.main(adam=descent, name="MaskedCrossEntropy", weighted=weighted)
    same(ours, theirs)


def test_nemo_automodel_builds_it_from_its_registry() -> None:
    """By name and by class, as recipes do; the options reach the loss."""
    example = door("nemo_automodel_loss")
    from nemo_automodel.components.loss.loss import build_loss_config, build_loss_module

    config = build_loss_config(example.WeakLinearCrossEntropy, aux=0.3, threshold=0.2)
    assert config == example.WeakLinearCrossEntropyConfig(aux=0.3, threshold=0.2)
    hidden, head = normal(1, 6, 5, seed=1), normal(11, 5, seed=2)
    labels = torch.tensor([[3, -100, 4, 7, 0, 10]])
    logp = (4 * torch.tanh(hidden[0] @ head.t() / 4)).log_softmax(-1)
    top, counted = logp.amax(-1), labels[0] >= 0
    own = -logp.gather(1, labels[0].clamp_min(0)[:, None])[:, 0]
    each = torch.where(top.exp() >= 0.2, 0.7 * own - 0.3 * top, own)
    loss_fn = build_loss_module(
        "WeakLinearCrossEntropy", aux=0.3, threshold=0.2, logit_softcapping=4.0
    )
    found = loss_fn(hidden, labels, head, num_label_tokens=9)
    torch.testing.assert_close(found, each[counted].sum() / 9)
    nothing = loss_fn(hidden, torch.full_like(labels, -100), head, num_label_tokens=0)
    assert float(nothing) == 0.0


def test_verl_trains_as_its_own_estimator(monkeypatch: pytest.MonkeyPatch) -> None:
    example = door("verl_distillation")
    monkeypatch.setattr(example, "AUX", 0.0)
    same(example.main(adam=descent), example.main(adam=descent, mode="k3"), moved=1e-3)


def test_verl_self_target() -> None:
    """Responses of different lengths: padding enters neither the median nor the loss."""
    example = door("verl_distillation")
    from tensordict import TensorDict
    from verl.trainer.ppo.core_algos import kl_penalty

    lengths = (2, 4, 3)

    def nested(rows: list[Tensor]) -> Tensor:
        return torch.nested.as_nested_tensor(rows, layout=torch.jagged)

    total = sum(n + 3 for n in lengths)
    student = (-normal(total, seed=1).abs()).requires_grad_()
    weak = -normal(total, seed=2).abs()
    rows = {
        "prompts": [torch.ones(3).long() for _ in lengths],
        "responses": [torch.ones(n).long() for n in lengths],
        "response_mask": [torch.ones(n).bool() for n in lengths],
        "teacher_logprobs": list(weak[:, None].split([n + 3 for n in lengths])),
    }
    data = TensorDict({k: nested(v) for k, v in rows.items()}, batch_size=3)
    losses, metrics = example.weak_to_strong(None, None, {"log_probs": student}, data)
    parts = zip(*(x.split([n + 3 for n in lengths]) for x in (student, weak)), lengths, strict=True)
    # The position before a token predicts it.
    pairs = [(s[-n - 1 : -1], w[-n - 1 : -1]) for s, w, n in parts]
    p = torch.cat([s for s, _ in pairs]).exp()
    for row, (s, w) in zip(losses, pairs, strict=True):
        a = example.AUX * (s.exp() >= torch.quantile(p, 0.5)).float()
        expected = (1 - a) * kl_penalty(s, w, "k3") - a * s
        torch.testing.assert_close(row[: len(s)], expected)
    assert metrics["distillation/self_target"] == pytest.approx(5 / 9)


def main(job: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    sharded()


if __name__ == "__main__":
    os.environ.setdefault("TRITON_INTERPRET", "1")
    main(json.loads(sys.argv[1]))
