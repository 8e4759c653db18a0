"""Weak-to-strong experiments with a language model on real data: ``python -m bench evidence``."""
