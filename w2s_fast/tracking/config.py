"""Which trackers a run has."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

from w2s_fast.errors import W2SError, nearest
from w2s_fast.paths import PathText, expand_paths

# Name of a tracker and of its class in ``accelerate.tracking``; the name is that of its package.
TRACKERS = {
    "tensorboard": "TensorBoardTracker",
    "wandb": "WandBTracker",
    "trackio": "TrackioTracker",
    "mlflow": "MLflowTracker",
}


@dataclass(frozen=True)
class TrackingConfig:
    """Trackers that show the trainings of a run; they change no result.

    Attributes:
        trackers: Some of "tensorboard", "wandb", "trackio" and "mlflow"; none by default.
        folder: Folder of their files; default: OUTPUT_DIR/tracking.
        project: Name of the project, in MLflow of the experiment.
    """

    trackers: tuple[str, ...] = ()
    folder: PathText | None = None
    project: str = "w2s_fast"

    def __post_init__(self) -> None:
        for i, name in enumerate(self.trackers):
            if name not in TRACKERS:
                raise W2SError(
                    f"trackers: {name!r} is unknown; expected some of {', '.join(TRACKERS)}"
                    f"{nearest(name, TRACKERS)}"
                )
            if name in self.trackers[:i]:
                raise W2SError(f"trackers: {name!r} is given twice; drop one")
        if not self.project.strip():
            raise W2SError("project is empty; expected a name, or leave it out")
        expand_paths(self)


def check_trackers(cfg: TrackingConfig) -> None:
    """Check that the packages of the trackers are installed.

    Raises:
        W2SError: One is not; the message names it.
    """
    for name in cfg.trackers:
        missing = [p for p in ("accelerate", name) if importlib.util.find_spec(p) is None]
        if missing:
            raise W2SError(
                f"tracking.trackers has {name!r}, which needs {' and '.join(missing)}: pip install "
                f"{' '.join(missing)}, or leave the tracker out"
            )
