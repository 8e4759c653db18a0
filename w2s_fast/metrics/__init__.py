"""Scores, the performance gap recovered, intervals, paired comparisons, diagnostics without gold.

Functions of arrays: they give the same numbers with and without the pipeline.
"""

from w2s_fast.metrics._probabilities import checked_labels, checked_probs
from w2s_fast.metrics.calibration import (
    N_BINS,
    CalibrationCurve,
    brier,
    calibration_curve,
    ece,
    ece_noise,
    nll,
)
from w2s_fast.metrics.calibrators import CALIBRATORS, Calibrator, fit_platt, fit_temperature
from w2s_fast.metrics.comparisons import Difference, holm, paired_difference
from w2s_fast.metrics.confusion import confusion, vote_agreement
from w2s_fast.metrics.deception import (
    DENOMINATORS,
    DeceptionItems,
    DeceptionScore,
    KnowledgePartition,
    conflict_tax,
    deception_items,
    deception_over_runs,
    deception_score,
    knowledge_partition,
)
from w2s_fast.metrics.estimates import LEVEL, MIN_DRAWS, Estimate, drawn_levels, estimate
from w2s_fast.metrics.fit_alarm import fit_alarm
from w2s_fast.metrics.gap import (
    GAP,
    MIN_GAP_SE,
    gap_quantile,
    gap_se,
    omission_reason,
    omission_reason_over_runs,
    pgr,
)
from w2s_fast.metrics.intervals import (
    half_width,
    mean_interval,
    p_value,
    pgr_contrast,
    pgr_interval,
    pgr_is_in_interval,
)
from w2s_fast.metrics.item_bootstrap import (
    Outcomes,
    difference_item_interval,
    paired_gap_se,
    pgr_item_interval,
)
from w2s_fast.metrics.misfit import Misfit, misfit
from w2s_fast.metrics.overlap import Overlap, change_point, find_overlap
from w2s_fast.metrics.runs import Runs, runs_of
from w2s_fast.metrics.scores import (
    Agreement,
    accuracy,
    agreement,
    auroc,
    balanced_accuracy,
    f1,
    worst_group_accuracy,
)
from w2s_fast.metrics.shortcuts import (
    SharedErrors,
    ShortcutScores,
    shared_errors,
    shortcut_scores,
)

__all__ = [
    "CALIBRATORS",
    "DENOMINATORS",
    "GAP",
    "LEVEL",
    "MIN_DRAWS",
    "MIN_GAP_SE",
    "N_BINS",
    "Agreement",
    "CalibrationCurve",
    "Calibrator",
    "DeceptionItems",
    "DeceptionScore",
    "Difference",
    "Estimate",
    "KnowledgePartition",
    "Misfit",
    "Outcomes",
    "Overlap",
    "Runs",
    "SharedErrors",
    "ShortcutScores",
    "accuracy",
    "agreement",
    "auroc",
    "balanced_accuracy",
    "brier",
    "calibration_curve",
    "change_point",
    "checked_labels",
    "checked_probs",
    "conflict_tax",
    "confusion",
    "deception_items",
    "deception_over_runs",
    "deception_score",
    "difference_item_interval",
    "drawn_levels",
    "ece",
    "ece_noise",
    "estimate",
    "f1",
    "find_overlap",
    "fit_alarm",
    "fit_platt",
    "fit_temperature",
    "gap_quantile",
    "gap_se",
    "half_width",
    "holm",
    "knowledge_partition",
    "mean_interval",
    "misfit",
    "nll",
    "omission_reason",
    "omission_reason_over_runs",
    "p_value",
    "paired_difference",
    "paired_gap_se",
    "pgr",
    "pgr_contrast",
    "pgr_interval",
    "pgr_is_in_interval",
    "pgr_item_interval",
    "runs_of",
    "shared_errors",
    "shortcut_scores",
    "vote_agreement",
    "worst_group_accuracy",
]
