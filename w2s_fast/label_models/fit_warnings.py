"""Warn about fits in which abstentions, and not votes, decide which class is which.

A latent class model finds whatever divides the rows. If sources vote rarely, that may be how many
of them vote: long texts contain more keywords of every class. True labels would show it; without
them, two symptoms are visible: many rows have no vote, and the fitted classes hardly agree with the
majority of the votes.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from w2s_fast.errors import DataWarning
from w2s_fast.label_models.votes import covered_rows

LARGE_SHARE = 0.25  # of rows without votes, which then decide the accuracy on all rows
LEAST_KAPPA = 0.25  # of fitted classes and majority vote; 0 is chance
_ROWS = 10_000  # that are compared
_REMEDY = "pass class_balance if it is known, or class_balance='majority' with anchor=100.0"


def warn_about_uncovered(n_uncovered: int, n_rows: int, probs: Tensor, *, missing: bool) -> None:
    """Warn if many rows have no vote, and what they get.

    Args:
        n_uncovered: rows without votes.
        n_rows: all rows.
        probs: (K,) class probabilities of a row without votes.
        missing: abstentions say nothing about the class.
    """
    if n_uncovered < LARGE_SHARE * n_rows:
        return
    first = ", ".join(f"{p:.3f}" for p in probs[:5].tolist()) + (", ..." if len(probs) > 5 else "")
    source = "are the class balance" if missing else "rest on when sources abstain"
    _warn(
        f"{n_uncovered} of {n_rows} rows have no vote; all of them get the class probabilities "
        f"[{first}], which {source}: score the others apart (covered_rows), and {_REMEDY}"
    )


def warn_about_disagreement(votes: Tensor, shares: Tensor, probs: Tensor) -> None:
    """Warn if the fitted classes of rows agree with the majority vote hardly better than chance.

    Args:
        votes: checked votes (n, m).
        shares: (n, K) shares of votes; rows without votes or one largest share are left out.
        probs: (n, K) fitted class probabilities.
    """
    step = -(-len(shares) // _ROWS)
    votes, shares, probs = votes[::step], shares[::step], probs[::step]
    best = shares.topk(2, 1)
    decided = covered_rows(votes) & (best.values[:, 0] > best.values[:, 1])
    kappa = cohen_kappa(best.indices[decided, 0], probs[decided].argmax(1), shares.shape[1])
    if kappa < LEAST_KAPPA:
        _warn(
            f"the fitted classes agree with the majority of votes by a kappa of {kappa:.2f} (0 is "
            "chance): they may be rows of many and of few votes rather than the classes; compare "
            f"with majority_vote, and {_REMEDY}"
        )


def cohen_kappa(a: Tensor, b: Tensor, n_classes: int) -> float:
    """Return the agreement of two labelings (n,) beyond chance; 1 where no chance is left.

    Source: Cohen 1960, "A coefficient of agreement for nominal scales".
    """
    if not len(a):
        return 1.0
    joint = torch.bincount(a * n_classes + b, minlength=n_classes**2).double().view(n_classes, -1)
    joint = joint / joint.sum()
    chance = float(joint.sum(0) @ joint.sum(1))
    return 1.0 if chance >= 1 else (float(joint.trace()) - chance) / (1 - chance)


def _warn(message: str) -> None:
    warnings.warn(message, DataWarning, stacklevel=4)
