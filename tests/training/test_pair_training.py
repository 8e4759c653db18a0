"""Trainings on completion pairs in parts and on several processes; references kept on disk."""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import ranks
from helpers.completion_pairs import N, encoded, pair_texts, soft_q
from helpers.generation_cases import RECIPE, checkpoint, small_lm

from w2s_fast.distributed.world import exit_process, get_world, init_distributed
from w2s_fast.errors import W2SError
from w2s_fast.losses.pairwise import make_pair_loss
from w2s_fast.losses.preference import DPO
from w2s_fast.models import ModelConfig, build_model
from w2s_fast.models.packed_attention import ATTENTION
from w2s_fast.models.weights import gathered, module_tensors
from w2s_fast.store import StoreWarning
from w2s_fast.tasks.datasets.agreement import tokenizer as agreement_tokenizer
from w2s_fast.training import Watch, encode_pairs, predict_pairs, reference_logprob, train
from w2s_fast.training.deepspeed.partition import partitioned_init

KINDS = ("llama", "gpt2-tied")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return agreement_tokenizer()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> dict[str, Path]:
    return {k: checkpoint(k, tmp_path_factory.mktemp(k), tokenizer) for k in KINDS}


@pytest.mark.parametrize(("kind", "lora_rank"), [*((kind, 0) for kind in KINDS), ("llama", 2)])
def test_resume(
    kind: str, lora_rank: int, folders: dict[str, Path], tokenizer: Any, tmp_path: Path
) -> None:
    """bf16, packed rows, micro-batches, gradient checkpointing, a ring of rewards, a watch."""

    class Killed(Exception):
        pass

    def kill(step: int, _steps: int, _loss: float) -> None:
        if step == 3:
            raise Killed

    pairs, q = encoded(tokenizer), soft_q()
    cfg = replace(RECIPE, checkpoint_every=2, micro_batch_size=4, gradient_checkpointing=True)

    def fit(model: Any, data: Any = pairs, **options: Any) -> dict[str, Any]:
        watch = Watch(pairs.rows(slice(0, 5)), score=lambda p: float(p[:, 0].mean()), keep="best")
        loss = make_pair_loss("logconf_eleuther:warmup_steps=1@dpo")
        return train(model, data, q, loss, cfg, 0, watch=watch, **options)

    def fresh() -> Any:
        return small_lm(folders, kind, tokenizer, dtype="bf16", lora_rank=lora_rank)

    straight, resumed = fresh(), fresh()
    start = {name: t.clone() for name, t in module_tensors(straight).items()}
    log = fit(straight)
    assert straight.lm.config._attn_implementation == ATTENTION
    trained = [name for name, t in module_tensors(straight).items() if (t != start[name]).any()]
    assert trained and (not lora_rank or all("lora_" in name for name in trained))
    assert log["trajectory"].shape == (2, 5, 2)
    with pytest.raises(Killed):
        fit(fresh(), checkpoint_dir=tmp_path, progress=kill)
    with pytest.raises(W2SError, match="checkpoint"):  # other numbers of the reference
        fit(fresh(), pairs.with_reference(pairs.reference + 1), checkpoint_dir=tmp_path)
    again = fit(resumed, checkpoint_dir=tmp_path)
    assert again["losses"] == log["losses"] and again["scores"] == log["scores"]
    for name, t in module_tensors(straight).items():
        assert torch.equal(t, module_tensors(resumed)[name]), name


def test_gradient_checkpointing_is_active_and_exact(
    folders: dict[str, Path], tokenizer: Any
) -> None:
    pairs, q, ends, calls = encoded(tokenizer), soft_q(), [], []
    for on in (False, True):
        model = small_lm(folders, "llama", tokenizer)
        count = [0]
        norm = model.base.layers[0].input_layernorm

        def counted(*_: Any, count: list[int] = count) -> None:
            count[0] += torch.is_grad_enabled()  # not the comparison that packing starts with

        norm.register_forward_hook(counted)
        cfg = replace(RECIPE, gradient_checkpointing=on)
        train(model, pairs, q, make_pair_loss("dpo"), cfg, 0)
        ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
        calls.append(count[0])
    assert torch.equal(*ends) and calls[1] == 2 * calls[0]


def test_a_reference_is_computed_once(
    folders: dict[str, Path], tokenizer: Any, tmp_path: Path
) -> None:
    """A second call runs no forward; other weights, pairs or a damaged file are computed."""
    pairs = encode_pairs(tokenizer, *pair_texts())
    model = small_lm(folders, "llama", tokenizer)
    count = [0]
    model.register_forward_hook(lambda *_: count.__setitem__(0, count[0] + 1))

    def computed(data: Any) -> tuple[np.ndarray, bool]:
        before = count[0]
        logp = reference_logprob(model, data, folder=tmp_path / "refs")
        return logp, count[0] > before

    want = reference_logprob(model, pairs)
    for expected in (True, False):
        got, ran = computed(pairs)
        assert np.array_equal(got, want) and got.dtype == np.float32 and ran == expected
    assert not computed(pairs.with_reference(want))[1]  # the columns are no part of the key
    swapped = encode_pairs(tokenizer, *(pair_texts()[i] for i in (0, 2, 1)))
    got, ran = computed(swapped)
    assert ran and np.allclose(got[:, ::-1], want, atol=1e-4)
    (file,) = [f for f in (tmp_path / "refs").iterdir() if f.stat().st_mtime_ns == min(
        g.stat().st_mtime_ns for g in (tmp_path / "refs").iterdir())]  # fmt: skip
    whole = file.read_bytes()
    for damaged in (whole[:-1], whole[:-1] + bytes([whole[-1] ^ 1]), b"", whole[:20]):
        file.write_bytes(damaged)
        with pytest.warns(StoreWarning, match="damaged; computing them again"):
            got, ran = computed(pairs)
        assert ran and np.array_equal(got, want) and file.read_bytes() == whole
    model.lm.config.rms_norm_eps = 1e-3  # no weight, and another model all the same
    assert computed(pairs)[1]
    with torch.no_grad():
        model.lm.lm_head.weight[0, 0] += 1
    assert computed(pairs)[1] and not computed(pairs)[1]
    (tmp_path / "file").write_text("")
    with pytest.raises(W2SError, match="cannot write reference log-probabilities"):
        reference_logprob(model, pairs, folder=tmp_path / "file")


