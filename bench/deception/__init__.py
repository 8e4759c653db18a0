"""Weak-to-strong deception on harmless preference pairs: ``python -m bench deception``."""
