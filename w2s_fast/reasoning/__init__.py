"""Weak-to-strong reasoning: training sets from the agreement of a weak and a strong model.

Functions of texts. Stage I selects solutions on which both models agree, for finetuning; stage II
contrasts solutions by confidence and majority vote, for a preference loss. No function reads a true
label. What is not used is counted by reason, never dropped in silence.

Source: Yang, Ma and Liu 2024, "Weak-to-strong reasoning" (arXiv 2407.13647).
"""

from w2s_fast.reasoning.agreement import (
    AgreeingSets,
    AgreementReport,
    next_iteration,
    select_agreeing,
)
from w2s_fast.reasoning.equality import Verdict, answers_equal, compare_answers, is_readable
from w2s_fast.reasoning.pair_check import PairCheck, check_pairs
from w2s_fast.reasoning.pairs import ContrastivePairs, PairReport, contrastive_pairs
from w2s_fast.reasoning.reading import marked_answer, stated_answer
from w2s_fast.reasoning.rows import write_rows
from w2s_fast.reasoning.votes import Vote, answer_classes, vote

__all__ = [
    "AgreeingSets",
    "AgreementReport",
    "ContrastivePairs",
    "PairCheck",
    "PairReport",
    "Verdict",
    "Vote",
    "answer_classes",
    "answers_equal",
    "check_pairs",
    "compare_answers",
    "contrastive_pairs",
    "is_readable",
    "marked_answer",
    "next_iteration",
    "select_agreeing",
    "stated_answer",
    "vote",
    "write_rows",
]
