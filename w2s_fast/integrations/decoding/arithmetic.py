r"""The sum of logits of several models, and the plausibility mask of contrastive decoding.

    log p(v) = log softmax_v ( sum_m a_m z_m ),       v in { v : p_0(v) >= alpha max_u p_0(u) }

z_0 belongs to the model that generates. Guidance by g is a = (g, 1 - g), that is
z_w + g (z_s - z_w) for strong logits z_0 = z_s; contrastive decoding is a = (1, -1).

Sources: Li et al. 2022 (arXiv 2210.15097), Eq. 2 and 3, the plausibility mask; Liu et al. 2021
(arXiv 2105.03023) and 2024 (arXiv 2401.08565), sums of logits of several models.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from w2s_fast.errors import W2SError


def combine(
    logits: Tensor,
    others: Sequence[tuple[float, Tensor]],
    *,
    own: float = 1.0,
    alpha: float = 0.0,
) -> Tensor:
    """Compute log-probabilities of the sum of logits.

    A token that one of the models excludes by a logit of -inf is excluded.

    Args:
        logits: (N, V) of the model that generates; log-probabilities give the same.
        others: a coefficient and logits (N, V) of each other model.
        own: coefficient of ``logits``.
        alpha: tokens whose probability under ``logits`` is below alpha times the largest are
            excluded; 0 for none.

    Returns:
        (N, V) log-probabilities, fp32 (fp64 for fp64 logits).

    Raises:
        W2SError: for a coefficient that is not finite, alpha outside [0, 1], or shapes that
            differ.
    """
    check_coefficients([own, *(a for a, _ in others)], alpha)
    wide = torch.promote_types(logits.dtype, torch.float32)
    z = logits.to(wide)
    excluded = z == -torch.inf
    if alpha:
        excluded = excluded | (z < z.amax(-1, keepdim=True) + math.log(alpha))
    total = own * z
    for coefficient, other in others:
        if other.shape != z.shape:
            raise W2SError(
                f"other logits have shape {tuple(other.shape)}; expected {tuple(z.shape)}, those "
                "of the model that generates: cut both to the tokens they share"
            )
        other = other.to(z.device, wide)
        excluded = excluded | (other == -torch.inf)
        total = total + coefficient * other
    return total.masked_fill(excluded, -torch.inf).log_softmax(-1)


def check_coefficients(coefficients: Sequence[float], alpha: float) -> None:
    """Raise ``W2SError`` for a coefficient that is not finite, or alpha outside [0, 1]."""
    for a in coefficients:
        if isinstance(a, bool) or not isinstance(a, int | float) or not math.isfinite(a):
            raise W2SError(f"a coefficient is {a!r}; expected a finite number, such as 1.5")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 <= alpha <= 1:
        raise W2SError(
            f"alpha is {alpha!r}; expected a number in [0, 1], 0.1 in Li et al. 2022, or 0 for no "
            "plausibility mask"
        )
