"""The block ``supervisors`` of a run's configuration. Importing it needs no torch."""

from __future__ import annotations

import re
from dataclasses import dataclass

from w2s_fast.errors import W2SError, nearest

BALANCES = ("estimated", "uniform", "majority")
ROW_WEIGHTS = ("covered", "confidence", "equal")


@dataclass(frozen=True)
class SupervisorsConfig:
    """Weak supervisors whose votes a label model combines; no sources: the weak model labels alone.

    Attributes:
        sources: Where votes come from, in order: "votes" (the column ``task.votes``),
            "functions:FILE.py" or "functions:package.module" (labelling functions), "weak" (the
            weak model; "weak:member=1" another one), "label_words" (the untrained student), and
            "stumps", "logistic" or "neighbors" (functions learned from the weak split).
        label_model: "majority", "weighted", "dawid_skene", "triplets", "metal" or
            "tree_dawid_skene", with its settings. By default every source starts with 100 votes of
            which 80 % are right, which keeps rare votes from being explained by anything else.
        class_balance: "estimated" by the label model, "uniform", "majority" (of the majority vote),
            or class probabilities joined by "+": "0.9+0.1".
        row_weight: Weight of a text for the student: "covered" (1 with votes, 0 without),
            "confidence" (1 - entropy / log C with votes, 0 without) or "equal" (1; a text without
            votes has the class balance as its label).
        gate: Select the sources that help to predict the true labels of the weak split together,
            before the label model sees any vote (``trust.fit_source_gate``); reports list this use
            of true labels.
        layer: Layer of the untrained student whose hidden states learned functions read: "half",
            "last" or a number.
    """

    sources: tuple[str, ...] = ()
    label_model: str = "dawid_skene:anchor=100"
    class_balance: str = "majority"
    row_weight: str = "covered"
    gate: bool = False
    layer: str = "half"

    def __post_init__(self) -> None:
        if repeated := [s for i, s in enumerate(self.sources) if s in self.sources[:i]]:
            raise W2SError(
                f"supervisors.sources: {repeated[0]!r} is given twice, and would count as two "
                "independent witnesses; drop one"
            )
        if self.row_weight not in ROW_WEIGHTS:
            raise W2SError(
                f"supervisors.row_weight={self.row_weight!r}: expected one of "
                f"{', '.join(ROW_WEIGHTS)}{nearest(self.row_weight, ROW_WEIGHTS)}"
            )
        if not re.fullmatch("half|last|[0-9]+", self.layer):
            raise W2SError(
                f"supervisors.layer={self.layer!r}: expected half, last, or a number, 0 for the "
                "embeddings"
            )
        self.balance  # noqa: B018 - parsed to be checked

    @property
    def balance(self) -> str | list[float] | None:
        """The class balance as label models take it; None to estimate it."""
        if self.class_balance in BALANCES:
            return None if self.class_balance == "estimated" else self.class_balance
        try:
            shares = [float(part) for part in self.class_balance.split("+")]
        except ValueError:
            raise W2SError(
                f"supervisors.class_balance={self.class_balance!r}: expected "
                f"{', '.join(BALANCES)}, or one probability per class joined by '+'"
                f"{nearest(self.class_balance, BALANCES)}"
            ) from None
        if not (min(shares) > 0 and abs(sum(shares) - 1) <= 1e-6):
            raise W2SError(
                f"supervisors.class_balance={self.class_balance!r} sums to {sum(shares):g}; "
                "expected probabilities above 0 that sum to 1"
            )
        return shares
