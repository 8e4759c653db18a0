"""Damage to any file that a user names: what is there instead of its text."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random

FileFault = Callable[[Path, Random], None]


def missing(path: Path, rng: Random) -> None:
    path.unlink()


def empty(path: Path, rng: Random) -> None:
    path.write_bytes(b"")


def directory(path: Path, rng: Random) -> None:
    path.unlink()
    path.mkdir()


def linked_to_itself(path: Path, rng: Random) -> None:
    path.unlink()
    path.symlink_to(path.name)


def linked_to_nothing(path: Path, rng: Random) -> None:
    path.unlink()
    path.symlink_to("nothing-there")


def pipe(path: Path, rng: Random) -> None:
    """A named pipe, which would be read for ever."""
    path.unlink()
    os.mkfifo(path)


def cut_short(path: Path, rng: Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: rng.randrange(1, len(content) - 1)])


def random_bytes(path: Path, rng: Random) -> None:
    path.write_bytes(rng.randbytes(rng.choice((1, 40, 5000))))


def wrong_encoding(path: Path, rng: Random) -> None:
    """As another program saved it, with a letter that UTF-8 writes in two bytes."""
    text = path.read_text() + "# \u00e9\n"
    path.write_bytes(text.encode(rng.choice(("utf-16", "utf-32", "latin-1"))))


def zeros(path: Path, rng: Random) -> None:
    """What a power cut leaves of a file whose size was already written."""
    path.write_bytes(bytes(path.stat().st_size))


def swapped(path: Path, rng: Random) -> None:
    """An archive under the name of the file."""
    shutil.make_archive(str(path), "zip", path.parent, path.name)
    os.replace(f"{path}.zip", path)


# Those after which nothing can be read as text, whatever the format.
FILE_FAULTS: dict[str, FileFault] = {
    "missing": missing,
    "empty": empty,
    "directory": directory,
    "linked to itself": linked_to_itself,
    "linked to nothing": linked_to_nothing,
    "pipe": pipe,
    "random bytes": random_bytes,
    "zeros": zeros,
    "archive": swapped,
}
