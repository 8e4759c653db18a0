r"""Drop verifiers by their marginal, the share of responses q_j that they accept.

A verifier that accepts almost everything or almost nothing has few informative votes. Rules:

    all        0.1 < q < 0.9
    small      q > 0.5         drops those that accept little
    large      q < 0.5         drops those that accept much
    adaptive   large if the class balance is below 0.2, small if it is above 0.8, else all

``small`` and ``large`` suit problems of which most responses are right or wrong, respectively: a
verifier whose marginal lies on the wrong side of 1/2 is then mostly wrong. ``adaptive`` makes this
choice from a class balance, which may be estimated without labels by a label model.

Source: the released code of Weaver (arXiv 2506.18203).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from w2s_fast.errors import W2SError, nearest
from w2s_fast.verifiers.rows import check_scores, check_share, shown

RULES = ("all", "small", "large", "adaptive")
LOW, HIGH = 0.1, 0.9  # marginals of the rule all
FEW, MANY = 0.2, 0.8  # class balances at which adaptive leaves that rule


def keep_by_marginal(votes: Any, rule: str = "all", balance: float | None = None) -> np.ndarray:
    """Return which verifiers to keep, (m,) bool.

    Args:
        votes: (N, m) of -1, 0 and 1; marginals are those of the votes that were cast.
        rule: Of ``RULES``.
        balance: Share of responses that are right, in (0, 1); only ``adaptive`` needs it.

    Raises:
        W2SError: Votes, rule or balance are wrong, or no verifier remains.
    """
    if not isinstance(rule, str) or rule not in RULES:
        hint = nearest(str(rule), RULES)
        raise W2SError(f"rule is {shown(rule)}; expected {' or '.join(RULES)}{hint}")
    marginals = acceptance(votes)
    chosen = rule if rule != "adaptive" else _adapted(balance)
    keep = {
        "all": (marginals > LOW) & (marginals < HIGH),
        "small": marginals > 0.5,
        "large": marginals < 0.5,
    }[chosen]
    if not keep.any():
        values = ", ".join(f"{q:.3g}" for q in marginals)
        raise W2SError(
            f"rule {rule!r} keeps none of {len(keep)} verifiers, which accept shares of {values}; "
            "use another threshold or rule"
        )
    return keep


def acceptance(votes: Any) -> np.ndarray:
    """Return the share of acceptances among the votes of each verifier, (m,) float64; NaN for none.

    Raises:
        W2SError: Votes are no matrix of -1, 0 and 1.
    """
    matrix = check_acceptances(votes)
    cast = (matrix >= 0).sum(0)
    return np.divide((matrix == 1).sum(0), cast, out=np.full(len(cast), np.nan), where=cast > 0)


def check_acceptances(votes: Any) -> np.ndarray:
    """Check votes on responses and convert them to float64 (N, m) of -1, 0 and 1.

    Raises:
        W2SError: Votes are no matrix of -1, 0 and 1.
    """
    matrix = check_scores(votes)
    wrong = ~np.isin(matrix, (-1, 0, 1))
    if wrong.any():
        row, verifier = (int(i) for i in np.argwhere(wrong)[0])
        raise W2SError(
            f"vote of verifier {verifier} for row {row} is {matrix[row, verifier]:g}; expected 1 "
            "(accept), 0 (reject) or -1 (abstain): call binarize first"
        )
    return matrix


def _adapted(balance: float | None) -> str:
    if balance is None:
        raise W2SError("rule 'adaptive' needs balance, the share of responses that are right")
    share = check_share("balance", balance)
    if share < FEW:
        return "large"
    return "small" if share > MANY else "all"
