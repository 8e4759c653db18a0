"""Wheels: which are built, and that the core in them is right without torch, on ARM too.

Builds take minutes, so they run in `make test-long`; aarch64 needs ziglang and qemu-user.
"""

from __future__ import annotations

import importlib.util
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.paths import ROOT

from tools.wheels.build import TARGETS, build_sdist, build_wheel, variables
from tools.wheels.pythons import VERSIONS, Python, find_pythons

LONG = os.environ.get("W2S_LONG") == "1"
HERE = Python(".".join(map(str, sys.version_info[:2])), Path(sys.executable))
needs_time = pytest.mark.skipif(not LONG, reason="minutes: make test-long")
needs_zig = pytest.mark.skipif(
    importlib.util.find_spec("ziglang") is None or shutil.which("qemu-aarch64") is None,
    reason="needs ziglang of the extra wheels, and qemu-user",
)
needs_auditwheel = pytest.mark.skipif(
    importlib.util.find_spec("auditwheel") is None, reason="needs auditwheel of the extra wheels"
)


def test_versions_begin_with_the_oldest_that_the_package_allows() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == f">={VERSIONS[0]}"


def test_pythons_that_are_missing_are_named() -> None:
    found, missing = find_pythons([HERE.version, "3.99"])
    assert [p.version for p in found] == [HERE.version] and missing == ["3.99"]


def test_the_build_reads_the_target(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of x86 instruction sets are no part of an ARM core, and a pure wheel has none."""
    import setuptools

    monkeypatch.setattr(setuptools, "setup", lambda **options: None)
    cores = {}
    for target in TARGETS:
        with monkeypatch.context() as patch:
            for name, value in variables(HERE, target).items():
                patch.setenv(name, value)
            extensions = runpy.run_path(str(ROOT / "setup.py"))["extensions"]()
            cores[target] = {s for e in extensions if e.name.endswith("_core") for s in e.sources}
    assert cores["any"] == set()
    assert cores["x86_64"] - cores["aarch64"] == {
        f"csrc/cpu/isa_{isa}.cpp" for isa in ("avx2", "avx512")
    }
    assert "csrc/cpu/isa_base.cpp" in cores["aarch64"]


def test_the_core_is_right_with_numpy_alone() -> None:
    """What is run in every wheel; here in the core of the tree."""
    script = ROOT / "tests" / "native" / "core_check.py"
    done = subprocess.run(
        [sys.executable, str(script)], env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in ("base", "avx2", "avx512")


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_sdist(tmp_path_factory.mktemp("sdist"))


@needs_time
@needs_auditwheel
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("version", VERSIONS)
def test_a_wheel_of_every_python(version: str, sdist: Path, tmp_path: Path) -> None:
    pythons, _ = find_pythons([version])
    if not pythons:
        pytest.skip(f"Python {version} is not installed")
    wheel = build_wheel(sdist, pythons[0], "x86_64", tmp_path / "wheels")
    assert "manylinux" in wheel.name and f"cp{version.replace('.', '')}" in wheel.name
    environment = tmp_path / "venv"
    clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    subprocess.run([str(pythons[0].path), "-m", "venv", str(environment)], check=True, env=clean)
    python = str(environment / "bin" / "python")
    constraints = ["-c", str(ROOT / "constraints.txt")]
    install = [python, "-m", "pip", "install", "--quiet"]
    subprocess.run([*install, *constraints, "numpy"], check=True, env=clean)
    subprocess.run([*install, "--no-deps", str(wheel)], check=True, env=clean)
    script = ROOT / "tests" / "native" / "core_check.py"
    subprocess.run([python, str(script)], check=True, cwd=tmp_path, env=clean)


@needs_time
@pytest.mark.timeout(900)
def test_a_pure_wheel_has_no_core(sdist: Path, tmp_path: Path) -> None:
    import zipfile

    wheel = build_wheel(sdist, HERE, "any", tmp_path)
    assert wheel.name.endswith("-py3-none-any.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert not [name for name in names if name.endswith(".so")]


def run_platform(target: str, emulator: list[str], folder: Path) -> dict[str, np.ndarray]:
    """Compile platform.cpp and the core for a target of Zig, run it, and return what it prints."""
    import setuptools

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setuptools, "setup", lambda **options: None)
        isa_flags = runpy.run_path(str(ROOT / "setup.py"))["ISA_FLAGS"]
    zig = [sys.executable, "-m", "ziglang", "c++", "-target", target, "-O2", "-std=c++17"]
    sources = [ROOT / "tests/native/platform.cpp", *sorted((ROOT / "csrc/cpu").glob("*.cpp"))]
    sources += [ROOT / "csrc/memory.cpp", ROOT / "csrc/parallel.cpp"]
    objects = []
    for source in sources:
        flags = isa_flags.get(source.name, [])
        if flags and not target.startswith("x86_64"):
            continue
        objects.append(str(folder / f"{source.stem}.o"))
        subprocess.run(
            [*zig, *flags, "-fno-math-errno", "-c", str(source), "-o", objects[-1]], check=True
        )
    binary = folder / "platform"
    subprocess.run([*zig, "-static", *objects, "-o", str(binary)], check=True)
    env = {**os.environ, "W2S_CPU_CAPABILITY": "base"}
    done = subprocess.run(
        [*emulator, str(binary)], capture_output=True, text=True, check=True, env=env
    )
    lines = (line.split(":") for line in done.stdout.splitlines())
    return {what: np.array(numbers.split(), dtype=np.float64) for what, numbers in lines}


@needs_time
@needs_zig
@pytest.mark.timeout(1800)
def test_arm_computes_what_x86_computes(tmp_path: Path) -> None:
    for name in ("arm", "x86"):
        (tmp_path / name).mkdir()
    arm = run_platform("aarch64-linux-musl", ["qemu-aarch64"], tmp_path / "arm")
    x86 = run_platform("x86_64-linux-musl", [], tmp_path / "x86")
    assert arm.keys() == x86.keys() and len(arm) == 6
    for what, values in x86.items():
        np.testing.assert_allclose(arm[what], values, rtol=2e-6, atol=2e-7, err_msg=what)
