"""When to trust a label, a model or a source.

Functions of arrays: hidden states (n, D) and class probabilities (n, C). ``fit_trust`` and
``fit_source_gate`` learn from rows whose true labels are known, the others use none.
"""

from w2s_fast.trust.error_probe import ErrorProbe, probe_errors, word_features
from w2s_fast.trust.model import MIN_ROWS, TrustModel, fit_trust
from w2s_fast.trust.scores import TrustScores, score_trust
from w2s_fast.trust.selective import selective_labels
from w2s_fast.trust.smoothing import smooth_labels
from w2s_fast.trust.source_gate import SourceGate, fit_source_gate
from w2s_fast.trust.teachers import LearnedWeights, teacher_weights
from w2s_fast.trust.weights import MODES, trust_weights

__all__ = [
    "MIN_ROWS",
    "MODES",
    "ErrorProbe",
    "SourceGate",
    "LearnedWeights",
    "TrustModel",
    "TrustScores",
    "fit_source_gate",
    "fit_trust",
    "probe_errors",
    "score_trust",
    "selective_labels",
    "smooth_labels",
    "teacher_weights",
    "trust_weights",
    "word_features",
]
