"""The experiment: weak supervisor, weak labels, student, ceiling, report. See ``run``."""

from __future__ import annotations

from w2s_fast.pipeline.experiment import label, run

__all__ = ["label", "run"]
