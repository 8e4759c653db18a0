"""An exported model can be read by all whom the umask allows."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from helpers.toy_run import config

import w2s_fast
from w2s_fast.pipeline.export import export


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_files_have_the_mode_that_the_umask_gives(tmp_path: Path, umask: int) -> None:
    scratch = {"source": "scratch", "hidden": 8, "heads": 2}
    cfg = config(tmp_path / "out", student=scratch)
    before = os.umask(umask)
    try:
        w2s_fast.run(cfg)
        export(cfg, "student/0/xent", tmp_path / "model")
    finally:
        os.umask(before)
    modes = {p: p.stat().st_mode & 0o777 for p in tmp_path.rglob("*") if p.is_file()}
    assert {"model.safetensors", "head.safetensors", "config.json"} <= {p.name for p in modes}
    assert set(modes.values()) == {0o666 & ~umask}, modes
