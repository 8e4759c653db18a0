"""Weak labels for any trainer: read them from a file, make rows, and collate batches.

N items, C classes, T tokens of a row, K tokens with a probability at a position.
"""

from w2s_fast.integrations.batches.collator import WeakLabelCollator
from w2s_fast.integrations.batches.teacher_states import (
    TeacherStates,
    open_teacher_states,
    store_teacher_states,
)
from w2s_fast.integrations.batches.verbalizer import answer_rows, label_tokens
from w2s_fast.integrations.batches.weak_labels import WeakLabels, read_labels

__all__ = [
    "TeacherStates",
    "WeakLabelCollator",
    "WeakLabels",
    "answer_rows",
    "label_tokens",
    "open_teacher_states",
    "read_labels",
    "store_teacher_states",
]
