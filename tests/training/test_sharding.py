"""Sharding changes nothing: any number of ranks, ZeRO stage, micro-batch and accumulation give the
loss curve and the weights of one process. Real processes, gloo."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import ranks, sharded_training
from helpers.sharded_training import RECIPE, close, fit

from w2s_fast.distributed.world import World
from w2s_fast.errors import W2SError
from w2s_fast.training import TrainConfig, checkpoint
from w2s_fast.training.engine_choice import make_engine

pytest.importorskip("deepspeed")
PROGRAM = sharded_training.__file__
MATRIX = [(z, m, a) for z in (0, 1, 2, 3) for m in (1, 4) for a in (1, 8)]


def test_micro_batches_on_one_process() -> None:
    """Rows alone, in fours and all together: other products, the same training."""
    want = fit(batch_size=16, clip_norm=0.5)
    for size in (1, 4):
        close(fit(batch_size=16, micro_batch_size=size, clip_norm=0.5), want)


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.parametrize("size", [1, 2, 4])
def test_matrix(size: int, tmp_path: Path) -> None:
    jobs = [
        {
            "zero_stage": z,
            "micro_batch_size": m,
            "batch_size": m * a * size,
            "clip_norm": 0.5,
            "average_frac": 0.3 if m == 4 else 0.0,
            "ema_decay": 0.0 if m == 4 else 0.8,
            "interpolation": 0.6 if m == 4 else 1.0,
        }  # fmt: skip
        for z, m, a in MATRIX
    ]
    out = tmp_path / "out.json"
    ranks.run(PROGRAM, size, {"fits": jobs, "out": str(out)})
    for job, got in zip(jobs, json.loads(out.read_text()), strict=True):
        fields = ("batch_size", "clip_norm", "average_frac", "ema_decay", "interpolation")
        recipe = {name: job[name] for name in fields}
        try:
            close(got, fit(**recipe))
        except AssertionError as e:
            raise AssertionError(f"{job}: {e}") from e


# Stage and processes before the stop, and after it.
MOVES = [
    ((0, 2), (0, 2)), ((1, 2), (1, 2)), ((2, 2), (2, 2)), ((3, 2), (3, 2)),  # as it was
    ((3, 2), (3, 1)), ((1, 1), (2, 2)), ((2, 2), (0, 1)), ((0, 1), (3, 2)), ((3, 2), (1, 2)),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.dist
def test_resume_anywhere(tmp_path: Path) -> None:
    """Stopped after step 5, checkpoint at 4. As it was: bit for bit; elsewhere: within rounding."""
    spec = "logconf_eleuther"  # the one with a memory to save
    places = sorted({p for move in MOVES for p in move})
    straight: dict[tuple[int, int], Any] = {}
    for size in (1, 2):
        jobs = [{"spec": spec, "zero_stage": z, **RECIPE} for z, n in places if n == size]
        out = tmp_path / "straight.json"
        ranks.run(PROGRAM, size, {"fits": jobs, "out": str(out)})
        found = json.loads(out.read_text())
        straight |= dict(zip([p for p in places if p[1] == size], found, strict=True))
    for part in (0, 1):  # what is stopped, then what goes on
        for size in (1, 2):
            moves = [(i, m[part]) for i, m in enumerate(MOVES) if m[part][1] == size]
            jobs = [
                {"spec": spec, "zero_stage": z, **RECIPE, "directory": str(tmp_path / str(i))}
                | ({"stop": 5} if part == 0 else {})
                for i, (z, _) in moves
            ]
            out = tmp_path / f"resumed-{part}-{size}.json"
            ranks.run(PROGRAM, size, {"fits": jobs, "out": str(out)})
            if part == 1:
                for (i, place), got in zip(moves, json.loads(out.read_text()), strict=True):
                    if MOVES[i][0] == MOVES[i][1]:
                        assert got == straight[place], MOVES[i]
                    else:
                        close(got, straight[place])


@pytest.mark.slow
@pytest.mark.dist
def test_every_rank_finds_its_own_masks_again(tmp_path: Path) -> None:
    """Dropout draws from a stream of each rank's own, and goes on in it after a stop."""
    found = []
    for part in ({}, {"stop": 5}, {}):
        jobs = [{**RECIPE, "zero_stage": z, "dropout": True, **part} for z in (0, 2)]
        if found:
            jobs = [{**job, "directory": str(tmp_path / str(job["zero_stage"]))} for job in jobs]
        ranks.run(PROGRAM, 2, {"fits": jobs, "out": str(tmp_path / "out.json")})
        found.append(json.loads((tmp_path / "out.json").read_text()))
    straight, _, resumed = found
    assert [
        {**r, "streams": s["streams"]} for r, s in zip(resumed, straight, strict=True)
    ] == straight
    assert all(len(set(s["streams"])) == 2 for s in straight)
    silent = fit(**RECIPE)["losses"]
    assert np.abs(np.subtract(straight[0]["losses"], silent)).max() > 1e-3


