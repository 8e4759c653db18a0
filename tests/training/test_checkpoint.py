"""Checkpoints as files: whole or not there, and the last two of them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from w2s_fast.errors import W2SError
from w2s_fast.training import checkpoint


def test_a_full_disk_keeps_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = {"model.w": torch.arange(3.0)}
    checkpoint.save(tmp_path, 2, 1.0, tensors.items(), {"seed": 0})

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(W2SError, match="No space left on device; free some space"):
        checkpoint.save(tmp_path, 4, 1.0, tensors.items(), {"seed": 0})
    monkeypatch.undo()
    (tmp_path / ".step-00000006.1").mkdir()  # what a kill leaves
    found = checkpoint.load(tmp_path, {"seed": 0})
    assert found is not None and found.step == 2
    read = found.read("model.w")
    assert read is not None and torch.equal(read, tensors["model.w"])
    assert found.read("model.other") is None
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000002"]


def test_the_last_two_are_kept(tmp_path: Path) -> None:
    for step in range(1, 5):
        checkpoint.save(tmp_path, step, 1.0, [("w", torch.tensor([step]))], {})
        kept = [f"step-{s:08d}" for s in range(max(1, step - 1), step + 1)]
        assert [p.name for p in checkpoint.finished(tmp_path)] == kept
    found = checkpoint.load(tmp_path, {})
    assert found is not None and found.step == 4
    w = found.read("w")
    assert w is not None and w.tolist() == [4]
