"""Commands that start further Python interpreters."""

from __future__ import annotations

import sys

# For Python 3.10, which has no -P. `sys` is built in, so no file can take its place.
_RUN = (
    "import sys; sys.path[:1] == [''] and sys.path.pop(0); import runpy; name = sys.argv.pop(1); "
    "runpy.run_module(name, run_name='__main__', alter_sys=True)"
)


def module_command(name: str, version: tuple[int, ...] = sys.version_info[:2]) -> list[str]:
    """Return the command of ``python -m name`` that imports nothing from the working folder."""
    if version >= (3, 11):
        return [sys.executable, "-P", "-m", name]
    return [sys.executable, "-c", _RUN, name]