@pytest.mark.slow
@pytest.mark.dist
def test_ranks_that_skip_different_layers_stay_equal(tmp_path: Path) -> None:
    """A weight with a gradient on one rank alone takes part in the sum of all; ZeRO refuses it."""
    cell = {"batch_size": 4, "dropout": True, "layerdrop": 0.5}
    ranks.run(PROGRAM, 2, {"fits": [cell], "out": str(tmp_path / "out.json")})
    cfg = TrainConfig(batch_size=4, dropout=True, zero_stage=2)
    with pytest.raises(W2SError, match="layerdrop=0.5"):
        make_engine(sharded_training.Skipping(0.5), cfg, World(0, 2))


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.parametrize("moment", ["writing", "publishing"])
def test_a_kill_while_saving_keeps_the_checkpoint_before(moment: str, tmp_path: Path) -> None:
    """Rank 1 dies with a half-written file, or rank 0 before the rename, in the save at step 4."""
    cell = {"zero_stage": 2, **RECIPE, "directory": str(tmp_path / "ckpt")}
    job = {"fits": [cell], "out": str(tmp_path / "never.json"), "die": moment}
    found = ranks.start(PROGRAM, 2, json.dumps(job))
    for p in found:
        p.communicate(timeout=120)
    assert found[1 if moment == "writing" else 0].returncode == -signal.SIGKILL
    assert all(p.returncode for p in found)
    assert [p.name for p in checkpoint.finished(tmp_path / "ckpt")] == ["step-00000002"]
    assert list((tmp_path / "ckpt").glob(".step-00000004*"))
    outs = [tmp_path / "again.json", tmp_path / "straight.json"]
    ranks.run(PROGRAM, 2, {"fits": [cell], "out": str(outs[0])})
    del cell["directory"]
    ranks.run(PROGRAM, 2, {"fits": [cell], "out": str(outs[1])})
    again, straight = (json.loads(out.read_text()) for out in outs)
    assert again == straight
    assert not list((tmp_path / "ckpt").glob(".step*"))


@pytest.mark.slow
@pytest.mark.dist
def test_modes_and_precision(tmp_path: Path) -> None:
    """Rolling thresholds, a loss with memory, hard labels without weights, and bf16."""
    modes: list[dict[str, Any]] = [
        {"batch_size": 8, "micro_batch_size": 2, "threshold_scope": t, "spec": spec}
        for t, spec in (("window", "logconf"), ("ema", "logconf"), ("exact", "logconf_eleuther"))
    ]
    modes += [{"batch_size": 6, "spec": "logconf_paper", "weighted": False}]
    modes += [{"batch_size": 8, "spec": "product"}, {"batch_size": 8, "spec": "window"}]
    # Without a threshold: of few bf16 scores, some are always the same.
    low = [
        {"batch_size": 8, "dtype": "bfloat16", "spec": "xent", "zero_stage": z} for z in range(4)
    ]
    jobs = [{**m, "zero_stage": z} for m in modes for z in (0, 2)] + low
    out = tmp_path / "out.json"
    ranks.run(PROGRAM, 2, {"fits": jobs, "out": str(out)})
    found = json.loads(out.read_text())
    for job, got in zip(jobs, found, strict=True):
        alone = {k: v for k, v in job.items() if k != "zero_stage"}
        if "micro_batch_size" in alone:  # rows of both ranks are one micro-batch here
            alone["micro_batch_size"] *= 2
        close(got, fit(**alone), eps=2e-4 if job.get("dtype") else 1.2e-7)
