"""Weak-to-strong reasoning: the released files of its paper, and the speed of sampling."""
