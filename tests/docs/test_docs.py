"""The documents tell the truth: Python blocks run, commands and files they name exist."""

from __future__ import annotations

import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from helpers.paths import ROOT

import w2s_fast
from w2s_fast.config import RunConfig
from w2s_fast.losses import LOSSES
from w2s_fast.losses.distillation import DISTILLATIONS
from w2s_fast.losses.policy import POLICY_LOSSES
from w2s_fast.losses.preference import PREFERENCES
from w2s_fast.methods import METHODS
from w2s_fast.sweeps import SweepConfig

DOCS = sorted(
    [
        ROOT / name
        for name in (
            "README.md",
            "CONTRIBUTING.md",
            "SECURITY.md",
            "CODE_OF_CONDUCT.md",
            "csrc/README.md",
        )
    ]
    + list((ROOT / "docs").glob("*.md"))
)
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# commands that are not ours to check
_ELSEWHERE = {"git", "cd", "pip", "export", "source", "torchrun", "deepspeed", "sbatch"}
_ELSEWHERE |= {"docker", "hf"}


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _blocks(path: Path, language: str) -> list[tuple[int, str]]:
    """(line number, text) of every fenced block in ``language``."""
    text = path.read_text()
    return [
        (text.count("\n", 0, m.start()) + 2, m.group(2))
        for m in _BLOCK.finditer(text)
        if m.group(1) == language
    ]


@pytest.mark.slow
@pytest.mark.parametrize("path", DOCS, ids=_name)
def test_python_blocks_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of one document share their names and run in order, in an empty directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    names: dict[str, object] = {"__name__": "__main__"}
    for line, code in _blocks(path, "python"):
        # A block that starts with a file name is that file: later blocks and specs import it.
        if match := re.match(r"# file: (\S+\.py)\n", code):
            (tmp_path / match.group(1)).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / match.group(1)).write_text(code)
            continue
        exec(compile("\n" * (line - 1) + code, _name(path), "exec"), names)


def _commands(path: Path) -> list[tuple[int, list[str]]]:
    found = []
    for line, text in _blocks(path, "bash"):
        for i, command in enumerate(text.replace("\\\n", "  ").splitlines()):
            words = shlex.split(command, comments=True)
            while words and re.match(r"^[A-Z0-9_]+=", words[0]):
                words = words[1:]
            if words:
                found.append((line + i, words))
    return found


@pytest.mark.parametrize("path", DOCS, ids=_name)
def test_commands_exist(path: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for line, words in _commands(path):
        where = f"{_name(path)}:{line}: {' '.join(words)}"
        program = Path(words[0]).name
        if program == "make":
            wanted = {w for w in words[1:] if "=" not in w and not w.startswith("-")}
            assert wanted <= targets, where
        elif program == "w2s-fast":
            pass  # test_documented_commands.py runs them
        elif program in ("python", "pytest"):
            rest = words[words.index("-m") + 1 :] if "-m" in words[:2] else words
            local = [w for w in words[1:] if "/" in w and not w.startswith("-")]
            missing = [w for w in local if not (ROOT / w.split("::")[0]).exists()]
            assert not missing, f"{where}: {missing}"
            if rest[0].startswith("bench."):
                assert (ROOT / (rest[0].replace(".", "/") + ".py")).is_file(), where
        else:
            assert program in _ELSEWHERE, f"{where}: unknown command {program!r}"


@pytest.mark.parametrize("path", DOCS, ids=_name)
def test_yaml_blocks_are_valid_configs(path: Path, tmp_path: Path) -> None:
    blocks = _blocks(path, "yaml")
    for line, text in blocks:
        from w2s_fast.cli.parse import load

        file = tmp_path / f"line{line}.yaml"
        file.write_text(text)
        kind = SweepConfig if "run" in yaml.safe_load(text) else RunConfig
        assert load(kind, paths=[file])


@pytest.mark.parametrize("path", DOCS, ids=_name)
def test_links_to_files_exist(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text()):
        assert (path.parent / target).exists(), f"{_name(path)} links to {target}"


@pytest.mark.parametrize("path", DOCS, ids=_name)
def test_files_that_are_named_exist(path: Path) -> None:
    """Names in backticks that begin with a folder of the repository."""
    named = re.findall(
        r"`((?:w2s_fast|csrc|kernels|bench|tests|tools|docs)/[\w./-]+)`", path.read_text()
    )
    missing = [name for name in named if not (ROOT / name).exists()]
    assert not missing, f"{_name(path)} names {missing}"


def _tabled(path: Path) -> dict[str, tuple[str, ...]]:
    """Name -> fields, of every table row of three cells that starts with names in backticks."""
    table = {}
    for row in re.findall(r"^\| (`.*)\|$", path.read_text(), re.MULTILINE):
        cells = [re.findall(r"`(\w+)`", cell) for cell in row.split(" | ")]
        if len(cells) == 3:
            table |= dict.fromkeys(cells[0], tuple(cells[2]))
    return table


def test_losses_page_names_every_loss_and_its_fields() -> None:
    expected = {name: tuple(f.name for f in fields(kind)) for name, kind in LOSSES.items()}
    assert _tabled(ROOT / "docs" / "losses.md") == expected


def test_preferences_page_names_every_loss_and_its_fields() -> None:
    table = _tabled(ROOT / "docs" / "preferences.md")
    for name, kind in {**PREFERENCES, **DISTILLATIONS}.items():
        assert table.pop(name) == tuple(f.name for f in fields(kind)), name
    assert all(hasattr(w2s_fast, name) for name in table), "the functions"


def test_policy_losses_page_names_every_loss_and_its_fields() -> None:
    expected = {name: tuple(f.name for f in fields(kind)) for name, kind in POLICY_LOSSES.items()}
    assert _tabled(ROOT / "docs" / "policy_losses.md") == expected


def test_methods_page_names_methods_and_their_fields() -> None:
    expected = {name: tuple(f.name for f in fields(kind)) for name, kind in METHODS.items()}
    table = _tabled(ROOT / "docs" / "methods.md")
    assert table and table.items() <= expected.items()
