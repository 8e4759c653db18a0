"""What a user installs: wheel, sdist, no compiler, and the name `kernels` left to its owner."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from helpers.paths import ROOT

from w2s_fast.version import __version__

# What is packed does not depend on it, and the core of the checkout is optimized.
QUICK = {"CXXFLAGS": "-O0"}
LINUX = sys.platform == "linux"
NEEDED = {"libm.so.6", "libc.so.6", "libstdc++.so.6", "libgcc_s.so.1", "libpthread.so.0"}
NEEDED |= {"ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"}  # thread-local storage
JUNK = (".git", ".venv", "build", "dist", "out", "*.egg-info", "*.so", "__pycache__", ".*_cache")


# An editable install answers for every w2s_fast.* module that a path entry does not have.
NO_EDITABLE = """
import sys
sys.meta_path[:] = [f for f in sys.meta_path if "__editable__" not in getattr(f, "__module__", "")]
"""


def _run(args: list[str], cwd: Path, **env: str) -> str:
    """Run a command and return everything it printed; fail the test if it failed."""
    done = subprocess.run(
        args,
        cwd=cwd,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


def _pip(*args: str, cwd: Path, **env: str) -> str:
    command = [sys.executable, "-m", "pip", *args, "--no-deps", "--no-build-isolation"]
    return _run(command, cwd, PIP_DISABLE_PIP_VERSION_CHECK="1", **env)


def _checkout(folder: Path) -> Path:
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*JUNK))
    (folder / "w2s_fast" / "_core_missing.txt").unlink(missing_ok=True)
    return folder


def _python_files() -> set[str]:
    """Paths inside a wheel of every module that must be in it."""
    names = {str(p.relative_to(ROOT)) for p in (ROOT / "w2s_fast").rglob("*.py")}
    names -= {"w2s_fast/kernels/__init__.py"}  # the bridge serves source checkouts only
    return names | {f"w2s_fast/kernels/{p.name}" for p in (ROOT / "kernels").glob("*.py")}


def _data_files() -> set[str]:
    """Templates of the page, and the files of the recipes."""
    folder = ROOT / "w2s_fast"
    found = [*(folder / "report" / "templates").iterdir(), *folder.glob("recipes/*/*.yaml")]
    assert {p.name for p in found} >= {"page.html.j2", "page.css", "page.js", "run.yaml"}
    return {str(p.relative_to(ROOT)) for p in found}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the source, with leftovers of other builds planted where they did harm before."""
    tree = _checkout(tmp_path_factory.mktemp("src") / "a checkout")
    tag = f"lib.linux-x86_64-{sys.implementation.cache_tag}"
    for stale in (f"build/{tag}/w2s_fast/deleted.py", f"build/{tag}/w2s_fast/libold.so"):
        (tree / stale).parent.mkdir(parents=True, exist_ok=True)
        (tree / stale).write_text("stale")
    (tree / "w2s_fast" / "_core.cpython-39-x86_64-linux-gnu.so").write_text("stale")
    (tree / "w2s_fast" / "_core_missing.txt").write_text("stale")
    return tree


@pytest.fixture(scope="module")
def wheel(tree: Path) -> Path:
    """The wheel built from ``tree``, compiled core included."""
    _pip("wheel", "-w", "dist", ".", cwd=tree, W2S_STRICT="1", W2S_CUDA="0", **QUICK)
    (path,) = (tree / "dist").glob("*.whl")
    return path


@pytest.mark.slow
def test_wheel_holds_exactly_the_package(wheel: Path) -> None:
    names = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    (core,) = (n for n in names if n.startswith("w2s_fast/_core"))
    assert core.endswith(".so")
    assert names - {core, "w2s_fast/py.typed"} == _python_files() | _data_files()
    facts = zipfile.ZipFile(wheel).read(f"w2s_fast-{__version__}.dist-info/METADATA").decode()
    assert wheel.name.startswith(f"w2s_fast-{__version__}-")
    assert f"\nVersion: {__version__}\n" in facts


@pytest.mark.slow
def test_installed_wheel_works_elsewhere(wheel: Path, tmp_path: Path) -> None:
    _pip("install", "--target", str(tmp_path), str(wheel), cwd=Path("/"))
    code = f"""
import torch, w2s_fast
from w2s_fast.ops import native
from w2s_fast.kernels import {", ".join(p.stem for p in (ROOT / "kernels").glob("*.py"))}
assert w2s_fast.__file__.startswith({str(tmp_path)!r}), w2s_fast.__file__
assert list(w2s_fast.kernels.__path__) == [{str(tmp_path / "w2s_fast" / "kernels")!r}]
assert native.missing() == "", native.missing()
from w2s_fast.report.page import _environment
_environment().get_template("page.html.j2")
z = torch.randn(5, 7, requires_grad=True)
w2s_fast.cross_entropy(z, torch.tensor([0, 1, 2, 3, 4])).backward()
assert z.grad.abs().sum() > 0
print("w2s-fast", w2s_fast.__version__)
"""
    assert f"w2s-fast {__version__}" in _run(
        [sys.executable, "-c", NO_EDITABLE + code], Path("/"), PYTHONPATH=str(tmp_path)
    )


