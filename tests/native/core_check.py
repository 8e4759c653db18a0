"""Check the compiled core of an installed wheel with numpy alone: python core_check.py.

A wheel is installed without its requirements here: torch does not exist for every Python and
platform that a wheel can be built for.
"""

from __future__ import annotations

import math
import sys

import numpy as np

from w2s_fast import _core

F32, NO_RULE, ANY = 0, 0, math.inf  # codes of csrc/w2s.h; every confidence counts


def two_classes(z: np.ndarray, y: np.ndarray) -> tuple[float, np.ndarray]:
    """The mean cross-entropy of two classes and its gradient, by the core."""
    n, grad, loss = len(z), np.empty_like(z), np.zeros(1, np.float32)
    address = [a.ctypes.data for a in (z, y, grad, loss)]
    bad, count, _ = _core.two_class(
        n, address[0], 2, F32, address[1], 0, 0, 0, 0, -100, NO_RULE, 0, 0.0, 0.0, 0.0, 0.0, ANY,
        True, 0, 0, 0, address[2], 2, address[3],
    )  # fmt: skip
    assert (bad, count) == (-1, n)
    return float(loss[0]), grad


def rows(z: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row losses of a dense call (N,), and the gradient of their sum."""
    n, v = z.shape
    stats, index, grad = np.zeros((12, n), np.float32), np.zeros((3, n), np.int64), np.empty_like(z)
    call = _core.RowCall(
        n, v, 1, z.ctypes.data, v, F32, y.ctypes.data, 0, 0, 0, False, True, 0, 0, -100, NO_RULE,
        0.0, -math.inf, 0.0, 0.0, ANY, 0.0, 0.0, 1.0, 0, 0, stats.ctypes.data, index.ctypes.data,
        0, grad.ctypes.data, v, 0, 0, 0,
    )  # fmt: skip
    assert _core.rows(call) == -1
    return stats, grad


def reference(z: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row losses and gradients in fp64."""
    x = z.astype(np.float64)
    lse = np.log(np.exp(x - x.max(1, keepdims=True)).sum(1)) + x.max(1)
    grad = np.exp(x - lse[:, None])
    grad[np.arange(len(y)), y] -= 1
    return lse - x[np.arange(len(y)), y], grad


def main() -> int:
    """Compare losses, gradients and quantiles with numpy; print the instruction set."""
    rng = np.random.default_rng(0)
    z, y = rng.normal(size=(33, 2)).astype(np.float32), rng.integers(0, 2, 33)
    loss, grad = two_classes(z, y)
    losses, slopes = reference(z, y)
    assert abs(loss - losses.mean()) < 1e-6 and np.abs(grad - slopes / 33).max() < 1e-7
    z, y = 3 * rng.normal(size=(7, 1003)).astype(np.float32), rng.integers(0, 1003, 7)
    stats, grad = rows(z, y)
    losses, slopes = reference(z, y)
    assert min(np.abs(row - losses).max() for row in stats) < 1e-5
    assert np.abs(grad - slopes).max() < 1e-6
    x = rng.normal(size=1001).astype(np.float32)
    for q in (0.0, 0.3, 0.5, 1.0):
        assert abs(_core.quantile(x.ctypes.data, F32, 0, len(x), q) - np.quantile(x, q)) < 1e-6
    assert "torch" not in sys.modules
    print(_core.isa())
    return 0


if __name__ == "__main__":
    sys.exit(main())
