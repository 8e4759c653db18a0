"""Damage to one file: what disks, copies and people do to it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np


def flip(path: Path, rng: np.random.Generator, others: Sequence[Path]) -> None:
    """Flip one bit."""
    content = bytearray(path.read_bytes() or b"\0")
    position = int(rng.integers(8 * len(content)))
    content[position // 8] ^= 1 << position % 8
    _write(path, bytes(content))


def truncate(path: Path, rng: np.random.Generator, others: Sequence[Path]) -> None:
    """Lose the end, from one byte to all but one."""
    content = path.read_bytes()
    _write(path, content[: int(rng.integers(1, max(2, len(content))))])


def empty(path: Path, rng: np.random.Generator, others: Sequence[Path]) -> None:
    """Lose all content, as a file system does that lost power."""
    _write(path, b"")


def zero(path: Path, rng: np.random.Generator, others: Sequence[Path]) -> None:
    """Keep the length and lose the content."""
    _write(path, b"\0" * path.stat().st_size)


def lengthen(path: Path, rng: np.random.Generator, others: Sequence[Path]) -> None:
    """Repeat the end."""
    content = path.read_bytes()
    _write(path, content + content[-int(rng.integers(1, len(content) + 2)) :])


def swap(path: Path, rng: np.random.Generator, others: Sequence[Path]) -> None:
    """Exchange the content with another file of the kind; with its own beginning if alone."""
    if not others:
        _write(path, path.read_bytes()[::-1])
        return
    other = others[int(rng.integers(len(others)))]
    mine, its = path.read_bytes(), other.read_bytes()
    _write(path, its)
    _write(other, mine)


def remove(path: Path, rng: np.random.Generator, others: Sequence[Path]) -> None:
    """Delete it."""
    path.unlink()


def replace_by_folder(path: Path, rng: np.random.Generator, others: Sequence[Path]) -> None:
    """Put a folder with a file in its place."""
    path.unlink()
    path.mkdir()
    (path / "file").write_text("text")


def forbid(path: Path, rng: np.random.Generator, others: Sequence[Path]) -> None:
    """Take all permissions from it; root has to obey them, see ``campaigns.program``."""
    path.chmod(0)


Damage = Callable[[Path, np.random.Generator, Sequence[Path]], None]
DAMAGES: dict[str, Damage] = {
    "flipped bit": flip,
    "truncated": truncate,
    "emptied": empty,
    "zeroed": zero,
    "longer": lengthen,
    "swapped": swap,
    "removed": remove,
    "folder in its place": replace_by_folder,
    "no permission": forbid,
}
# Half of the cases are single bits and lost ends.
WEIGHTS = np.array([4, 3, 1, 1, 1, 1, 1, 1, 1]) / 14


def _write(path: Path, content: bytes) -> None:
    path.unlink()  # not into a file that a copy shares
    path.write_bytes(content)


def restore(state: Path, folder: Path) -> None:
    """Make ``folder`` a copy of ``state``."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(state, folder, symlinks=True)
