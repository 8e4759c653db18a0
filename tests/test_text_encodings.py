"""Files of text are UTF-8 in every locale: whatever opens one names its encoding."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest
from helpers.paths import ROOT

PACKAGE = ROOT / "w2s_fast"
# Position of the encoding, and of the mode, among the arguments of what opens text.
FUNCTIONS = {"open": (3, 1), "fdopen": (3, 1)}
METHODS = {"read_text": (0, None), "write_text": (1, None), "open": (2, 0), "fdopen": (3, 1)}
CHILDREN = {"text", "universal_newlines"}  # with them, pipes of a process are text


def unnamed(source: str) -> Iterator[int]:
    """Yield the lines of calls that leave the encoding of text to the locale."""
    for call in ast.walk(ast.parse(source)):
        if isinstance(call, ast.Call) and takes_locale(call):
            yield call.lineno


def takes_locale(call: ast.Call) -> bool:
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    if "encoding" in given:
        return False
    if any(is_true(given[name]) for name in CHILDREN & given.keys()):
        return True
    if isinstance(call.func, ast.Attribute):
        known, name = METHODS, call.func.attr
        if ast.unparse(call.func) == "os.open":  # a descriptor, which has no encoding
            return False
    else:
        known, name = FUNCTIONS, ast.unparse(call.func)
    if name not in known:
        return False
    encoding, mode = known[name]
    if len(call.args) > encoding:
        return False
    return mode is None or is_text_mode(call, mode, given.get("mode"))


def is_text_mode(call: ast.Call, position: int, named: ast.expr | None) -> bool:
    """Whether a mode is one of text; what is no string belongs to another function."""
    given = named or (call.args[position] if len(call.args) > position else ast.Constant("r"))
    if not isinstance(given, ast.Constant) or not isinstance(given.value, str):
        return False
    return "b" not in given.value


def is_true(value: ast.expr) -> bool:
    return isinstance(value, ast.Constant) and value.value is True


def test_no_file_of_text_is_left_to_the_locale() -> None:
    files = sorted(PACKAGE.rglob("*.py"))
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in files
        for line in unnamed(path.read_text(encoding="utf-8"))
    ]
    assert len(files) > 100 and found == []


@pytest.mark.parametrize(
    ("call", "found"),
    [
        ("path.read_text()", True),
        ("path.read_text('utf-8')", False),
        ("read_text(path)", False),  # that of w2s_fast.files
        ("path.write_text(text)", True),
        ("path.write_text(text, encoding='utf-8')", False),
        ("open(path)", True),
        ("open(path, 'wb')", False),
        ("open(path, mode='a+')", True),
        ("open(path, 'w', 1, 'utf-8')", False),
        ("path.open()", True),
        ("path.open('rb')", False),
        ("opener.open(request)", False),
        ("os.open(path, flags)", False),
        ("os.fdopen(1, 'w')", True),
        ("subprocess.run(command, text=True)", True),
        ("subprocess.run(command, text=True, encoding='utf-8')", False),
        ("subprocess.run(command)", False),
    ],
)
def test_the_check_knows_what_opens_text(call: str, found: bool) -> None:
    assert list(unnamed(call)) == [1] * found
