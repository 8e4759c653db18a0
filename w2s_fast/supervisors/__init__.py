"""Many weak supervisors in a run: where votes come from, and how a posterior weighs its rows."""

from w2s_fast.supervisors.config import ROW_WEIGHTS, SupervisorsConfig
from w2s_fast.supervisors.sources import (
    Functions,
    Generated,
    LabelWords,
    Source,
    VoteColumn,
    WeakModel,
    parse_source,
)

__all__ = [
    "ROW_WEIGHTS",
    "Functions",
    "Generated",
    "LabelWords",
    "Source",
    "SupervisorsConfig",
    "VoteColumn",
    "WeakModel",
    "parse_source",
]
