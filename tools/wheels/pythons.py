"""The interpreters that wheels are built for."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

VERSIONS = ("3.11", "3.12", "3.13")  # from requires-python to the newest that torch has wheels for
_PYENV = Path.home() / ".pyenv" / "versions"


@dataclass(frozen=True)
class Python:
    """An interpreter.

    Attributes:
        version: Such as "3.12".
        path: Its executable.
    """

    version: str
    path: Path


def find_pythons(versions: Sequence[str] | None = None) -> tuple[list[Python], list[str]]:
    """Return the interpreters of the versions (None: ``VERSIONS``) and the versions without one."""
    found, missing = [], []
    for version in versions or VERSIONS:
        paths = (path for path in _candidates(version) if _version_of(path) == version)
        if (path := next(paths, None)) is not None:
            found.append(Python(version, path))
        else:
            missing.append(version)
    return found, missing


def _candidates(version: str) -> list[Path]:
    named = shutil.which(f"python{version}")
    installed = sorted(_PYENV.glob(f"{version}.*/bin/python"))  # any release makes the same wheel
    return [Path(sys.executable), *([Path(named)] if named else []), *installed]


def _version_of(path: Path) -> str:
    """Return "X.Y", with letters after it if its wheels are others; empty if it does not start."""
    code = "import sys; print('.'.join(map(str, sys.version_info[:2])) + sys.abiflags)"
    try:
        done = subprocess.run([str(path), "-c", code], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()
