"""Label models: estimate how noisy sources vote given the class, and the class of every row.

Functions of arrays: votes (n, m) of classes 0 .. K-1, and -1 where a source abstains.
"""

from w2s_fast.label_models.dawid_skene import DawidSkene
from w2s_fast.label_models.independence import IndependenceTest, independence_test
from w2s_fast.label_models.jackknife import StandardErrors
from w2s_fast.label_models.majority import MajorityVote, WeightedVote, majority_vote
from w2s_fast.label_models.metal import MeTaL
from w2s_fast.label_models.posterior import posterior
from w2s_fast.label_models.registry import LABEL_MODELS, make_label_model
from w2s_fast.label_models.scores import GaussianScores, ScoreErrors
from w2s_fast.label_models.tree_dawid_skene import TreeDawidSkene
from w2s_fast.label_models.triplets import Triplets
from w2s_fast.label_models.votes import VoteSummary, covered_rows, summarize_votes

__all__ = [
    "LABEL_MODELS",
    "DawidSkene",
    "GaussianScores",
    "IndependenceTest",
    "MajorityVote",
    "MeTaL",
    "ScoreErrors",
    "StandardErrors",
    "TreeDawidSkene",
    "Triplets",
    "VoteSummary",
    "WeightedVote",
    "covered_rows",
    "independence_test",
    "majority_vote",
    "make_label_model",
    "posterior",
    "summarize_votes",
]
