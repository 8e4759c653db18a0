"""Label models by name, as a configuration gives them."""

from __future__ import annotations

from typing import Any

from w2s_fast.errors import W2SError, nearest
from w2s_fast.label_models.dawid_skene import DawidSkene
from w2s_fast.label_models.majority import MajorityVote, WeightedVote
from w2s_fast.label_models.metal import MeTaL
from w2s_fast.label_models.tree_dawid_skene import TreeDawidSkene
from w2s_fast.label_models.triplets import Triplets
from w2s_fast.specs import settings, split

LABEL_MODELS: dict[str, type[Any]] = {
    "majority": MajorityVote,
    "weighted": WeightedVote,
    "dawid_skene": DawidSkene,
    "triplets": Triplets,
    "metal": MeTaL,
    "tree_dawid_skene": TreeDawidSkene,
}


def make_label_model(spec: str, n_classes: int, class_balance: Any = None) -> Any:
    """Build a label model from ``name`` or ``name:field=value,field=value``.

    Args:
        spec: The spec; names are those of ``LABEL_MODELS``.
        n_classes: K.
        class_balance: As ``LabelModel.class_balance``; for "majority" and "weighted" the labels of
            rows without votes.

    Returns:
        An object with ``fit(votes)`` and ``posterior(votes)``.

    Raises:
        W2SError: A name or setting is unknown, or a value does not fit.
    """
    name, rest = split(spec)
    if name not in LABEL_MODELS:
        raise W2SError(
            f"unknown label model {name!r}; expected one of {', '.join(LABEL_MODELS)}"
            f"{nearest(name, LABEL_MODELS)}"
        )
    given = settings(LABEL_MODELS[name], rest, spec, "label model")
    if "n_classes" in given:
        raise W2SError(f"label model {spec!r}: n_classes is that of the task; leave it out")
    return LABEL_MODELS[name](n_classes, class_balance, **given)
