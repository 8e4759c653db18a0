"""Damage to files: single bits and lost ends, the same for the same seed."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np


def damaged(content: bytes, n_bits: int, seed: int = 0) -> Iterator[bytes]:
    """Yield ``content`` with one wrong bit, ``n_bits`` times, and cut short, three times."""
    rng = np.random.default_rng([seed, len(content)])
    for position in rng.integers(0, 8 * len(content), n_bits).tolist():
        whole = bytearray(content)
        whole[position // 8] ^= 1 << position % 8
        yield bytes(whole)
    for length in (0, len(content) // 2, len(content) - 1):
        yield content[:length]
