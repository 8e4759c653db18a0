"""Combine verifiers of generated responses, select one response per problem, distil the result.

Functions of arrays. A row is a response: scores (N, m) by m verifiers, and (N,) names of the
problems that the responses answer. Problems may differ in their number of responses. Only the
functions that take ``gold`` or counts of right responses use true labels.

Source: Saad-Falcon et al. 2025, "Shrinking the generation-verification gap with weak verifiers"
(arXiv 2506.18203), Weaver.
"""

from w2s_fast.verifiers.binarization import (
    binarize,
    binarize_within_problems,
    quantile_thresholds,
)
from w2s_fast.verifiers.distillation import distillation_rows
from w2s_fast.verifiers.filtering import keep_by_marginal
from w2s_fast.verifiers.independence import keep_independent
from w2s_fast.verifiers.log_odds import gaussian_log_odds, weaver_log_odds
from w2s_fast.verifiers.majority_answer import majority_verifier
from w2s_fast.verifiers.normalization import min_max_scores, naive_average, quantile_scores
from w2s_fast.verifiers.pass_at_k import count_right, generation_verification_gap, pass_at_k
from w2s_fast.verifiers.rows import Problems, check_problems, check_scores
from w2s_fast.verifiers.selection import select, selection_accuracy, selection_outcomes

__all__ = [
    "Problems",
    "binarize",
    "binarize_within_problems",
    "check_problems",
    "check_scores",
    "count_right",
    "distillation_rows",
    "gaussian_log_odds",
    "generation_verification_gap",
    "keep_by_marginal",
    "keep_independent",
    "majority_verifier",
    "min_max_scores",
    "naive_average",
    "pass_at_k",
    "quantile_scores",
    "quantile_thresholds",
    "select",
    "selection_accuracy",
    "selection_outcomes",
    "weaver_log_odds",
]
