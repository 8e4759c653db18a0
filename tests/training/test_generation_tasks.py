"""Answers in words: tokens, losses and gradients are those of transformers' own training."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import ranks
from helpers.generation_cases import KINDS, RECIPE, N, checkpoint, small_lm, texts, whole_rows
from torch import Tensor

from w2s_fast.distributed.world import exit_process, init_distributed
from w2s_fast.losses import LOSSES, make_loss
from w2s_fast.models import ModelConfig, build_model
from w2s_fast.models.weights import gathered, module_tensors
from w2s_fast.ops.lazy_logits import Projected
from w2s_fast.ops.weak_loss import batch_threshold
from w2s_fast.tasks.datasets.agreement import tokenizer as agreement_tokenizer
from w2s_fast.training import TrainConfig, Watch, encode_completions, train
from w2s_fast.training.deepspeed.partition import partitioned_init
from w2s_fast.training.engine import forward
from w2s_fast.training.likelihood import completion_logprob


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return agreement_tokenizer()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> dict[str, Path]:
    return {k: checkpoint(k, tmp_path_factory.mktemp(k), tokenizer) for k in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients_are_those_of_transformers(
    kind: str, folders: dict[str, Path], tokenizer: Any
) -> None:
    """transformers rounds logits to fp32 for its loss; its logits in fp64 leave no such room."""
    data = encode_completions(tokenizer, *texts())
    ours, theirs, exact = (small_lm(folders, kind, tokenizer).double() for _ in range(3))
    loss = make_loss("xent")
    weak = torch.from_numpy(data.labels.astype(np.int64))
    out = []

    def then(z: Projected) -> Tensor:
        out.append(loss(z, weak))  # type: ignore[arg-type]
        return out[0].loss_sum / out[0].count

    got = forward(ours, data.batch(np.arange(N)), then)
    got.backward()
    ids, mask, labels = whole_rows(data, tokenizer.eos_token_id)
    assert int(out[0].count) == int((labels[:, 1:] != -100).sum()) == int(out[0].metrics["rows"])
    want = theirs.lm(input_ids=ids, attention_mask=mask, labels=labels).loss
    want.backward()
    z = exact.lm(input_ids=ids, attention_mask=mask).logits[:, :-1]
    truth = F.cross_entropy(z.flatten(0, 1), labels[:, 1:].flatten())
    truth.backward()
    assert abs(got - want) < 1e-6 and abs(got - truth) < 1e-12
    for (name, a), (_, b), (_, c) in zip(
        ours.named_parameters(), theirs.named_parameters(), exact.named_parameters(), strict=True
    ):
        assert a.grad is not None, name
        assert (a.grad - b.grad).abs().max() < 1e-6, name
        assert (a.grad - c.grad).abs().max() < 1e-12, name


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_takes_projected_logits(name: str) -> None:
    """fp64, chunked, soft-capped, with weights and a row without label: as from dense logits."""
    g = torch.Generator().manual_seed(0)
    hidden, head = (torch.randn(*s, generator=g, dtype=torch.float64) for s in ((40, 6), (50, 6)))
    bias = torch.randn(50, generator=g, dtype=torch.float64)
    weak = torch.randint(50, (40,), generator=g)
    weak[3] = -100
    weight = torch.rand(40, generator=g)
    grads, values = [], []
    for fused in (True, False):
        given = [t.clone().requires_grad_() for t in (hidden, head, bias)]
        z: Any = Projected(*given, softcap=5.0, memory_mib=0.004)
        assert z.shape == (40, 50)
        z = z if fused else z.dense()
        out = make_loss(name)(z, weak, weight=weight, step_frac=0.5, step=200)
        out.loss_sum.backward()
        grads.append([t.grad for t in given])
        values.append([out.loss_sum.detach(), out.count, *out.metrics.values()])
    for a, b in zip(values[0] + grads[0], values[1] + grads[1], strict=True):
        assert (a - b).abs().max() < 1e-9 * max(1.0, float(b.abs().max()))


def test_threshold_of_projected_logits() -> None:
    g = torch.Generator().manual_seed(0)
    hidden, head = (torch.randn(*s, generator=g, dtype=torch.float64) for s in ((40, 6), (50, 6)))
    z = Projected(hidden, head, softcap=3.0, memory_mib=0.004)
    weak = torch.randint(50, (40,), generator=g)
    for weight in (None, (torch.rand(40, generator=g) > 0.3).double()):
        got = batch_threshold(z, weak, "median", weight=weight)  # type: ignore[arg-type]
        assert abs(got - batch_threshold(z.dense(), weak, "median", weight=weight)) < 1e-12


@pytest.mark.parametrize("spec", ["xent", "logconf", "logconf_paper"])
def test_micro_batches_change_nothing(spec: str, folders: dict[str, Path], tokenizer: Any) -> None:
    """The normaliser is the weighted tokens of the step, the median is over all its tokens.

    GPT-2, for Llama's norm computes in fp32 whatever it is given.
    """
    data = encode_completions(tokenizer, *texts())
    weight = np.random.default_rng(2).uniform(0, 2, N)
    weight[::5] = 0
    ends = []
    for size in (None, 1, 4):
        model = small_lm(folders, "gpt2-tied", tokenizer).double()
        cfg = replace(RECIPE, micro_batch_size=size, clip_norm=0.5)
        train(model, data, data.labels, make_loss(spec), cfg, 0, weight=weight)
        ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    for other in ends[1:]:
        assert (other - ends[0]).abs().max() < 1e-9


def test_training_is_plain_pytorch(folders: dict[str, Path], tokenizer: Any) -> None:
    """Row weights count for each of the row's tokens; the head's logits are never made."""
    data = encode_completions(tokenizer, *texts())
    model, plain = (small_lm(folders, "gpt2-tied", tokenizer).double() for _ in range(2))
    weight = np.linspace(0, 2, N)
    calls: list[int] = []
    model.lm.lm_head.register_forward_hook(lambda *_: calls.append(1))
    cfg = TrainConfig(epochs=4, batch_size=N, lr=1e-2, schedule="constant")
    log = train(model, data, data.labels, make_loss("xent"), cfg, 0, weight=weight)
    ids, mask, labels = whole_rows(data, tokenizer.eos_token_id)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-2, weight_decay=0.0)
    w = torch.from_numpy(weight.astype(np.float32)).double()[:, None] * (labels[:, 1:] != -100)
    plain.eval()
    losses = []
    for _ in range(4):
        z = plain.lm(input_ids=ids, attention_mask=mask).logits[:, :-1]
        rows = F.cross_entropy(z.transpose(1, 2), labels[:, 1:], reduction="none")
        loss = (rows * w).sum() / w.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert not calls and np.allclose(log["losses"], losses, atol=1e-9)
    for (name, a), (_, b) in zip(model.named_parameters(), plain.named_parameters(), strict=True):
        assert (a - b).abs().max() < 1e-8, name


@pytest.mark.parametrize("kind", ["llama", "gpt2-tied"])
def test_resume(kind: str, folders: dict[str, Path], tokenizer: Any, tmp_path: Path) -> None:
    """bf16, micro-batches, gradient checkpointing, a watch on other answers: bit for bit."""

    class Killed(Exception):
        pass

    def kill(step: int, _steps: int, _loss: float) -> None:
        if step == 4:
            raise Killed

    data = encode_completions(tokenizer, *texts())
    held = encode_completions(tokenizer, *texts(5))
    cfg = replace(RECIPE, checkpoint_every=2, micro_batch_size=4, gradient_checkpointing=True)

    def fit(model: Any, **options: Any) -> dict[str, Any]:
        watch = Watch(held, score=lambda logp: float(logp.mean()), keep="best")
        loss = make_loss("logconf_paper")
        return train(model, data, data.labels, loss, cfg, 0, watch=watch, **options)

    straight, resumed = (small_lm(folders, kind, tokenizer, dtype="bf16") for _ in range(2))
    log = fit(straight)
    assert log["trajectory"].shape == (2, 5) and log["best"] == log["watched"][-1]
    with pytest.raises(Killed):
        fit(
            small_lm(folders, kind, tokenizer, dtype="bf16"), checkpoint_dir=tmp_path, progress=kill
        )
    again = fit(resumed, checkpoint_dir=tmp_path)
    assert again["losses"] == log["losses"] and again["scores"] == log["scores"]
    for name, t in module_tensors(straight).items():
        assert torch.equal(t, module_tensors(resumed)[name]), name


def test_gradient_checkpointing_is_active_and_exact(
    folders: dict[str, Path], tokenizer: Any
) -> None:
    data = encode_completions(tokenizer, *texts())
    ends, calls = [], []
    for on in (False, True):
        model = small_lm(folders, "llama", tokenizer)
        count = [0]
        norm = model.base.layers[0].input_layernorm
        norm.register_forward_hook(lambda *_, c=count: c.__setitem__(0, c[0] + 1))
        cfg = replace(RECIPE, gradient_checkpointing=on)
        train(model, data, data.labels, make_loss("xent"), cfg, 0)
        ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
        calls.append(count[0])
    assert torch.equal(*ends) and calls[1] == 2 * calls[0]


def fit(job: dict[str, Any]) -> dict[str, Any]:
    tokenizer = agreement_tokenizer()
    data = encode_completions(tokenizer, *texts())
    cfg = ModelConfig(job["source"], dtype=job.get("dtype", "fp32"), hidden=16, heads=2)
    recipe = replace(RECIPE, zero_stage=job["zero_stage"], micro_batch_size=job["micro"], eps=1e-4)
    with partitioned_init(recipe, cfg.dtype, "cpu"):
        model = build_model(cfg, 2, tokenizer, 0, kind="generation")
    weight = np.linspace(0, 2, N)
    # A large eps: keys' biases have a gradient of 0, and AdamW would blow its rounding up.
    log = train(model, data, data.labels, make_loss(job["spec"]), recipe, 0, weight=weight)
    flat = []
    for t in module_tensors(model).values():
        with gathered([t]):
            flat += t.detach().double().flatten().tolist()
    logp = completion_logprob(model, data)
    return {
        "losses": log["losses"],
        "agreement": log["agreement"],
        "weights": flat,
        "logp": logp.tolist(),
    }


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_sharded(zero: int, folders: dict[str, Path], tmp_path: Path) -> None:
    """Two processes, two micro-batches, tied and not: what one process gives."""
    pytest.importorskip("deepspeed")
    jobs = [
        {"source": str(folders[kind]), "zero_stage": zero, "micro": 2, "spec": spec}
        for kind, spec in (("llama", "xent"), ("gpt2-tied", "logconf_paper"))
    ]
    out = tmp_path / "out.json"
    ranks.run(__file__, 2, {"jobs": jobs, "out": str(out)})
    for job, got in zip(jobs, json.loads(out.read_text()), strict=True):
        want = fit({**job, "zero_stage": 0, "micro": 4})
        for name in ("losses", "agreement", "weights", "logp"):
            assert np.allclose(got[name], want[name], atol=1e-4), (job, name)


def main(job: dict[str, Any]) -> None:
    world = init_distributed(60)
    found = [fit(one) for one in job["jobs"]]
    if world.is_main_process:
        Path(job["out"]).write_text(json.dumps(found))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
    exit_process(0)
