"""Preference pairs without a judge: from two generators, or from a search tree.

Functions of texts and numbers. The side that is chosen follows from where a text comes from: the
stronger of two generators (delta learning), or the sibling of the higher value in a tree (iterated
finetuning for tool use). No function reads a true label. What becomes no pair is named by reason.

Sources: Geng et al. 2025, "The delta learning hypothesis" (arXiv 2507.06187); Zeng et al. 2025,
"iTool" (arXiv 2501.09766).
"""

from w2s_fast.preference_pairs.delta import (
    DeltaPairs,
    DeltaReport,
    chosen_rows,
    delta_pairs,
    reversed_pairs,
)
from w2s_fast.preference_pairs.step_pairs import StepPairs, StepReport, step_pairs
from w2s_fast.preference_pairs.trees import Tree, TreeNode, read_trees, tree_from_record

__all__ = [
    "DeltaPairs",
    "DeltaReport",
    "StepPairs",
    "StepReport",
    "Tree",
    "TreeNode",
    "chosen_rows",
    "delta_pairs",
    "read_trees",
    "reversed_pairs",
    "step_pairs",
    "tree_from_record",
]
