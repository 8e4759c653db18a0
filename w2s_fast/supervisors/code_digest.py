"""A digest of the code of labelling functions, so that votes of edited functions are not reused."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from pathlib import Path

from w2s_fast.errors import W2SError
from w2s_fast.files import content_hash, file_hash


def functions_digest(path: str) -> str:
    """Return a digest of the file with labelling functions, and of the files beside it that it
    imports, directly or through each other.

    Modules from elsewhere, and other files that functions read, are not part of it.

    Args:
        path: As ``Functions.path``.

    Raises:
        W2SError: There is no such file or module.
    """
    first = functions_file(path)
    pending, known = [first], {first}
    while pending:
        for file in _imported_files(pending.pop()):
            if file not in known:
                known.add(file)
                pending.append(file)
    hashes = {str(file.relative_to(first.parent)): file_hash(file) for file in known}
    return content_hash(sorted(hashes.items()))


def functions_file(path: str) -> Path:
    """Return the file that ``Functions.path`` means.

    Raises:
        W2SError: There is no such file or module.
    """
    if ".py" in path:
        file = Path(path[: path.rindex(".py") + 3])
    else:
        file = _module_file(path.partition(":")[0])
    if not file.is_file():
        raise W2SError(f"functions {path!r}: there is no file {file}; check the path")
    return file.absolute()


def _module_file(module: str) -> Path:
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        spec = None
    if spec is None or spec.origin is None:
        raise W2SError(
            f"functions {module!r}: there is no such module; expected package.module, which can be "
            "imported from here, or a path that ends in .py"
        )
    return Path(spec.origin)


def _imported_files(file: Path) -> Iterator[Path]:
    """Yield the files in the folder of ``file``, or below, that its import statements name."""
    for node in ast.walk(ast.parse(file.read_bytes())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            stem = node.module or ""
            names = [stem, *(f"{stem}.{alias.name}".lstrip(".") for alias in node.names)]
        for name in filter(None, names):
            yield from _candidates(file.parent, name)


def _candidates(folder: Path, module: str) -> Iterator[Path]:
    """Yield the file of a module below a folder; its package may be that folder itself."""
    parts = module.split(".")
    for start in range(len(parts)):
        base = folder.joinpath(*parts[start:])
        for file in (base.with_suffix(".py"), base / "__init__.py"):
            if file.is_file():
                yield file
