"""What is built for which Python and target, with which commands; nothing is compiled here."""

from __future__ import annotations

import os
import runpy
import sys
import sysconfig
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from helpers.paths import ROOT

from tools.wheels import build, pythons
from tools.wheels.build import TARGETS, build_sdist, build_wheel, variables
from tools.wheels.pythons import VERSIONS, Python, find_pythons

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
HERE = Python(".".join(map(str, sys.version_info[:2])), Path(sys.executable))
OTHER = Python("3.12", Path("/opt/python3.12"))


class Commands:
    """Stands in for the programs: notes every command, and writes the files that they would."""

    def __init__(self) -> None:
        self.seen: list[tuple[list[str], Mapping[str, str]]] = []

    def __call__(self, command: Sequence[str], more: Mapping[str, str] | None = None) -> None:
        command = [str(word) for word in command]
        self.seen.append((command, more or {}))
        target = (more or {}).get("W2S_CORE") == "0" and "any" or "linux_x86_64"
        if "--sdist" in command:
            self._write(command, "--outdir", "p-1.tar.gz")
        elif command[3:4] == ["wheel"]:
            self._write(command, "-w", f"p-1-{target}.whl")
        elif "auditwheel" in command:
            assert Path(command[-1]).is_file()
            self._write(command, "-w", "p-1-manylinux.whl")

    def _write(self, command: list[str], option: str, name: str) -> None:
        folder = Path(command[command.index(option) + 1])
        folder.mkdir(exist_ok=True)
        (folder / name).write_text("new")

    def of(self, word: str) -> tuple[list[str], Mapping[str, str]]:
        """The one command that has a word."""
        ((command, more),) = ((c, m) for c, m in self.seen if word in c)
        return command, more


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> Commands:
    commands = Commands()
    monkeypatch.setattr(build, "_run", commands)
    return commands


def test_versions_begin_with_the_oldest_that_the_package_allows() -> None:
    assert PROJECT["project"]["requires-python"] == f">={VERSIONS[0]}"


def test_pythons_that_are_missing_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    found, missing = find_pythons([HERE.version, "3.99"])
    assert found == [HERE] and missing == ["3.99"]
    monkeypatch.setattr(pythons, "_version_of", lambda path: "")
    assert find_pythons() == ([], [*VERSIONS])


def pretend(path: Path, version: tuple[int, int], flags: str = "", end: str = "") -> None:
    """Write a Python that says it is another one."""
    facts = f"sys.version_info, sys.abiflags = {version}, '{flags}'"
    code = f"import sys; {facts}; exec(sys.argv[1]); {end or 'pass'}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!/bin/sh\nexec {sys.executable} -S -c "{code}" "$2"\n')
    path.chmod(0o755)


