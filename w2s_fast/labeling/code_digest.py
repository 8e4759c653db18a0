"""A digest of a file of code and of the files beside it that it imports."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from w2s_fast.files import content_hash, file_hash


def code_digest(file: Path) -> str:
    """Return a digest of a Python file and of the files in its folder, or below, that it imports,
    directly or through each other.

    Modules from elsewhere, and other files that the code reads, are not part of it.
    """
    pending, known = [file], {file}
    while pending:
        for imported in _imported_files(pending.pop()):
            if imported not in known:
                known.add(imported)
                pending.append(imported)
    return content_hash(sorted((str(f.relative_to(file.parent)), file_hash(f)) for f in known))


def _imported_files(file: Path) -> Iterator[Path]:
    """Yield the files that the import statements of a file name; none if it is no Python."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            stem = node.module or ""
            names = [stem, *(f"{stem}.{alias.name}".lstrip(".") for alias in node.names)]
        for name in filter(None, names):
            yield from _module_files(file.parent, name)


def _module_files(folder: Path, module: str) -> Iterator[Path]:
    """Yield the file of a module below a folder; its package may be that folder itself."""
    parts = module.split(".")
    for start in range(len(parts)):
        base = folder.joinpath(*parts[start:])
        for file in (base.with_suffix(".py"), base / "__init__.py"):
            if file.is_file():
                yield file
