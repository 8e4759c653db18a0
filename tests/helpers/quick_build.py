"""DeepSpeed's optimizer for the host, compiled for tests: optimizing takes a minute of a core."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

SCRIPT = '#!/bin/sh\nexec c++ "$@" -O0 -g0\n'  # the last of several levels counts


def environment() -> dict[str, str]:
    """Variables of a build that is quick, in a folder of its own that all tests share."""
    folder = Path(tempfile.gettempdir()) / f"w2s-fast-extensions-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    compiler = folder / "c++"
    if not compiler.exists():
        mine = folder / f"c++.{os.getpid()}"
        mine.write_text(SCRIPT)
        mine.chmod(0o700)
        mine.replace(compiler)
    return {"CXX": str(compiler), "TORCH_EXTENSIONS_DIR": str(folder)}
