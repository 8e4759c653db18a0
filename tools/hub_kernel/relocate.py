"""Source text of the package, changed so that it runs under any name.

The loader imports a kernel under a name of its own, so that versions can be loaded side by side.
Imports within the package become relative, and the registered operators get a namespace that no
other version has.
"""

from __future__ import annotations

import re

from tools.hub_kernel.closure import PACKAGE

_FROM = re.compile(rf"^(\s*)from {PACKAGE}((?:\.\w+)*) import ", re.MULTILINE)
_ABSOLUTE = re.compile(rf"^\s*import {PACKAGE}\b", re.MULTILINE)
_OPERATORS = (
    (re.compile(rf"\btorch\.ops\.{PACKAGE}\b"), "torch.ops.{}"),
    (re.compile(rf'"{PACKAGE}::'), '"{}::'),
    (re.compile(rf'Library\("{PACKAGE}"'), 'Library("{}"'),
)


def relocate(source: str, module: str, is_package: bool, namespace: str) -> str:
    """Return the text of ``module`` for any parent, with operators in ``namespace``.

    Raises:
        ValueError: for an import that cannot be made relative.
    """
    if _ABSOLUTE.search(source):
        raise ValueError(f"{module} has `import {PACKAGE}`; expected `from {PACKAGE}... import`")
    # Packages count themselves: the dots of a module lead from its folder to the top.
    depth = module.count(".") - (0 if is_package else 1)
    up = "." * (depth + 1)
    text = _FROM.sub(lambda m: f"{m[1]}from {up}{m[2].removeprefix('.')} import ", source)
    for pattern, changed in _OPERATORS:
        text = pattern.sub(changed.format(namespace), text)
    return text