class _Deadly:
    """A loss that kills rank 0 in the forward of one step."""

    def __init__(self, loss: Any, step: int | None) -> None:
        self._loss, self._step = loss, step

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loss, name)

    def __repr__(self) -> str:
        return repr(self._loss)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if kwargs["step"] == self._step and get_world().is_main_process:
            os.kill(os.getpid(), signal.SIGKILL)
        return self._loss(*args, **kwargs)


def fit(job: dict[str, Any]) -> dict[str, Any]:
    tokenizer = agreement_tokenizer()
    cfg = ModelConfig(job["source"], dtype=job.get("dtype", "fp32"), lora_rank=job.get("lora", 0))
    # A large eps: keys' biases have a gradient of 0, and AdamW would blow its rounding up.
    recipe = replace(RECIPE, zero_stage=job["zero_stage"], micro_batch_size=job["micro"], eps=1e-3,
                     checkpoint_every=2)  # fmt: skip
    with partitioned_init(recipe, cfg.dtype, "cpu"):
        model = build_model(cfg, 2, tokenizer, 0, kind="generation")
    pairs = encode_pairs(tokenizer, *pair_texts())
    logp = reference_logprob(model, pairs, folder=job.get("folder"))
    # The model's own log-probabilities would leave rewards of 0, whose order is rounding.
    pairs = pairs.with_reference(logp + np.random.default_rng(6).normal(size=logp.shape))

    log = train(
        model, pairs, soft_q(), _Deadly(make_pair_loss(job["spec"]), job.get("die")), recipe, 0,
        weight=np.linspace(0, 2, N),
        checkpoint_dir=Path(job["directory"]) if "directory" in job else None,
    )  # fmt: skip
    flat = []
    for t in module_tensors(model).values():
        with gathered([t]):
            flat += t.detach().double().flatten().tolist()
    return {
        "losses": log["losses"],
        "agreement": log["agreement"],
        "weights": flat,
        "logp": logp.tolist(),
        "probs": predict_pairs(model, pairs, DPO()).tolist(),
    }


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_sharded(zero: int, folders: dict[str, Path], tmp_path: Path) -> None:
    """Two processes, two micro-batches, a batch threshold, tied and not, LoRA: as on one process.

    The second training reads the reference that the first has stored.
    """
    pytest.importorskip("deepspeed")
    cases = (
        ("llama", 0, "dpo"), ("gpt2-tied", 0, "logconf:warmup_frac=0@dpo_norm"), ("llama", 2, "dpo")
    )  # fmt: skip
    jobs = [
        {"source": str(folders[kind]), "zero_stage": zero, "micro": 2, "spec": spec, "lora": lora,
         "folder": str(tmp_path / f"{kind}-{lora}")}
        for kind, lora, spec in cases
        for _ in range(2)
    ]  # fmt: skip
    out = tmp_path / "out.json"
    ranks.run(__file__, 2, {"jobs": jobs, "out": str(out)})
    found = json.loads(out.read_text())
    assert found[::2] == found[1::2]
    assert [len(list(Path(job["folder"]).iterdir())) for job in jobs] == [1] * len(jobs)
    for job, got in zip(jobs[::2], found[::2], strict=True):
        want = fit({**job, "zero_stage": 0, "micro": 4, "folder": None})
        for name, value in want.items():
            assert np.allclose(got[name], value, atol=1e-4), (job, name)


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.parametrize("zero", [0, 2, 3])
def test_resume_after_a_kill(zero: int, folders: dict[str, Path], tmp_path: Path) -> None:
    """Rank 0 dies in the last of four steps; the same processes end in the same bits."""
    pytest.importorskip("deepspeed")
    job = {"source": str(folders["llama"]), "zero_stage": zero, "micro": 2, "spec": "dpo"}
    outs = [tmp_path / "straight.json", tmp_path / "again.json"]
    ranks.run(__file__, 2, {"jobs": [job], "out": str(outs[0])})
    job["directory"] = str(tmp_path / "ckpt")
    killed = ranks.start(
        __file__, 2, json.dumps({"jobs": [{**job, "die": 3}], "out": str(tmp_path / "none")})
    )
    for p in killed:
        p.communicate(timeout=120)
    assert killed[0].returncode == -signal.SIGKILL
    assert [p.name for p in (tmp_path / "ckpt").glob("[!.]*")] == ["step-00000002"]
    ranks.run(__file__, 2, {"jobs": [job], "out": str(outs[1])})
    straight, again = (json.loads(out.read_text()) for out in outs)
    assert straight == again


def main(job: dict[str, Any]) -> None:
    world = init_distributed(60)
    found = [fit(one) for one in job["jobs"]]
    if world.is_main_process:
        Path(job["out"]).write_text(json.dumps(found))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
    exit_process(0)
