"""Wheels: their core without torch, also on ARM, their requirements, and the main job.

Builds take minutes, so they run in `make test-long`; aarch64 needs ziglang and qemu-user.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers.paths import ROOT
from helpers.wheels import CONSTRAINTS, call, install, make_environment

from tools.wheels.build import GLIBC_AARCH64, build_sdist, build_wheel
from tools.wheels.pythons import VERSIONS, Python, find_pythons
from w2s_fast.version import __version__

LONG = os.environ.get("W2S_LONG") == "1"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
HERE = Python(".".join(map(str, sys.version_info[:2])), Path(sys.executable))
# What a user may install beside the package.
EXTRAS = sorted(
    {*PROJECT["optional-dependencies"]} - {"test", "dev", "docs", "wheels", "bench-peers"}
)
# Their authors publish source alone; every other requirement has to be a wheel.
SOURCE_ONLY = {"chess", "deepspeed"}
needs_time = pytest.mark.skipif(not LONG, reason="minutes: make test-long")
needs_zig = pytest.mark.skipif(
    importlib.util.find_spec("ziglang") is None or shutil.which("qemu-aarch64") is None,
    reason="needs ziglang of the extra wheels, and qemu-user",
)
needs_auditwheel = pytest.mark.skipif(
    importlib.util.find_spec("auditwheel") is None, reason="needs auditwheel of the extra wheels"
)


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


@pytest.fixture(scope="module")
def wheel_of(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Builds the wheel of a Python for x86-64, once."""

    @functools.cache
    def build(version: str) -> Path:
        return build_wheel(sdist, installed(version), "x86_64", tmp_path_factory.mktemp("wheels"))

    return build


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[Path]:
    """A folder for an environment, which may take a gigabyte."""
    yield tmp_path / "venv"
    shutil.rmtree(tmp_path / "venv", ignore_errors=True)


def installed(version: str) -> Python:
    pythons, _ = find_pythons([version])
    return pythons[0] if pythons else pytest.skip(f"Python {version} is not installed")


@needs_time
@needs_auditwheel
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("version", VERSIONS)
def test_a_wheel_of_every_python(
    version: str, wheel_of: Callable[[str], Path], environment: Path, tmp_path: Path
) -> None:
    """Its core is right where numpy is all that it finds."""
    wheel = wheel_of(version)
    cp = f"cp{version.replace('.', '')}"
    assert re.fullmatch(f"w2s_fast-{__version__}-{cp}-{cp}-manylinux_.*_x86_64.whl", wheel.name)
    programs = make_environment(installed(version), environment)
    install(programs, *CONSTRAINTS, "numpy")
    install(programs, "--no-deps", str(wheel))
    call([programs / "python", ROOT / "tests" / "native" / "core_check.py"], tmp_path)


@needs_time
@needs_auditwheel
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("version", VERSIONS)
def test_requirements_resolve(
    version: str, wheel_of: Callable[[str], Path], tmp_path: Path
) -> None:
    """With every extra, to the pinned versions. Only metadata is read, where the index allows."""
    report = tmp_path / "report.json"
    pip = [sys.executable, "-m", "pip", "--python", str(installed(version).path), "install"]
    options = ["--dry-run", "--ignore-installed", "--use-feature=fast-deps", "--report", report]
    options += ["--only-binary=:all:", f"--no-binary={','.join(SOURCE_ONLY)}", *CONSTRAINTS]
    call([*pip, *options, f"{wheel_of(version)}[{','.join(EXTRAS)}]"], tmp_path)
    found = json.loads(report.read_text())["install"]
    urls = {item["metadata"]["name"].lower(): item["download_info"]["url"] for item in found}
    assert {name for name, url in urls.items() if url.endswith(".tar.gz")} == SOURCE_ONLY
    assert urls.keys() >= {"torch", "trl", "shtab", "kernels", "lightning", "peft", "gguf"}


@needs_time
@needs_auditwheel
@pytest.mark.timeout(3600)
def test_the_main_job_and_trl_from_a_wheel(
    wheel_of: Callable[[str], Path], environment: Path, tmp_path: Path
) -> None:
    """In a new environment and an empty folder, with what the wheel requires."""
    programs = make_environment(installed(VERSIONS[0]), environment)
    install(programs, *CONSTRAINTS, f"{wheel_of(VERSIONS[0])}[hf,trl]")
    folder = tmp_path / "empty"
    folder.mkdir()
    where = "import sys, w2s_fast._core as core; print(core.__file__, *sys.path, sep='\\n')"
    core, *path = call([programs / "python", "-c", where], folder).splitlines()
    assert Path(core).is_relative_to(environment)
    assert not [entry for entry in path if Path(entry).is_relative_to(ROOT)]

    call([programs / "w2s-fast", "run", "--out", "out"], folder)
    assert {"results.json", "items.json", "plot.png", "report.html"} <= {
        file.name for file in (folder / "out").iterdir()
    }
    results = json.loads((folder / "out" / "results.json").read_text())
    assert results["provenance"]["ops"] == {"cross_entropy": ["cpp"]}
    runs = {(run["name"], run["seed"]): run for run in results["runs"]}
    assert runs.keys() == {(name, seed) for name in ("xent", "logconf") for seed in range(3)}
    assert all(0.7 < run[model] <= 1 for run in runs.values() for model in ("weak", "ceiling"))
    assert all(run["weak"] < run["student"] <= 1 for run in runs.values())

    for name in ("tiny.py", "trl_sft.py", "trl_dpo.py", "trl_reward.py"):
        shutil.copy2(ROOT / "examples" / name, folder)
    for name in ("trl_sft.py", "trl_dpo.py", "trl_reward.py"):
        assert "train_loss" in call([programs / "python", name], folder)


@needs_time
@pytest.mark.timeout(900)
def test_a_pure_wheel_has_no_core(sdist: Path, tmp_path: Path) -> None:
    wheel = build_wheel(sdist, HERE, "any", tmp_path)
    assert wheel.name == f"w2s_fast-{__version__}-py3-none-any.whl"
    names = zipfile.ZipFile(wheel).namelist()
    assert not [name for name in names if name.endswith(".so")]


@needs_time
@needs_auditwheel
@needs_zig
@pytest.mark.timeout(1800)
def test_a_wheel_for_arm(sdist: Path, tmp_path: Path) -> None:
    wheel = build_wheel(sdist, HERE, "aarch64", tmp_path)
    cp = f"cp{HERE.version.replace('.', '')}"
    name = f"w2s_fast-{__version__}-{cp}-{cp}-manylinux_2_(\\d+)_aarch64.whl"
    assert (match := re.fullmatch(name, wheel.name)), wheel.name
    # auditwheel names what the symbols need: at most the version that Zig compiles against.
    assert int(match[1]) <= int(GLIBC_AARCH64.removeprefix("2."))
    archive = zipfile.ZipFile(wheel)
    (core,) = (name for name in archive.namelist() if name.endswith(".so"))
    assert core == f"w2s_fast/_core.cpython-{cp[2:]}-aarch64-linux-gnu.so"
    assert int.from_bytes(archive.read(core)[18:20], "little") == 183  # EM_AARCH64 of elf.h


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
