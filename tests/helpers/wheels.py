"""Environments that have an installed wheel and cannot see the checkout."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from helpers.paths import ROOT
from tools.wheels.pythons import Python

CONSTRAINTS = ["-c", str(ROOT / "constraints.txt")]
# Settings of the tests, which a user does not have.
_OURS = ("PYTHON", "W2S_", "TRITON_", "HYPOTHESIS_")


def call(command: Sequence[str | Path], folder: Path) -> str:
    """Run a program in ``folder`` as a user would; return what it prints, fail if it fails."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(_OURS)}
    done = subprocess.run(
        list(map(str, command)), cwd=folder, env=env, text=True, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


def make_environment(python: Python, folder: Path) -> Path:
    """Make an empty environment in ``folder`` and return its folder of programs."""
    call([python.path, "-m", "venv", folder], folder.parent)
    return folder / "bin"


def install(programs: Path, *what: str) -> None:
    """Install with pip into the environment of a folder of programs."""
    command = [programs / "python", "-m", "pip", "install", "--quiet"]
    call([*command, "--disable-pip-version-check", *what], programs)