def test_pythons_are_looked_for_in_path_and_pyenv(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program that does not start is not taken, nor one of another version or ABI."""
    monkeypatch.setattr(pythons, "_PYENV", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    pretend(tmp_path / "path/python3.98", (3, 98))
    pretend(tmp_path / "3.98.0/bin/python", (3, 98))
    pretend(tmp_path / "path/python3.99", (3, 98))
    pretend(tmp_path / "3.97.0t/bin/python", (3, 97), flags="t")
    pretend(tmp_path / "3.97.2/bin/python", (3, 97))
    pretend(tmp_path / "3.96.0/bin/python", (3, 96), end="sys.exit(1)")
    pretend(tmp_path / "3.95.0/bin/python", (3, 95))
    (tmp_path / "3.95.0/bin/python").write_text("#!/no/such/shell\n")
    found, missing = find_pythons(["3.95", "3.96", "3.97", "3.98", "3.99"])
    paths = ["3.97.2/bin/python", "path/python3.98"]
    assert [str(p.path.relative_to(tmp_path)) for p in found] == paths
    assert missing == ["3.95", "3.96", "3.99"]


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


@pytest.mark.parametrize("target", ["x86_64", "aarch64"])
def test_a_core_that_does_not_compile_is_an_error(target: str) -> None:
    """Otherwise the wheel would have none; CUDA kernels are for who builds beside a GPU."""
    chosen = variables(OTHER, target)
    assert (chosen["W2S_STRICT"], chosen["W2S_CUDA"]) == ("1", "0")


def test_arm_is_compiled_by_zig_for_the_c_library_that_is_promised() -> None:
    chosen = variables(OTHER, "aarch64")
    assert chosen["CXX"] == f"{sys.executable} -m ziglang c++ -target aarch64-linux-gnu.2.28"
    assert chosen["_PYTHON_HOST_PLATFORM"] == "linux-aarch64"
    assert chosen["SETUPTOOLS_EXT_SUFFIX"] == ".cpython-312-aarch64-linux-gnu.so"


@pytest.mark.parametrize("target", ["x86_64", "aarch64", "any"])
def test_a_wheel_is_built_by_its_python_from_the_sdist(
    target: str, commands: Commands, tmp_path: Path
) -> None:
    wheel = build_wheel(Path("/p-1.tar.gz"), OTHER, target, tmp_path / "out")
    assert commands.seen[0][0][:3] == [str(OTHER.path), "-m", "venv"]
    environment = commands.seen[0][0][3]
    install, _ = commands.of("install")
    make, chosen = commands.of("wheel")
    assert install[0] == make[0] == f"{environment}/bin/python"
    assert install[-3:] == PROJECT["build-system"]["requires"]
    assert install[install.index("-c") + 1] == str(ROOT / "constraints.txt")
    assert {"--no-deps", "--no-build-isolation", "/p-1.tar.gz"} <= {*make}
    assert chosen == variables(OTHER, target)
    assert wheel == tmp_path / "out" / f"p-1-{'any' if target == 'any' else 'manylinux'}.whl"
    assert wheel.read_text() == "new" and [*wheel.parent.iterdir()] == [wheel]
    assert not Path(environment).parent.exists()


def test_auditwheel_finds_patchelf_without_an_active_environment(
    commands: Commands, tmp_path: Path
) -> None:
    build_wheel(Path("/p-1.tar.gz"), OTHER, "x86_64", tmp_path)
    _, chosen = commands.of("auditwheel")
    assert chosen["PATH"].split(os.pathsep)[0] == sysconfig.get_path("scripts")
    assert chosen["PATH"].endswith(os.environ["PATH"])


def test_files_of_an_earlier_build_are_replaced(commands: Commands, tmp_path: Path) -> None:
    for name in ("p-0.tar.gz", "p-1.tar.gz", "p-1-any.whl", "p-1-manylinux.whl"):
        (tmp_path / name).write_text("old")
    made = [build_sdist(tmp_path)]
    made += [build_wheel(made[0], OTHER, target, tmp_path) for target in ("x86_64", "any")]
    assert [path.name for path in made] == ["p-1.tar.gz", "p-1-manylinux.whl", "p-1-any.whl"]
    assert [path.read_text() for path in made] == ["new"] * 3


def test_one_pure_wheel_and_one_a_python_of_the_others(
    commands: Commands,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked: list[object] = []

    def find(versions: object) -> tuple[list[Python], list[str]]:
        asked.append(versions)
        return [HERE, OTHER], ["3.99"]

    monkeypatch.setattr(build, "find_pythons", find)
    assert build.main([str(tmp_path)]) == 0
    printed = capsys.readouterr()
    assert "Python 3.99 is not installed" in printed.err
    assert printed.out.split() == ["p-1-manylinux.whl"] * 4 + ["p-1-any.whl"]
    made = [c[0] for c, _ in commands.seen if c[1:3] == ["-m", "venv"]]
    assert made == [str(p.path) for p in (HERE, OTHER, HERE, OTHER, HERE)]
    assert len([c for c, _ in commands.seen if "--sdist" in c]) == 1

    assert build.main([str(tmp_path), "--pythons", "3.11", "3.12", "--targets", "any"]) == 0
    assert capsys.readouterr().out.split() == ["p-1-any.whl"]
    assert asked == [None, ["3.11", "3.12"]]


def test_no_python_is_an_error(
    commands: Commands, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build.main([str(tmp_path), "--pythons", "3.99"]) == 2
    assert "no Python to build for" in capsys.readouterr().err and not commands.seen
