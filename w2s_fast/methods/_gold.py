"""Which plans are refused: those in which true labels reach a student other than by weak labels.

A plan says what is to be computed, so this is checked before anything is. The weak model alone is
trained on true labels, and only its labels of other rows leave it.
"""

from __future__ import annotations

from w2s_fast.errors import W2SError
from w2s_fast.methods._node import Node, all_nodes

# What a student may be made of: the stages that a ``Plan`` asks for, without the ceiling.
_STAGES = (
    "weak", "labels", "intermediate", "student", "control", "tuned", "features", "prior", "balance",
    "transcripts", "trajectory", "apply", "calibration", "trust", "votes", "generated_votes",
    "posterior", "gate", "samples", "text_labels", "pair_logprob", "perplexity", "reference",
    "boosting", "backbone", "compressed",
)  # fmt: skip

_LEARNED = ("weak", "generated_votes")  # what true labels of the weak split have taught
_PREDICTED = (
    "labels",
    "votes",
    "generated_votes",
    "posterior",
    "samples",
)  # may learn from true labels
_PREDICTS = ("labels", "samples", "pair_logprob")  # with the weights of a trained model
# These stages take each row from the model that was trained without its fold.
_CROSS_FITTED = ("transcripts", "calibration")
_BOOSTED = ("weak", "boosting", "apply")  # row weights of weak models, and votes on their labels


def check_gold(student: Node) -> None:
    """Check that true labels reach a student through the weak model's labels alone.

    Uses that ``Node.gold`` describes are not counted: the report shows them.

    Raises:
        W2SError: Another node on the way to ``student`` was trained on true labels.
    """
    for node in all_nodes([student]):
        if node.stage == "ceiling":
            raise W2SError(
                "the method learns from a model of stage 'ceiling', which was trained on the true "
                "labels of the same rows; use a student or the weak model"
            )
        if node.stage not in _STAGES:
            raise W2SError(
                f"the method asks for stage {node.stage!r}; expected one of {', '.join(_STAGES)}, "
                "as the functions of Plan return them"
            )
        role = dict(node.settings).get("role")
        if node.stage == "weak" and role != "weak":
            raise W2SError(
                f"the method trains model {role!r} on the true labels of the weak split, which "
                "only the weak model may see; use plan.weak_model()"
            )
        for name, needed in node.needs:
            _check_edge(node, name, needed)


def _check_edge(node: Node, name: str, needed: Node) -> None:
    """Raise `W2SError` if an input hands on what it was taught by true labels."""
    if needed.stage == "weak" and node.stage not in _PREDICTS:
        raise W2SError(
            f"the method gives the weights of the weak model, which were trained on true labels, "
            f"to stage {node.stage!r} as {name!r}; use its labels: plan.labels(model)"
        )
    if needed.stage == "boosting" and node.stage not in _BOOSTED:
        raise W2SError(
            f"the method gives a round of boosting, which says where weak models err on true "
            f"labels, to stage {node.stage!r} as {name!r}; use the votes: plan.apply"
        )
    on_own_rows = needed.stage in _PREDICTED and dict(needed.settings).get("split") == "weak"
    same_rows = node.stage in _PREDICTED and dict(node.settings).get("split") == "weak"
    if on_own_rows and not (
        same_rows
        or node.stage in _CROSS_FITTED
        or node.stage == "boosting"
        or (node.stage == "trust" and _leaves_fold_out(name, needed))
        or (node.stage == "gate" and _leaves_fold_out(name.partition("_")[0], needed))
    ):
        raise W2SError(
            f"the method gives the labels of the weak split to stage {node.stage!r} as {name!r}; "
            "its models have learned the true labels of these rows: use those of the transfer set"
        )


def _leaves_fold_out(name: str, labels: Node) -> bool:
    """Return whether all that learned for labels called ``fold{i}`` learned without fold i."""
    learned = [node for node in all_nodes([labels]) if node.stage in _LEARNED]
    return name.startswith("fold") and all(
        name == f"fold{dict(node.settings).get('fold')}" for node in learned
    )
