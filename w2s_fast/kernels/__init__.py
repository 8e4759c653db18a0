"""Triton kernels. Sources live in the top-level kernels/ folder; a wheel carries them here."""

from pathlib import Path

_root = Path(__file__).resolve().parents[2]
if (_root / "setup.py").is_file():  # source checkout or editable install, never site-packages
    __path__.append(str(_root / "kernels"))
