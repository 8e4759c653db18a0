"""``python -m w2s_fast`` is ``w2s-fast``."""

from __future__ import annotations

import sys

from w2s_fast.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
