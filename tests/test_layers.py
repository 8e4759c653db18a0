"""Dependencies point one way, and importing the package stays light."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import w2s_fast

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "w2s_fast"
HEAVY = ("transformers", "deepspeed", "datasets", "pyarrow", "matplotlib", "scipy", "triton")

# Layer -> the layers it may import. The chain is kernels, ops, losses, engine, pipeline, cli; the
# others are leaves beside it. A module that is not listed here has no place in the house yet.
_DATA = {"errors", "tasks", "models", "weights", "metrics", "store", "report"}
_CORE = {"errors", "kernels", "_core", "ops"}
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "network": set(),
    "world": {"errors", "network"},
    "heartbeat": {"errors", "world"},
    "kernels": set(),
    "ops": {"errors", "kernels", "_core"},
    "losses": {"errors", "ops", "specs"},
    "head": {"errors", "ops"},
    "patching": {"errors", "ops", "losses", "head", "weights"},
    "specs": {"errors"},
    "preference": {"errors", "ops", "specs"},
    "distill": {"errors", "ops", "specs"},
    "support": {"errors", "ops"},
    "engine": {
        "errors",
        "ops",
        "losses",
        "models",
        "classifier",
        "weights",
        "tasks",
        "store",
        "world",
    },  # fmt: skip
    "tasks": {"errors"},
    "weights": {"errors", "world"},
    "classifier": {"errors"},
    "bases": {"errors"},
    "causal": {"errors", "ops", "weights", "classifier"},
    "models": {"errors", "bases", "weights", "classifier", "causal"},
    "debate": {"errors", "engine", "specs", "store"},
    "data": {"errors", "tasks"},
    "metrics": {"errors"},
    "store": {"errors"},
    "report": {"errors", "metrics", "store"},
    "methods": {"errors", "losses", "ops", "specs"},
    "config": {"errors", "tasks", "models", "losses", "methods", "engine", "specs", "debate"},
    "options": {"errors", "config"},
    "testing": {*_CORE, "losses", "tasks"},
    "doctor": {*_CORE, "losses", "tasks"},
    "pipeline": {
        *_DATA,
        "config",
        "debate",
        "losses",
        "methods",
        "engine",
        "ops",
        "world",
        "heartbeat",
    },
    "counts": {"errors", "models"},
    "plan": {"errors", "config", "counts", "engine", "options"},
    "launch": {"errors", "world", "heartbeat", "engine", "options"},
    "sweeps": {*_DATA, "config", "options", "engine", "pipeline", "specs"},
    "cli": {
        *_DATA,
        "config",
        "losses",
        "engine",
        "pipeline",
        "doctor",
        "ops",
        "options",
        "world",
        "heartbeat",
        "plan",
        "launch",
        "sweeps",
    },
    "__main__": {"cli"},
    "__init__": {
        *_DATA,
        "config",
        "losses",
        "engine",
        "pipeline",
        "sweeps",
        "ops",
        "head",
        "patching",
    },
}
_HARMLESS = {"w2s_fast", "w2s_fast.__version__", "w2s_fast.__file__"}
FILES = sorted([*PACKAGE.rglob("*.py"), *(ROOT / "kernels").glob("*.py")])


def _layer(path: Path) -> str:
    if path.parent == ROOT / "kernels":
        return "kernels"
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def _imports(path: Path) -> list[tuple[str, int]]:
    """Every module name used, with its line: ``from a import b`` and ``w2s_fast.b`` count."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            found += [(f"{node.module}.{alias.name}", node.lineno) for alias in node.names]
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "w2s_fast":
            found.append((f"w2s_fast.{node.attr}", node.lineno))
    return [(name, line) for name, line in found if name not in _HARMLESS]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_layer_order(path: Path) -> None:
    layer = _layer(path)
    assert layer in ALLOWED, f"{path.name}: layer {layer!r} is not in ALLOWED"
    for name, line in _imports(path):
        parts = name.split(".")
        assert parts[0] not in ("bench", "tests", "kernels"), f"{path}:{line} imports {name}"
        if parts[0] == "w2s_fast":
            # `from w2s_fast import cross_entropy` would hide the layer behind the public door.
            assert parts[1] in ALLOWED or parts[1] == "_core", f"{path}:{line} imports {name}"
            ok = parts[1] == layer or parts[1] in ALLOWED[layer]
            assert ok, f"{path}:{line}: {layer} must not import {parts[1]}"


def test_the_order_test_can_fail(tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text("from w2s_fast import engine\nimport w2s_fast.cli\nw2s_fast.run(1)\n")
    assert {n for n, _ in _imports(bad)} == {"w2s_fast.engine", "w2s_fast.cli", "w2s_fast.run"}
    assert "engine" not in ALLOWED["ops"] and "cli" not in ALLOWED["pipeline"]


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
        if parts[1] not in ("kernels", "__main__") and not parts[-1].endswith("_triton"):
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
