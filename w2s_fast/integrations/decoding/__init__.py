"""Sums of the logits of several language models while one of them generates.

``LogitArithmetic`` is a ``LogitsProcessor`` of transformers; ``guided`` and ``contrastive`` make
the two sums that are used most.
"""

from w2s_fast.integrations.decoding.arithmetic import combine
from w2s_fast.integrations.decoding.processor import LogitArithmetic, contrastive, guided
from w2s_fast.integrations.decoding.terms import Term
from w2s_fast.integrations.decoding.vocabulary import check_same_vocabulary

__all__ = [
    "LogitArithmetic",
    "Term",
    "check_same_vocabulary",
    "combine",
    "contrastive",
    "guided",
]
