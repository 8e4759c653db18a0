"""Commands that start further Python interpreters."""

from __future__ import annotations

import sys


def module_command(name: str) -> list[str]:
    """Return the command of ``python -m name`` that imports nothing from the working folder."""
    return [sys.executable, "-P", "-m", name]
