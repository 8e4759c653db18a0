"""Show trainings in TensorBoard, Weights & Biases, trackio or MLflow while they run.

accelerate's tracker classes do the work. Trackers read what a training records of every step, so
they change no result, and are no part of the identity of a stage.
"""

from w2s_fast.tracking.config import TRACKERS, TrackingConfig, check_trackers

__all__ = ["TRACKERS", "TrackingConfig", "check_trackers"]
