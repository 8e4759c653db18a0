"""The pipeline of an experiment: weak model, weak labels, student, ceiling, report."""

from __future__ import annotations

from w2s_fast.pipeline.experiment import label, run

__all__ = ["label", "run"]
