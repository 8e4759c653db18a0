"""Folders of the checkout."""

from __future__ import annotations

import os
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent
# ``PYTHONPATH`` of a program among the tests
PYTHONPATH = os.pathsep.join([str(ROOT), str(TESTS)])
