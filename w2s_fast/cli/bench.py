"""``w2s-fast bench``: ``python -m bench`` of the source checkout, from any folder."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from w2s_fast.errors import W2SError


def main(args: Sequence[str]) -> int:
    """Run the command; return its exit code.

    Raises:
        W2SError: The package is not a source checkout.
    """
    root = Path(__file__).resolve().parents[2]
    if not (root / "bench" / "__main__.py").is_file():
        raise W2SError(
            "the benchmarks are not part of the installed package; run this command in a source "
            "checkout of w2s_fast, installed with `pip install -e .`"
        )
    path = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "bench", *args]
    return subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, check=False).returncode
