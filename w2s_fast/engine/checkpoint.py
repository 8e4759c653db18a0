"""Checkpoints in the middle of training: safetensors and JSON, whole or not there at all.

``<dir>/step-00000120/`` holds ``state.safetensors`` (weights, optimizer, thresholds, random state,
log) and ``state.json`` (step, and what the training was). It is written beside its final name,
flushed, and renamed, so a kill at any point leaves the previous one intact. The newest one wins;
older ones are removed after it stands.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from w2s_fast.errors import W2SError

_PREFIX = "step-"


class Checkpoint(NamedTuple):
    """What was saved: the step to continue with, and all tensors by dotted name."""

    step: int
    seconds: float
    tensors: dict[str, Tensor]


def save(
    directory: Path, step: int, seconds: float, tensors: dict[str, Tensor], what: dict[str, Any]
) -> None:
    """Write the checkpoint "``step`` steps are done" and remove older ones.

    Args:
        directory: folder of this training's checkpoints; made if missing.
        step: optimizer steps done.
        seconds: training time so far.
        tensors: by dotted name, on any device.
        what: identity of the training, JSON values; compared on ``load``.

    Raises:
        W2SError: if it cannot be written, a full disk for instance; older ones are kept.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    final = directory / f"{_PREFIX}{step:08d}"
    temporary = directory / f".{final.name}.{os.getpid()}"
    try:
        temporary.mkdir(parents=True, exist_ok=True)
        ready = {k: t.detach().to("cpu", copy=True).contiguous() for k, t in tensors.items()}
        save_file(ready, temporary / "state.safetensors")
        meta = {"step": step, "seconds": seconds, "training": what}
        (temporary / "state.json").write_text(json.dumps(meta, indent=1, sort_keys=True))
        for part in temporary.iterdir():
            _flush(part)
        os.replace(temporary, final)
        _flush(directory)
    except (OSError, SafetensorError) as e:
        shutil.rmtree(temporary, ignore_errors=True)
        raise W2SError(
            f"checkpoint {final} could not be written: {e}; free some space and run again, the "
            "training continues from the checkpoint before"
        ) from e
    for old in _finished(directory):
        if old != final:
            shutil.rmtree(old, ignore_errors=True)


def load(directory: Path, what: dict[str, Any]) -> Checkpoint | None:
    """The newest checkpoint of this training, or None.

    Raises:
        W2SError: if it is damaged, or of another training; the message names what differs.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    found = _finished(directory)
    for left_by_a_kill in directory.glob(f".{_PREFIX}*"):
        shutil.rmtree(left_by_a_kill, ignore_errors=True)
    if not found:
        return None
    newest = found[-1]
    try:
        meta = json.loads((newest / "state.json").read_text())
        saved, step, seconds = meta["training"], int(meta["step"]), float(meta["seconds"])
        differs = sorted(k for k in {*saved, *what} if saved.get(k) != what.get(k))
        if differs:
            raise W2SError(
                f"checkpoint {newest} is of another training: "
                f"{_difference(differs[0], saved, what)}; use another directory, or remove this "
                "one to start again"
            )
        return Checkpoint(step, seconds, load_file(newest / "state.safetensors"))
    except (OSError, KeyError, json.JSONDecodeError, SafetensorError) as e:
        raise W2SError(f"checkpoint {newest} is damaged ({e}); remove it to continue") from e


def _finished(directory: Path) -> list[Path]:
    if not directory.is_dir():
        return []
    return sorted(p for p in directory.iterdir() if p.name.startswith(_PREFIX))


def _difference(key: str, saved: dict[str, Any], what: dict[str, Any]) -> str:
    short = [str(d.get(key))[:60] for d in (saved, what)]
    return f"{key} was {short[0]}, now it is {short[1]}"


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
