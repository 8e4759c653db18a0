"""Checkpoints as files: whole or not there, and the last two of them."""

from __future__ import annotations

import os
import shutil
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from w2s_fast import files
from w2s_fast.errors import W2SError
from w2s_fast.files import file_hash
from w2s_fast.models.weights import sample_weights
from w2s_fast.store import StoreWarning
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


def test_a_damaged_newest_is_replaced_by_what_follows_the_one_before(tmp_path: Path) -> None:
    """It never counts among the last two, and no checkpoint at all starts the training again."""
    for step in (2, 4):
        checkpoint.save(tmp_path, step, 1.0, [("w", torch.tensor([step]))], {})
    for n, name in enumerate(("step-00000004", "step-00000002")):
        (tmp_path / name / "state.json").write_text("{}")
        outcome = ("continuing from step-00000002", "starting the training again")[n]
        with pytest.warns(StoreWarning, match=f"differs from its checksum.*; {outcome}"):
            found = checkpoint.load(tmp_path, {})
        assert (None if found is None else found.step) == (2, None)[n]
    checkpoint.save(tmp_path, 1, 1.0, [("w", torch.tensor([1]))], {})
    assert [p.name for p in checkpoint.finished(tmp_path)] == ["step-00000001"]


def test_one_that_may_not_be_read_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (2, 4):
        checkpoint.save(tmp_path, step, 1.0, [("w", torch.tensor([step]))], {})
    forbidden = tmp_path / "step-00000004" / "state.json"

    def read(path: Path) -> object:
        if path == forbidden:
            raise PermissionError(13, "Permission denied", str(path))
        return files.read_sealed(path)

    monkeypatch.setattr(checkpoint, "read_sealed", read)
    with pytest.raises(W2SError, match="step-00000004 may not be read .state.json: Permission"):
        checkpoint.load(tmp_path, {})


def test_a_kill_while_one_is_removed_leaves_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the same step, after its first attempt was damaged: removed, and then written again."""
    for step in (2, 4):
        checkpoint.save(tmp_path, step, 1.0, [("w", torch.tensor([step]))], {})
    real = shutil.rmtree

    def killed(folder: Path, **options: bool) -> None:
        if (Path(folder) / "state.json").exists():
            (Path(folder) / "state.json").unlink()
            raise SystemExit
        real(folder, **options)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(shutil, "rmtree", killed)
        checkpoint.save(tmp_path, 4, 1.0, [("w", torch.tensor([4]))], {})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = checkpoint.load(tmp_path, {})
    assert found is not None and found.step == 2
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000002"]


def test_files_outside_are_part_of_a_checkpoint(tmp_path: Path) -> None:
    for step in (2, 4):
        (tmp_path / f"best-{step}").write_bytes(b"weights")
        files = {f"best-{step}": file_hash(tmp_path / f"best-{step}")}
        checkpoint.save(tmp_path, step, 1.0, [("w", torch.tensor([step]))], {}, files=files)
    found = checkpoint.load(tmp_path, {})
    assert found is not None and found.files == files
    (tmp_path / "best-4").write_bytes(b"weighty")
    with pytest.warns(StoreWarning, match="best-4 differs from its checksum.*from step-00000002"):
        checkpoint.load(tmp_path, {})
    (tmp_path / "best-2").unlink()
    with pytest.warns(StoreWarning, match="best-2: No such file.*starting the training again"):
        assert checkpoint.load(tmp_path, {}) is None


def test_every_dtype_of_a_file_is_known_to_its_readers(tmp_path: Path) -> None:
    """A rank that does not read a tensor itself makes room for it by the dtype in the file."""
    floats = (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.complex64)
    whole = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
    unsigned = (torch.uint16, torch.uint32, torch.uint64)
    for dtype in (*floats, *whole, *unsigned, torch.float8_e4m3fn, torch.float8_e5m2):
        save_file({"x": torch.zeros(3).to(dtype)}, tmp_path / "x")
        with safe_open(tmp_path / "x", framework="pt") as f:
            assert getattr(torch, checkpoint._DTYPES[f.get_slice("x").get_dtype()]) == dtype


@pytest.mark.parametrize("bf16", [False, True])
def test_first_weights_are_compared_up_to_rounding(bf16: bool) -> None:
    """Processors draw numbers that differ in a last bit, which bf16 may round to its neighbour."""
    own = torch.tensor([1 / 3, 0.0, float("nan")])
    own = own.bfloat16().float() if bf16 else own

    def check(theirs: torch.Tensor | None) -> None:
        saved: Any = SimpleNamespace(path="p", read=lambda _: theirs)
        checkpoint.check_first_weights(saved, own)

    if bf16:
        check((own * (1 + 2**-7)).bfloat16().float())

    for same in (None, own, own * (1 + 1e-5)):
        check(same)
    for other in (own * 1.02, own + torch.tensor([0, 1e-4, 0])):
        with pytest.raises(W2SError, match="other weights"):
            check(other)


def test_a_sample_of_weights_reaches_the_end_of_a_tensor() -> None:
    model = torch.nn.Linear(1000, 1, bias=False)
    before = sample_weights(model)
    assert 60 < len(before) <= 64
    with torch.no_grad():
        model.weight[:, 500:] += 1
    assert not sample_weights(model).equal(before)


def test_one_of_another_version_is_named_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not record all that tells trainings apart; what it lacks is not named as a change."""
    monkeypatch.setattr(checkpoint, "_FORMAT", 1)
    checkpoint.save(tmp_path, 2, 1.0, [("w", torch.tensor([2]))], {"seed": 0})
    monkeypatch.undo()
    with pytest.raises(W2SError, match="step-00000002 was written by another version of w2s_fast"):
        checkpoint.load(tmp_path, {"seed": 0, "dtype": "torch.float32"})


def test_the_message_names_the_part_that_differs(tmp_path: Path) -> None:
    saved = {"watch": {"every": 2, "data": "a" * 64}, "seed": 0}
    checkpoint.save(tmp_path, 2, 1.0, [("w", torch.tensor([2]))], saved)
    for other, says in (
        ({"every": 2, "data": "a" * 64, "score": "nll"}, "watch.score was not set, now it is nll;"),
        ({"every": 3, "data": "a" * 64}, "watch.every was 2, now it is 3;"),
        (None, "watch was {'data': 'aa.*, now it is None;"),
    ):
        with pytest.raises(W2SError, match=says):
            checkpoint.load(tmp_path, {"watch": other, "seed": 0})
