"""Load functions that a user named, here and in a process of its own."""

from __future__ import annotations

import multiprocessing
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from w2s_fast import W2SError
from w2s_fast.labeling import LabelingFunction, apply_functions, load_functions, source_digest

SOURCE = """
from w2s_fast.labeling import ABSTAIN, keywords, labeling_function

@labeling_function()
def zebra(text):
    return 1 if "zebra" in text else ABSTAIN

apple = keywords(0, "apple")

@labeling_function("second name")
def other(text):
    return 1 if "other" in text else 0

alias = zebra
CHOSEN = [apple, zebra]
EMPTY = ()
number = 3
"""
TEXTS = ["a zebra", "an apple", "other"]
NAMES = ("zebra", "0: apple", "second name")


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module ``user_functions`` on the Python path."""
    monkeypatch.syspath_prepend(str(tmp_path))
    path = tmp_path / "user_functions.py"
    path.write_text(SOURCE)
    yield path
    for name in [n for n in sys.modules if n.startswith(("user_functions", "_labeling_user"))]:
        del sys.modules[name]


def votes_of(spec: str) -> list[list[int]]:
    return apply_functions(load_functions(spec), TEXTS).tolist()


def call(function: LabelingFunction) -> int:
    return function("a zebra")


def test_all_functions_in_the_order_of_definition(module: Path) -> None:
    for spec in ("user_functions", str(module), f" {module} "):
        assert tuple(f.name for f in load_functions(spec)) == NAMES
        assert votes_of(spec) == [[1, -1, 0], [-1, 0, 0], [-1, -1, 1]]


def test_one_function_or_a_list(module: Path) -> None:
    for place in ("user_functions", str(module)):
        assert [f.name for f in load_functions(f"{place}:other")] == ["second name"]
        assert [f.name for f in load_functions(f"{place}:CHOSEN")] == ["0: apple", "zebra"]


def test_a_path_may_have_a_colon(module: Path) -> None:
    folder = module.parent / "a:b"
    folder.mkdir()
    path = module.rename(folder / "user_functions.py")
    assert tuple(f.name for f in load_functions(str(path))) == NAMES
    assert [f.name for f in load_functions(f"{path}:other")] == ["second name"]


def test_imported_functions_are_not_the_module_s_own(module: Path) -> None:
    (module.parent / "user_functions_2.py").write_text(
        "from user_functions import zebra\nfrom w2s_fast.labeling import keywords\n"
        "mine = keywords(1, 'mine')\n"
    )
    assert [f.name for f in load_functions("user_functions_2")] == ["1: mine"]
    assert [f.name for f in load_functions("user_functions_2:zebra")] == ["zebra"]


@pytest.mark.slow
def test_functions_in_a_spawned_process(module: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    with spawn.Pool(1) as pool:
        for spec in ("user_functions", str(module)):
            assert pool.apply(votes_of, (spec,)) == votes_of(spec)
        for function in load_functions("user_functions")[:2]:
            assert pool.apply(call, (function,)) == function("a zebra")


def test_digest_changes_with_the_file(module: Path) -> None:
    before = source_digest(str(module))
    assert source_digest("user_functions:zebra") == before == source_digest(f"{module}:other")
    module.write_text(SOURCE + "\n# edited\n")
    assert source_digest(str(module)) != before


def test_the_digest_follows_files_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = tmp_path / "rules.py"
    (tmp_path / "words.py").write_text("SPAM = ['free']\n")
    (tmp_path / "unrelated.py").write_text("x = 1\n")
    rules.write_text("import words\nX = words.SPAM\n")
    first = source_digest(str(rules))
    assert source_digest(f"{rules}:X") == first
    (tmp_path / "unrelated.py").write_text("x = 2\n")
    assert source_digest(str(rules)) == first
    (tmp_path / "words.py").write_text("SPAM = ['win']\n")
    second = source_digest(str(rules))
    rules.write_text("from words import SPAM\nX = SPAM\n")
    assert len({first, second, source_digest(str(rules))}) == 3

    package = tmp_path / "house"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "lists.py").write_text("A = 1\n")
    (package / "rules.py").write_text("from house.lists import A\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    before = source_digest("house.rules")
    assert source_digest(str(package / "rules.py")) == before
    (package / "lists.py").write_text("A = 2\n")
    assert source_digest(str(package / "rules.py")) != before
    # The imported module still has the old value.
    for read in (source_digest, load_functions):
        with pytest.raises(W2SError, match="house.rules was edited after it was imported; start"):
            read("house.rules:A")


@pytest.mark.parametrize(
    "imports",
    ["from ..common import A", "from .. import common", "from house.common import A",
     "import house.common", "from .shift import A", "from ..tools import A"],
)  # fmt: skip
def test_the_digest_follows_its_package(imports: str, tmp_path: Path) -> None:
    """Up to the outermost package, and through the packages on the way."""
    package = tmp_path / "house"
    for folder in ("losses", "tools"):
        (package / folder).mkdir(parents=True)
    for name in ("__init__.py", "losses/__init__.py"):
        (package / name).write_text("")
    (package / "common.py").write_text("A = 1\n")
    (package / "losses/shift.py").write_text("from ..common import A\n")
    (package / "tools/__init__.py").write_text("from house.common import A\n")
    (tmp_path / "common.py").write_text("A = 1\n")  # outside
    mine = package / "losses/mine.py"
    mine.write_text(f"{imports}\n")
    before = source_digest(str(mine))
    (tmp_path / "common.py").write_text("A = 2\n")
    assert source_digest(str(mine)) == before
    (package / "common.py").write_text("A = 2\n")
    assert source_digest(str(mine)) != before


def test_an_edited_file_is_read_again(module: Path) -> None:
    assert votes_of(f"{module}:zebra")[0] == [1]
    module.write_text(SOURCE.replace('"zebra" in text', '"apple" in text'))
    assert votes_of(f"{module}:zebra")[:2] == [[-1], [1]]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "functions are ''; expected 'package.module' or 'path/to/file.py'"),
        ("user_functions:zebr", "user_functions has no 'zebr'; did you mean 'zebra'?"),
        ("user_functions:number", "number is a int; expected a LabelingFunction"),
        ("user_functions:EMPTY", "there are no labeling functions"),
        ("no_such_module_x", "'no_such_module_x' cannot be imported (ModuleNotFoundError"),
        ("missing/file.py", "functions 'missing/file.py': there is no file missing/file.py"),
        ("json", "functions 'json': the module defines no labeling function"),
    ],
)
def test_wrong_specs(module: Path, spec: str, message: str) -> None:
    with pytest.raises(W2SError, match=re.escape(message)):
        load_functions(spec)


def test_errors_of_the_module_are_named(module: Path) -> None:
    module.write_text("1 / 0")
    for spec in (str(module), "user_functions"):
        with pytest.raises(W2SError, match="ZeroDivisionError: division by zero"):
            load_functions(spec)
    module.write_text("def f(:\n")
    with pytest.raises(W2SError, match="cannot be loaded: SyntaxError"):
        load_functions(str(module))


def test_two_functions_of_one_name(module: Path) -> None:
    module.write_text(SOURCE + "second = keywords(1, 'apple', name='zebra')\n")
    with pytest.raises(W2SError, match="functions 0 and 3 are both named 'zebra'"):
        load_functions(str(module))
