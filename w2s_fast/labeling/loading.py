"""Load labeling functions that a user named: a module, a file, or an object in one of them."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from w2s_fast.errors import W2SError, nearest, one_line
from w2s_fast.labeling.code_digest import code_digest
from w2s_fast.labeling.functions import LabelingFunction, check_functions
from w2s_fast.paths import user_path

_imported: dict[str, str] = {}  # module -> digest of its files when it was imported


def load_functions(spec: str) -> tuple[LabelingFunction, ...]:
    """Import labeling functions; every process can do so, since the spec is all it needs.

    Args:
        spec: "package.module" or "path/to/file.py" for all functions that are defined at its top
            level, in the order of their definition; with ":NAME" for one function, or for a list
            or tuple of functions. Decorated functions that the module imported from elsewhere are
            not its own.

    Raises:
        W2SError: The module cannot be imported, it has no such name, or no labeling function.
    """
    place, name = _divide(spec)
    module = _load_file(place, spec) if place.endswith(".py") else _import(place, spec)
    if not name:
        return check_functions(_own_functions(module, spec))
    try:
        value = getattr(module, name)
    except AttributeError:
        raise W2SError(
            f"functions {spec!r}: {place} has no {name!r}{nearest(name, vars(module))}"
        ) from None
    if not isinstance(value, LabelingFunction | list | tuple):
        raise W2SError(
            f"functions {spec!r}: {name} is a {type(value).__name__}; expected a LabelingFunction, "
            "made by @labeling_function(), keywords or regex, or a list of them"
        )
    return check_functions(value)


def source_digest(spec: str) -> str:
    """Return a digest of the file that holds the functions, and of the files beside it that it
    imports; it changes when one of them is edited.

    Raises:
        W2SError: There is no such file or module, or it was edited after its import.
    """
    place, _ = _divide(spec)
    if place.endswith(".py"):
        return code_digest(_file(place, spec))
    return _digest_of_module(_import(place, spec))


def _divide(spec: str) -> tuple[str, str]:
    """Split a spec into module or file, and name; a path may have colons."""
    if not isinstance(spec, str) or not spec.strip():
        raise W2SError(f"functions are {spec!r}; expected 'package.module' or 'path/to/file.py'")
    place, colon, name = spec.strip().rpartition(":")
    return (place, name) if colon and name.isidentifier() else (spec.strip(), "")


def _import(place: str, spec: str) -> ModuleType:
    """Import a module, whose functions are those of its file.

    Python imports a module once: after an edit, its functions would be the old ones.
    """
    try:
        module = importlib.import_module(place)
    except Exception as error:  # the module is the user's: it may raise anything
        raise W2SError(
            f"functions {spec!r} cannot be imported ({type(error).__name__}: "
            f"{one_line(error)}); expected 'package.module' on the Python path, or "
            "'path/to/file.py'"
        ) from error
    if _edited(module):
        raise W2SError(
            f"functions {spec!r}: {place} was edited after it was imported; start Python again, or "
            f"name its file, {module.__file__}, which is read each time"
        )
    return module


def module_digest(name: str) -> str:
    """Return a digest of the code of a module whose classes specs name, as ``source_digest``.

    Raises:
        W2SError: It was edited after its import: its classes are the old ones.
    """
    module = importlib.import_module(name)
    if _edited(module):
        raise W2SError(f"{name} was edited after it was imported; start Python again")
    return _digest_of_module(module)


def _edited(module: ModuleType) -> bool:
    digest = _digest_of_module(module)
    return _imported.setdefault(module.__name__, digest) != digest


def _digest_of_module(module: ModuleType) -> str:
    file = getattr(module, "__file__", None)
    return code_digest(Path(file)) if file else hashlib.sha256(module.__name__.encode()).hexdigest()


def _file(place: str, spec: str) -> Path:
    path = user_path(place, "functions").resolve()
    if not path.is_file():
        raise W2SError(f"functions {spec!r}: there is no file {place}")
    return path


def _load_file(place: str, spec: str) -> ModuleType:
    path = _file(place, spec)
    # A name of its own: a file called json.py must not replace the module of that name.
    name = f"_labeling_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    found = importlib.util.spec_from_file_location(name, path)
    assert found is not None and found.loader is not None  # for any name that ends in .py
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module  # dataclasses and pickle look their module up
    try:
        found.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise W2SError(
            f"functions {spec!r} cannot be loaded: {type(error).__name__}: {one_line(error)}"
        ) from error
    return module


def _own_functions(module: ModuleType, spec: str) -> list[LabelingFunction]:
    values = [v for v in vars(module).values() if isinstance(v, LabelingFunction)]
    own = [v for v in values if v.defined_in in (None, module.__name__)]
    if not own:
        raise W2SError(
            f"functions {spec!r}: the module defines no labeling function; decorate one with "
            "@labeling_function(), or name a list as 'package.module:NAME'"
        )
    return list(dict.fromkeys(own))  # a second name of a function is the same function
