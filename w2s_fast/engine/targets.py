"""Targets and row weights of a training, checked before anything is computed."""

from __future__ import annotations

import numpy as np

from w2s_fast.errors import W2SError


def check_targets(
    targets: np.ndarray,
    weight: np.ndarray | None,
    n: int,
    n_classes: int | None,
    n_tokens: int | None = None,
) -> None:
    """Raise ``W2SError`` unless targets and weights fit ``n`` rows and ``n_classes`` classes.

    ``n_tokens``: of answers, whose targets are token ids (L,).
    """
    if n_tokens is None and targets.ndim == 2 and np.issubdtype(targets.dtype, np.floating):
        expected: tuple[int, ...] = (n, n_classes or targets.shape[1])
        bad = ~np.isfinite(targets).all(1) | (targets < 0).any(1)
        problem = "weak labels must be finite and not negative"
    elif targets.ndim == 1 and np.issubdtype(targets.dtype, np.integer):
        expected = (n if n_tokens is None else n_tokens,)
        bad = ((targets < 0) & (targets != -100)) | (targets >= (n_classes or np.inf))
        problem = f"labels must be 0..{(n_classes or 0) - 1}, or -100 for a row not to use"
    else:
        raise W2SError(
            f"targets have shape {targets.shape} and dtype {targets.dtype}; expected "
            + ("integers (N,) or floats (N, C)" if n_tokens is None else "token ids (L,)")
        )
    if targets.shape != expected:
        raise W2SError(f"targets have shape {targets.shape}; expected {expected} to fit the data")
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise W2SError(f"target {targets[row].tolist()} in row {row}: {problem}")
    if weight is not None:
        if weight.shape != (n,):
            raise W2SError(f"weight has shape {weight.shape}; expected {(n,)} to fit the data")
        if not (np.isfinite(weight).all() and (weight >= 0).all()):
            raise W2SError("row weights must be finite and not negative")
