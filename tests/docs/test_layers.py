"""Dependencies point one way, and importing the package stays light."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.paths import ROOT

import w2s_fast

PACKAGE = ROOT / "w2s_fast"
HEAVY = ("transformers", "deepspeed", "datasets", "pyarrow", "matplotlib", "scipy", "triton")

PAGE = ROOT / "docs" / "architecture.md"
# Code that is not part of the package: nothing in the package may import it.
OUTSIDE = ("bench", "tools")
_ROW = re.compile(r"^\| (\d+) \| `([\w/.]+)` \| .* \|$", re.MULTILINE)
_COMPILED = ("w2s_fast._core", "w2s_fast._cuda")
FILES = sorted(
    path
    for folder in ("w2s_fast", "kernels", *OUTSIDE)
    for path in (ROOT / folder).rglob("*.py")
    if path != PACKAGE / "kernels" / "__init__.py"  # leads to kernels/ in a source checkout
)


def _unit(module: str) -> str:
    """The row of the table that a module belongs to, as a dotted name."""
    parts = module.split(".")
    if parts[0] != "w2s_fast":
        return parts[0]
    # `w2s_fast.cross_entropy` is a public name: it comes from w2s_fast/__init__.py.
    public = len(parts) == 1 or parts[1] in w2s_fast.__all__
    return "w2s_fast" if public else ".".join(parts[:2])


def _module(path: Path) -> str:
    """Dotted name of a file; kernels/ is imported as w2s_fast.kernels."""
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    return f"w2s_fast.{name}" if name.startswith("kernels") else name


MODULES = {_module(path): path for path in FILES}


def _table() -> list[tuple[int, str, str]]:
    """(layer, path, unit) of every row of the page, from the top."""
    return [
        (int(number), path, _unit(_module(ROOT / path.rstrip("/"))))
        for number, path in _ROW.findall(PAGE.read_text())
    ]


PLACES = {unit: place for place, (_, _, unit) in enumerate(_table())}


def _imports(path: Path) -> list[tuple[str, int]]:
    """Every module name used, with its line: ``from a import b`` and ``w2s_fast.b`` count."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            names += [(f"{node.module}.{alias.name}", node.lineno) for alias in node.names]
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "w2s_fast":
            names.append((f"w2s_fast.{node.attr}", node.lineno))
    return [(name, line) for name, line in names if name != "w2s_fast"]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    unit = _unit(_module(path))
    assert unit in PLACES, f"{path}: docs/architecture.md has no row for {unit}"
    for name, line in _imports(path):
        top = name.split(".")[0]
        if top in ("kernels", "tests"):
            pytest.fail(f"{path}:{line} imports {name}")
        if top not in ("w2s_fast", *OUTSIDE) or name.startswith(_COMPILED):
            continue
        target = _unit(name)
        assert target in PLACES, f"{path}:{line}: docs/architecture.md has no row for {name}"
        ok = target == unit or PLACES[unit] < PLACES[target]
        assert ok, f"{path}:{line}: {unit} must not import {target}, which stands above it"


def _targets(path: Path) -> set[str]:
    """The modules of this repository that a file imports, at its top or inside a function."""
    targets = set()
    for name, _ in _imports(path):
        while name and name not in MODULES:  # `from a import b`: module a.b, or name b of module a
            name = name.rpartition(".")[0]
        targets.add(name)
    return targets - {"", "w2s_fast", _module(path)}


def test_no_module_imports_itself_by_a_detour() -> None:
    imports = {module: _targets(path) for module, path in MODULES.items()}
    done: set[str] = set()

    def follow(module: str, road: tuple[str, ...]) -> None:
        assert module not in road, " -> ".join([*road[road.index(module) :], module])
        if module not in done:
            for target in sorted(imports[module]):
                follow(target, (*road, module))
            done.add(module)

    for module in imports:
        follow(module, ())


def test_the_page_lists_what_exists() -> None:
    layers = [layer for layer, _, _ in _table()]
    assert layers == sorted(layers, reverse=True)
    assert set(layers) == set(range(1, layers[0] + 1)), "layers are counted from 1, without gaps"
    assert len(PLACES) == len(layers), "a package stands in one row"
    for _, path, _ in _table():
        place = ROOT / path
        assert place.is_dir() if path.endswith("/") else place.is_file(), f"{path} does not exist"


def test_the_order_test_can_fail(tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text("from w2s_fast import losses\nimport w2s_fast.cli\nw2s_fast.run(1)\n")
    assert {n for n, _ in _imports(bad)} == {"w2s_fast.losses", "w2s_fast.cli", "w2s_fast.run"}
    assert PLACES["w2s_fast.losses"] < PLACES["w2s_fast.ops"], "ops must not import losses"
    assert PLACES["w2s_fast.cli"] < PLACES["w2s_fast.pipeline"], "pipeline must not import cli"


def _python(code: str) -> dict:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


_TIMED = """
import json, sys, time
start = time.perf_counter()
{statement}
seconds = time.perf_counter() - start
modules = sorted({{name.split(".")[0] for name in sys.modules}})
print(json.dumps({{"seconds": seconds, "modules": modules}}))
"""


def test_import_is_light() -> None:
    got = _python(_TIMED.format(statement="import w2s_fast"))
    assert got["seconds"] < 2.0
    assert not set(HEAVY) & set(got["modules"])


def test_every_module_is_light() -> None:
    """Heavy packages are imported inside functions; Triton backends are themselves loaded late."""
    names = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[1] not in ("kernels", "__main__") and parts[-1] != "triton":
            names.append(".".join(p for p in parts if p != "__init__"))
    got = _python(_TIMED.format(statement="import " + ", ".join(names)))
    assert not set(HEAVY) & set(got["modules"])


@pytest.mark.parametrize("name", w2s_fast.__all__)
def test_public_names_exist(name: str) -> None:
    assert getattr(w2s_fast, name) is not None
    assert name in dir(w2s_fast)


def test_unknown_public_name() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = w2s_fast.nonsense
