r"""Finetune so that prefixes of the features classify too, and predict with one of them.

    L = sum_p a_p loss(x[:, :m_p] W[:, :m_p]^T + b, q)

The head of every prefix is a part of one head. What all classes need is learned in the first
features; later ones add detail, which for weak labels is in part their errors. Predictions use the
prefix ``predict``, whose complement in the head is set to zero after the training.

Sources: Kusupati et al. 2022 (arXiv 2205.13147), MRL-E; KaLM-Embedding-V2 (arXiv 2506.20923).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from w2s_fast.errors import W2SError
from w2s_fast.methods._base import Method, number
from w2s_fast.methods._node import Node
from w2s_fast.methods._plan import Plan


@dataclass(frozen=True, kw_only=True)
class Matryoshka(Method):
    """Sum the loss over prefixes of the head's input.

    Attributes:
        prefixes: shares of the features joined by "+", rising, in (0, 1].
        weights: one number a prefix, joined by "+"; empty: 1 each. The last is above 0.
        predict: the prefix that predictions use, one of ``prefixes``.
    """

    kinds = ("classification",)
    prefixes: str = "0.125+0.25+0.5+1"
    weights: str = ""
    predict: float = number(1.0, 0.0, 1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        shares = _numbers("prefixes", self.prefixes)
        rising = all(a < b for a, b in zip([0.0, *shares], shares, strict=False))
        if not shares or not rising or shares[-1] > 1:
            raise W2SError(
                f"Matryoshka: prefixes is {self.prefixes!r}; expected rising shares in (0, 1] "
                "joined by '+', such as 0.25+1"
            )
        if self.predict not in shares:
            raise W2SError(
                f"Matryoshka: predict is {self.predict}; expected one of the prefixes "
                f"{self.prefixes!r}"
            )
        weights = _numbers("weights", self.weights)
        if weights and (len(weights) != len(shares) or min(weights) < 0 or not weights[-1] > 0):
            raise W2SError(
                f"Matryoshka: weights is {self.weights!r}; expected {len(shares)} numbers of at "
                "least 0 joined by '+', the last above 0"
            )

    def training(self, plan: Plan) -> Mapping[str, Any]:
        shares = _numbers("prefixes", self.prefixes)
        weights = _numbers("weights", self.weights) or [1.0] * len(shares)
        return {
            "prefixes": tuple(shares),
            "prefix_weights": tuple(weights),
            "prefix": self.predict,
        }

    def final(self, plan: Plan, student: Node) -> Node:
        """Return the student.

        Raises:
            W2SError: Its backbone is frozen, so that nothing orders its features.
        """
        if dict(student.settings).get("freeze"):
            raise W2SError(
                "matryoshka orders the features of a backbone, and a method before it freezes it; "
                "expected matryoshka without probe"
            )
        return student


def _numbers(name: str, text: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.split("+")] if text else []
    except ValueError:
        numbers = [float("nan")]
    if any(x != x or abs(x) == float("inf") for x in numbers):
        raise W2SError(f"Matryoshka: {name} is {text!r}; expected numbers joined by '+'")
    return numbers
