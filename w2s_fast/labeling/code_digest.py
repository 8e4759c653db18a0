"""A digest of a file of code and of the files beside it, or in its package, that it imports."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from pathlib import Path

from w2s_fast.files import content_hash, file_hash


def code_digest(file: Path) -> str:
    """Return a digest of a Python file and of the files that it imports, directly or through each
    other, from its folder or below, or from anywhere in its package.

    Modules from elsewhere, and other files that the code reads, are not part of it.
    """
    pending, known = [file], {file}
    while pending:
        for imported in _imported_files(pending.pop()):
            if imported not in known:
                known.add(imported)
                pending.append(imported)
    return content_hash(sorted((os.path.relpath(f, file.parent), file_hash(f)) for f in known))


def _imported_files(file: Path) -> Iterator[Path]:
    """Yield the files that the import statements of a file name; none if it is no Python."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _absolute(file, alias.name)
        elif isinstance(node, ast.ImportFrom):
            stem = node.module or ""
            for name in (stem, *(f"{stem}.{alias.name}".lstrip(".") for alias in node.names)):
                if node.level:
                    yield from _module_files(_ancestor(file, node.level), name)
                else:
                    yield from _absolute(file, name)


def _ancestor(file: Path, level: int) -> Path:
    """Return the folder that a relative import with so many dots begins at."""
    return file.parents[min(level, len(file.parents)) - 1]


def _absolute(file: Path, module: str) -> Iterator[Path]:
    """Yield the files of a module in the package of a file, or below the folder of the file.

    The package of the module may be that folder itself.
    """
    package = _package(file)
    parts = module.split(".")
    if package is not None and parts[0] == package.name:
        yield from _module_files(package.parent, module)
    for start in range(len(parts)):
        yield from _module_files(file.parent, ".".join(parts[start:]))


def _package(file: Path) -> Path | None:
    """Return the folder of the outermost package that a file is in; None without one."""
    inside = None
    for folder in file.parents:
        if not (folder / "__init__.py").is_file():
            break
        inside = folder
    return inside


def _module_files(folder: Path, module: str) -> Iterator[Path]:
    """Yield the file of a module whose path begins at a folder, and those of its packages."""
    found = [folder / "__init__.py"] if not module else []
    base = folder
    for part in filter(None, module.split(".")):
        base /= part
        found.append(base / "__init__.py")
    if module:
        found.append(base.with_name(f"{base.name}.py"))
    yield from (file for file in found if file.is_file())
