"""Weak labels for anyone's trainer: from a file to rows, from rows to a batch.

N items, C classes, T tokens of a row, K listed tokens of a position.
"""

from w2s_fast.data.collate import WeakLabelCollator
from w2s_fast.data.labels import WeakLabels, read_labels
from w2s_fast.data.words import answer_rows, label_tokens

__all__ = ["WeakLabelCollator", "WeakLabels", "answer_rows", "label_tokens", "read_labels"]
