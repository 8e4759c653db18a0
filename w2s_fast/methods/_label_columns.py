"""Which losses fit the labels of a student, and what they need beside them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from w2s_fast.errors import W2SError


def columns_of(pairs: bool, training: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the columns that the loss needs of pairs: "reference", "target"; none for completions.

    Args:
        pairs: Whether the labels of the student are pairs.
        training: Settings of its training, with the spec of its loss.

    Raises:
        W2SError: Labels are pairs and the loss is no preference loss, or the reverse; or pairs have
            ``stages``.
    """
    from w2s_fast.losses.preference import PREFERENCES, make_preference

    loss = training["loss"]
    if pairs != (loss.split(":")[0] in PREFERENCES):
        labels_are = "pairs of completions" if pairs else "completions"
        raise W2SError(
            f"the student's labels are {labels_are}, and its loss is {loss!r}; expected "
            + (f"one of {', '.join(PREFERENCES)}" if pairs else "a loss of tokens, such as xent")
        )
    if pairs and training.get("stages"):
        raise W2SError(
            "a method trains in stages of completions, and the student's labels are pairs; leave "
            "it out, or give the stages to the model that the student continues from"
        )
    return make_preference(loss).needs if pairs else ()