@pytest.mark.slow
def test_sdist_is_complete_and_installs_without_a_compiler(tree: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "build", "--sdist", "--no-isolation", "-o", str(tmp_path)]
    _run([*command, str(tree)], tmp_path)
    (sdist,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as tar:
        inside = {n.split("/", 1)[1] for n in tar.getnames() if "/" in n}
        facts = tar.extractfile(f"w2s_fast-{__version__}/PKG-INFO")
        assert facts is not None and f"\nVersion: {__version__}\n" in facts.read().decode()
    assert sdist.name == f"w2s_fast-{__version__}.tar.gz"
    wanted = [p for p in (ROOT / "csrc").rglob("*") if p.suffix in (".cpp", ".h", ".inc", ".cu")]
    wanted += [*(ROOT / "kernels").glob("*.py"), ROOT / "w2s_fast/kernels/__init__.py"]
    assert {str(p.relative_to(ROOT)) for p in wanted} | _data_files() <= inside
    assert not [n for n in inside if n.endswith((".so", ".o", "_core_missing.txt"))]

    args = ["install", "-v", "--target", str(tmp_path / "site"), str(sdist)]
    said = _pip(*args, cwd=Path("/"), CXX="/bin/false", W2S_CUDA="0")
    assert "WARNING w2s_fast._core was not built" in said
    site = tmp_path / "site"
    assert "was not built" in (site / "w2s_fast" / "_core_missing.txt").read_text()
    have = {str(p.relative_to(site)) for p in (site / "w2s_fast").rglob("*.py")}
    assert have == _python_files()
    code = """
import torch, w2s_fast
z = torch.randn(5, 7)
loss = w2s_fast.cross_entropy(z, torch.tensor([0, 1, 2, 3, 4]), aux=0.5)
print("fallback", loss.item())
"""
    said = _run([sys.executable, "-c", NO_EDITABLE + code], Path("/"), PYTHONPATH=str(site))
    assert "falling back" in said and "fallback" in said


def test_strict_build_fails_without_a_compiler(tmp_path: Path) -> None:
    tree = _checkout(tmp_path / "src")
    with pytest.raises(AssertionError, match="looked for no-such-compiler"):
        _pip("wheel", "-w", "dist", ".", cwd=tree, W2S_STRICT="1", CXX="no-such-compiler")


@pytest.mark.slow
def test_cuda_build_that_was_asked_for_fails_without_nvcc(wheel: Path, tree: Path) -> None:
    """In the tree of the wheel, whose core is built already."""
    env = {**QUICK, "W2S_CUDA": "1", "NVCC": "no-such-nvcc"}
    with pytest.raises(AssertionError, match="ERROR w2s_fast._cuda was not built.*no-such-nvcc"):
        _pip("wheel", "-w", "dist", ".", cwd=tree, **env)
    assert wheel.exists()


@pytest.mark.slow
def test_objects_are_portable(wheel: Path, tree: Path) -> None:
    """No weak symbol in an ISA file (the linker might keep that copy for every processor), and no
    library that a machine with torch does not have."""
    if not LINUX:
        return
    (folder,) = (tree / "build").glob("core-*")
    units = sorted(folder.glob("isa_*.o"))
    assert units
    for unit in units:
        symbols = [line.split() for line in _run(["nm", str(unit)], tree).splitlines()]
        weak = [words[-1] for words in symbols if words[-2] in ("W", "V", "u")]
        assert not weak, f"{unit.name}: {weak[:5]}"
    (core,) = folder.glob("_core.*.so")
    lines = _run(["readelf", "-d", str(core)], tree).splitlines()
    needed = {line.split("[")[1].rstrip("]") for line in lines if "(NEEDED)" in line}
    assert needed <= NEEDED, needed - NEEDED


def test_kernels_is_not_a_package_of_ours() -> None:
    assert not (ROOT / "kernels" / "__init__.py").exists()
    assert not [p for p in (ROOT / "kernels").iterdir() if p.is_dir() and p.name[0].isalpha()]


@pytest.mark.slow
def test_transformers_imports_beside_us() -> None:
    """transformers imports a library called `kernels`; our folder of that name must not answer."""
    code = """
import sys
sys.path.insert(0, ".")
from transformers import LlamaForCausalLM
ours = getattr(sys.modules.get("kernels"), "__file__", None)
assert ours is None, ours
print("ok", LlamaForCausalLM.__name__)
"""
    assert "ok LlamaForCausalLM" in _run([sys.executable, "-c", code], ROOT)


@pytest.mark.parametrize(
    ("uv", "installer"), [("", "-m pip install -qq"), ("uv", "uv pip install")]
)
def test_pip_or_uv_makes_the_environment(uv: str, installer: str, tmp_path: Path) -> None:
    """And each of its calls is held to the pinned versions; pip prints errors alone."""
    command = ["make", "--dry-run", "run", "wheels", f"VENV={tmp_path}", f"UV={uv}"]
    lines = _run(command, ROOT).splitlines()
    installs = [line for line in lines if " install " in line]
    assert len(installs) > 5
    assert [x for x in installs if installer not in x or "-c constraints.txt" not in x] == []
