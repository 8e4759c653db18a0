"""Which modules of the package a few of its modules need."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path

PACKAGE = "w2s_fast"


def path_of(module: str, root: Path) -> Path | None:
    """Return the file of a module of the package below ``root``, None for what is no module."""
    if module.startswith(f"{PACKAGE}.kernels."):  # the sources of Triton kernels
        file = root / "kernels" / f"{module.rpartition('.')[2]}.py"
        return file if file.is_file() else None
    base = root.joinpath(*module.split("."))
    for file in (base.with_suffix(".py"), base / "__init__.py"):
        if file.is_file():
            return file
    return None


def imported(source: str) -> Iterator[str]:
    """Yield modules of the package that a module may import, and names that may be modules."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE:
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.split(".")[0] == PACKAGE)


def closure(modules: Iterable[str], root: Path) -> dict[str, Path]:
    """Return module -> file of the given modules and all that they import, without the top one.

    Raises:
        ValueError: if one of the given modules does not exist.
    """
    found: dict[str, Path] = {}
    open_ = [(m, True) for m in modules]
    while open_:
        module, must_exist = open_.pop()
        file = path_of(module, root)
        if must_exist and file is None:
            raise ValueError(f"{module} is no module below {root}")
        if file is None or module in found or module == PACKAGE:
            continue
        found[module] = file
        parent = module.rpartition(".")[0]
        open_ += [(m, False) for m in (*imported(file.read_text()), parent)]
    return dict(sorted(found.items()))
