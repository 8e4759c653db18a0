"""``~`` is a home folder wherever a path is accepted, and an empty path is one line."""

from __future__ import annotations

import ast
import dataclasses
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.paths import ROOT
from helpers.toy_run import config

import w2s_fast
from w2s_fast.cli.launch import LaunchOptions
from w2s_fast.cli.launch import parse as parse_launch
from w2s_fast.cli.main import main
from w2s_fast.cli.parse import _attribute_texts, load, load_config
from w2s_fast.config import RunConfig, model_of
from w2s_fast.errors import W2SError
from w2s_fast.paths import path_fields, user_path
from w2s_fast.pipeline.export import export
from w2s_fast.pipeline.exported import load_exported
from w2s_fast.specs import without_none
from w2s_fast.sweeps import SweepConfig

# What else a class needs to be made with one path.
NEEDS: dict[str, dict[str, Any]] = {
    "nvme_path": {"zero_stage": 3},
    "deepspeed_config": {"zero_stage": 1},
    "hostfile": {"config": "run.yaml"},
}


def classes(*roots: type) -> Iterator[type]:
    """Return configuration dataclasses and those of their blocks."""
    for cls in roots:
        yield cls
        hints = typing.get_type_hints(cls).values()
        yield from classes(*(h for h in hints if dataclasses.is_dataclass(h)))  # type: ignore[arg-type]


CLASSES = sorted(set(classes(SweepConfig, LaunchOptions)), key=lambda cls: cls.__name__)
FIELDS = [(cls, name) for cls in CLASSES for name in path_fields(cls)]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home folder of the user."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    return folder


@pytest.mark.parametrize("cls", CLASSES)
def test_every_field_that_speaks_of_a_file_is_a_path(cls: type) -> None:
    """The description of a field says what it holds; the annotation must say it too."""
    texts = _attribute_texts(cls)
    for f in dataclasses.fields(cls):  # type: ignore[arg-type]
        plain = without_none(typing.get_type_hints(cls)[f.name])
        speaks = re.search(r"^(a |A )?([Ff]older|[Ff]ile|[Pp]ath)|directory|JSON file",
                           texts.get(f.name, ""))  # fmt: skip
        named = re.search("path$|_dir$|file$|_config$", f.name)
        if plain is str and (speaks or named):
            assert f.name in path_fields(cls), f.name


def test_the_fields_are_there() -> None:
    names = {name for _, name in FIELDS}
    assert {"path", "test_path", "engine", "source", "nvme_path", "deepspeed_config", "output_dir",
            "cache_dir", "hostfile", "config"} <= names  # fmt: skip


@pytest.mark.parametrize(("cls", "name"), FIELDS)
def test_home_is_expanded_in_every_field(cls: type, name: str, home: Path) -> None:
    made = cls(**{**NEEDS.get(name, {}), name: "~/x"})
    assert getattr(made, name) == str(home / "x")


@pytest.mark.parametrize(("cls", "name"), FIELDS)
@pytest.mark.parametrize("value", ["", " ", "a\0b", "~nobody-of-this-name/x"])
def test_what_is_no_path_is_one_line(cls: type, name: str, value: str) -> None:
    with pytest.raises(W2SError, match=f"{name} is ") as err:
        cls(**{**NEEDS.get(name, {}), name: value})
    assert "expected" in str(err.value) and "\n" not in str(err.value)


def test_empty_paths_name_their_block() -> None:
    for option, message in (
        ("--cache_dir=", "cache_dir is empty; expected a path, or leave it out"),
        ("--task.path=", "task.path is empty"),
        ("--weak.source=", "weak.source is empty"),
        ("--student_train.nvme_path=", "student_train.nvme_path is empty"),
        ("--task.chess.engine=", "task.chess.engine is empty"),
    ):
        with pytest.raises(W2SError, match=message):
            load_config([option])
    with pytest.raises(W2SError, match="output_dir is empty"):
        load(SweepConfig, ["--out="])


def test_home_is_expanded_in_specs_and_options(home: Path) -> None:
    cfg = load_config(["--intermediate_models", "~/medium:lora_rank=2", "--out=~/out"])
    assert model_of(cfg, "intermediate/0").source == str(home / "medium")
    assert cfg.store_dir == home / "out" / "cache"
    (home / "run.yaml").write_text("cache_dir: ~/c\ntask: {path: ~}\n")
    cfg = load_config(["--config=~/run.yaml"])
    assert cfg.cache_dir == str(home / "c") and cfg.task.path is None
    options = parse_launch(["--hostfile=~/hosts", "~/run.yaml"])
    assert (options.hostfile, options.config) == (str(home / "hosts"), str(home / "run.yaml"))


def test_home_is_expanded_by_commands(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--out=~/x"]) == 2
    assert str(home / "x") in capsys.readouterr().err
    for args in (["report", "--out="], ["export", "--stage=weak/0", "--to="], ["run", "--config="]):
        assert main(args) == 2
        assert "is empty; expected a path" in capsys.readouterr().err


def test_home_is_expanded_by_export_and_load(home: Path) -> None:
    with pytest.raises(W2SError, match=str(home / "model")):
        load_exported("~/model")
    (home / "model").mkdir()
    (home / "model" / "file").touch()
    cfg = config(Path("~/out"), cache_dir="~/cache")
    with pytest.raises(W2SError, match=f"{home / 'model'} is not empty"):
        export(cfg, "weak/0", "~/model")


def test_a_run_makes_no_folder_of_that_name(home: Path, tmp_path: Path) -> None:
    cfg = config(Path("~/out"), cache_dir="~/cache")
    w2s_fast.run(cfg)
    assert (home / "out" / "results.json").is_file() and (home / "cache").is_dir()
    assert not Path("~").exists()


def test_functions_expand_what_they_take_as_text() -> None:
    """A parameter ``str | Path`` is what a user wrote; ``Path(parameter)`` would keep its ``~``."""
    careless = []
    for file in sorted((ROOT / "w2s_fast").rglob("*.py")):
        for function in ast.walk(ast.parse(file.read_text())):
            if isinstance(function, ast.FunctionDef):
                careless += [f"{file.name}:{n}" for n in _plain_paths(function)]
    assert careless == []


def _plain_paths(function: ast.FunctionDef) -> list[str]:
    arguments = [*function.args.args, *function.args.kwonlyargs]
    kinds = {a.arg: ast.unparse(a.annotation) for a in arguments if a.annotation}
    public = not function.name.startswith("_")
    written = {n for n, kind in kinds.items() if kind == "str | Path" or (kind == "str" and public)}
    return [
        f"{function.name}({call.args[0].id})"
        for call in ast.walk(function)
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "Path" and call.args
        and isinstance(call.args[0], ast.Name) and call.args[0].id in written
        and function.name != "user_path"
    ]  # fmt: skip


def test_paths_are_paths(home: Path) -> None:
    assert user_path("~", "x") == home and user_path(Path("~/a"), "x") == home / "a"
    assert user_path("./~a", "x") == Path("~a") and user_path("a~", "x") == Path("a~")
    assert RunConfig(output_dir="~/a").output_dir == f"{home}/a"
