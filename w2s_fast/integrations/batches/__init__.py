"""Weak labels for anyone's trainer: from a file to rows, from rows to a batch.

N items, C classes, T tokens of a row, K listed tokens of a position.
"""

from w2s_fast.integrations.batches.collator import WeakLabelCollator
from w2s_fast.integrations.batches.verbalizer import answer_rows, label_tokens
from w2s_fast.integrations.batches.weak_labels import WeakLabels, read_labels

__all__ = ["WeakLabelCollator", "WeakLabels", "answer_rows", "label_tokens", "read_labels"]
