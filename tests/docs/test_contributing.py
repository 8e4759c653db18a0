"""CONTRIBUTING's table "to change X, edit Y" names files and definitions that exist."""

from __future__ import annotations

import ast
import re

import pytest
from helpers.paths import ROOT

_ROW = re.compile(r"^\| ([^|`]+) \| `([\w./-]+)` \| `([\w.-]+)` \|$", re.MULTILINE)
ROWS = _ROW.findall((ROOT / "CONTRIBUTING.md").read_text())


def defined(source: str) -> set[str]:
    """Names that Python source defines: functions, classes, members, assigned names, fields."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


def test_the_table_is_read() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    table = text.partition("| to change | edit | name |\n")[2].partition("\n\n")[0]
    assert len(ROWS) == table.count("\n") > 40, "a row differs from: | words | `file` | `name` |"
    assert len({what for what, _, _ in ROWS}) == len(ROWS), "two rows with the same question"


@pytest.mark.parametrize(("what", "file", "name"), ROWS, ids=[row[0][:40] for row in ROWS])
def test_the_row_leads_to_a_definition(what: str, file: str, name: str) -> None:
    path = ROOT / file
    assert path.is_file(), f"{what}: {file} does not exist"
    text = path.read_text()
    there = name in defined(text) if path.suffix == ".py" else re.search(rf"\b{name}\b", text)
    assert there, f"{what}: {file} does not define {name}"


def test_a_wrong_name_is_seen() -> None:
    assert defined("A: int = 1\nclass B:\n    c = 2\n    def d(self): pass\n") == set("ABcd")
    assert "use" not in defined("def make():\n    return use\n")
