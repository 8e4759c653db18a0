"""Offload moves states and weights and changes nothing but rounding. Real processes, gloo.

DeepSpeed's Adam for the host rounds in another order than torch's, a few units in the last place a
step: the budget is that of sharding without offload.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers import quick_build, ranks, sharded_training
from helpers.sharded_training import RECIPE, close, fit

from w2s_fast.errors import W2SError
from w2s_fast.training import TrainConfig
from w2s_fast.training.deepspeed.setup import check_offload

pytest.importorskip("deepspeed")
TOOLS = [name for name in ("ninja", "c++") if shutil.which(name) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.dist,
    pytest.mark.timeout(900),  # the first time they are compiled
    pytest.mark.skipif(bool(TOOLS), reason=f"DeepSpeed's host optimizer needs {TOOLS} to build"),
]
CPU: list[dict[str, Any]] = [
    *({"zero_stage": z, "offload_optimizer": "cpu"} for z in (1, 2, 3)),
    {"zero_stage": 3, "offload_params": "cpu"},
    {"zero_stage": 3, "offload_optimizer": "cpu", "offload_params": "cpu"},
]
NVME: list[dict[str, Any]] = [
    {"zero_stage": 3, "offload_params": "nvme"},
    {"zero_stage": 3, "offload_optimizer": "nvme"},
    {"zero_stage": 3, "offload_optimizer": "nvme", "offload_params": "nvme"},
]


@pytest.fixture(autouse=True)
def build_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in quick_build.environment().items():
        monkeypatch.setenv(name, value)


def _ready(where: str, tmp_path: Path) -> list[dict[str, Any]]:
    """The cells of a place, after one process has compiled what all need; or skip."""
    if where == "cpu":
        check_offload(TrainConfig(**CPU[0]))
        return CPU if ranks.LONG else CPU[-1:]
    from deepspeed.ops.op_builder import AsyncIOBuilder

    if not AsyncIOBuilder().is_compatible(verbose=False):
        pytest.skip("offload to nvme needs libaio")
    cells = [{**cell, "nvme_path": str(tmp_path / "disk")} for cell in NVME]
    check_offload(TrainConfig(**cells[2]))
    return cells


@pytest.mark.parametrize("where", ["cpu", pytest.param("nvme", marks=ranks.minutes)])
def test_the_same_training(where: str, tmp_path: Path) -> None:
    """In one go, then stopped after step 5 of 11 and continued from step 4, on the same ranks and
    as one process without ZeRO."""
    cells = _ready(where, tmp_path)
    cells = [{**cell, **RECIPE, "clip_norm": 0.5} for cell in cells]
    for i, cell in enumerate(cells):
        cell["directory"] = str(tmp_path / str(i))
    found = []
    for jobs in (
        [{k: v for k, v in cell.items() if k != "directory"} for cell in cells],
        [{**cell, "stop": 5} for cell in cells],
    ):
        out = tmp_path / "out.json"
        ranks.run(sharded_training.__file__, 2, {"fits": jobs, "out": str(out)})
        found.append(json.loads(out.read_text()))
    want = fit(**RECIPE, clip_norm=0.5)
    for i, (cell, straight) in enumerate(zip(cells, found[0], strict=True)):
        close(straight, want)
        alone = tmp_path / f"{i}-alone"
        shutil.copytree(cell["directory"], alone)
        close(fit(**RECIPE, clip_norm=0.5, directory=alone), straight)
    out = tmp_path / "again.json"
    ranks.run(sharded_training.__file__, 2, {"fits": cells, "out": str(out)})
    for again, straight in zip(json.loads(out.read_text()), found[0], strict=True):
        close(again, straight)


def test_what_cannot_be_built_is_one_line(tmp_path: Path) -> None:
    """A compiler that fails; nothing is computed."""
    done = subprocess.run(
        [sys.executable, "-m", "w2s_fast", "run", "--out", str(tmp_path / "out"), "--quiet",
         "--student_train.zero_stage", "2", "--student_train.offload_optimizer", "cpu"],
        env=os.environ | {"CXX": "/bin/false", "TORCH_EXTENSIONS_DIR": str(tmp_path / "built")},
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    said = [line for line in done.stderr.splitlines() if line.startswith("w2s-fast: error")]
    assert done.returncode == 2 and len(said) == 1, done.stderr
    assert "offload_optimizer needs DeepSpeed's cpu_adam, which cannot be built" in said[0]
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "out").glob("cache/*/"))


def test_a_path_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cfg = TrainConfig(zero_stage=3, offload_params="nvme", nvme_path=str(tmp_path / "file"))
    with pytest.raises(W2SError, match="nvme_path is .*: File exists; name a folder"):
        check_offload(cfg)
