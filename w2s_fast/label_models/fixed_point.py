r"""Find a fixed point x = g(x) by Anderson acceleration of the iteration x <- g(x).

    f_k = g(x_k) - x_k,    x_{k+1} = g(x_k) - dG gamma,    gamma = argmin || f_k - dF gamma ||

dF and dG hold the last differences of f and of g. A step whose f is much larger than the smallest
so far starts again from g without a history. The fixed points are those of the plain iteration.

Source: Anderson 1965; Walker and Ni 2011, "Anderson acceleration for fixed-point iterations".
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_DEPTH = 5  # differences that are kept
_GROWTH = 2.0  # of f, at which the history is dropped


def fixed_point(
    g: Callable[[Tensor], Tensor], x: Tensor, tolerance: float, max_iter: int
) -> tuple[Tensor, int]:
    """Return x with g(x) - x of at most ``tolerance`` in every entry, and the calls of g.

    Args:
        g: of a tensor of any shape, to the same shape.
        x: the start.
        tolerance: largest entry of g(x) - x.
        max_iter: most calls of g; the last value is then returned as it is.
    """
    shape, least = x.shape, float("inf")
    values: list[Tensor] = []  # g(x), flat, of the last steps
    residuals: list[Tensor] = []
    for n_calls in range(1, max_iter + 1):  # noqa: B007, it is returned
        new = g(x)
        value, residual = new.flatten(), (new - x).flatten()
        if float(residual.abs().max()) <= tolerance:
            break
        size = float(residual.norm())
        if not size <= _GROWTH * least:
            values, residuals = [], []
        least = min(size, least)
        values, residuals = [*values, value][-_DEPTH - 1 :], [*residuals, residual][-_DEPTH - 1 :]
        x = _combined(values, residuals).view(shape)
    return new, n_calls


def _combined(values: list[Tensor], residuals: list[Tensor]) -> Tensor:
    """Return the combination of values whose combined residual is least."""
    if len(values) == 1:
        return values[0]
    f, g = torch.stack(residuals, 1), torch.stack(values, 1)
    # gelsd: differences become parallel near the solution.
    gamma = torch.linalg.lstsq(f.diff(dim=1), f[:, -1:], rcond=1e-10, driver="gelsd").solution
    return g[:, -1] - (g.diff(dim=1) @ gamma)[:, 0]
