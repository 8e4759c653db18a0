"""Log every step of a training to the trackers of a run."""

from __future__ import annotations

import contextlib
import importlib
import math
import os
import resource
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from w2s_fast.errors import W2SError, one_line
from w2s_fast.tracking.config import TRACKERS, TrackingConfig
from w2s_fast.training import StepRecord

_LOGGED = ("loss", "threshold", "coefficient", "agreement", "grad_norm", "lr")


@contextlib.contextmanager
def step_logger(
    cfg: TrackingConfig, folder: Path, name: str, settings: Mapping[str, Any]
) -> Iterator[Callable[[StepRecord], None] | None]:
    """Yield the ``on_step`` of a training that logs to all trackers; None without any.

    Logged are loss, threshold, coefficient, agreement, gradient norm and learning rate of the
    record, ``tokens_per_s`` and ``peak_memory_mib``. A tracker that fails while the training runs
    is dropped with a warning: the training goes on.

    Args:
        cfg: The trackers. Only rank 0 may have some.
        folder: Folder of their files.
        name: Name of the training, such as "student/0/xent".
        settings: Its settings by dotted name; numbers, texts and booleans.

    Raises:
        W2SError: A tracker cannot start.
    """
    if not cfg.trackers:
        yield None
        return
    with contextlib.ExitStack() as stack:
        trackers: dict[str, Any] = {}
        for kind in cfg.trackers:
            stack.enter_context(_default_environment(kind, folder / kind))
            trackers[kind] = _start(kind, cfg.project, folder, name, settings)
            stack.callback(_finish, kind, trackers)
        yield _StepLogger(trackers)


class _StepLogger:
    """Log records to trackers by name; a tracker that fails is removed from them."""

    def __init__(self, trackers: dict[str, Any]) -> None:
        self._trackers = trackers
        self._seconds: float | None = None  # at the end of the step before, if that is known

    def __call__(self, record: StepRecord) -> None:
        values = {field: getattr(record, field) for field in _LOGGED}
        start = 0.0 if record.step == 1 else self._seconds
        seconds = 0.0 if start is None else record.seconds - start
        self._seconds = record.seconds
        values["tokens_per_s"] = record.tokens / seconds if seconds > 0 else math.nan
        values["peak_memory_mib"] = _peak_memory_mib()
        finite = {key: float(v) for key, v in values.items() if math.isfinite(v)}
        for kind in list(self._trackers):
            try:
                self._trackers[kind].log(finite, step=record.step)
            except Exception as err:
                _drop(kind, self._trackers, err)


def _start(kind: str, project: str, folder: Path, name: str, settings: Mapping[str, Any]) -> Any:
    """Start a tracker, and give it the settings of the training."""
    tracking = importlib.import_module("accelerate.tracking")
    own = folder / kind
    try:
        own.mkdir(parents=True, exist_ok=True)
        importlib.import_module("accelerate").PartialState()  # its log messages need one
        tracker = getattr(tracking, TRACKERS[kind])(**_arguments(kind, project, own, name))
        with contextlib.redirect_stdout(sys.stderr):  # standard output is for results
            tracker.start()
        if kind == "tensorboard":  # its hyper-parameters would be a run of their own
            lines = (f"    {key}: {value}" for key, value in settings.items())
            tracker.log({"settings": "\n".join(lines)}, step=0)
        else:
            tracker.store_init_configuration(dict(settings))
    except Exception as err:
        raise W2SError(
            f"the tracker {kind!r} could not start ({type(err).__name__}: {one_line(err)}); repair "
            "its setup, or leave it out of tracking.trackers"
        ) from err
    return tracker


def _arguments(kind: str, project: str, folder: Path, name: str) -> dict[str, Any]:
    """Return the arguments of the tracker's class."""
    if kind == "tensorboard":
        return {"run_name": name, "logging_dir": folder}
    if kind == "wandb":
        return {"run_name": project, "name": name, "dir": str(folder)}
    if kind == "trackio":
        return {"run_name": project, "name": name}
    return {"experiment_name": project, "logging_dir": str(folder), "run_name": name}


@contextlib.contextmanager
def _default_environment(kind: str, folder: Path) -> Iterator[None]:
    """Set variables of a tracker that the user has not set; unset them at the end."""
    own = str(folder.absolute())
    defaults = {
        "wandb": {"WANDB_MODE": "offline", "WANDB_SILENT": "true"},
        "trackio": {"TRACKIO_DIR": own},
        "mlflow": {"MLFLOW_TRACKING_URI": f"sqlite:///{own}/mlflow.db"},
    }.get(kind, {})
    added = {name: value for name, value in defaults.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def _finish(kind: str, trackers: dict[str, Any]) -> None:
    """Finish a tracker that has not failed before."""
    if kind in trackers:
        try:
            with contextlib.redirect_stdout(sys.stderr):
                trackers[kind].finish()
        except Exception as err:
            _drop(kind, trackers, err)


def _drop(kind: str, trackers: dict[str, Any], err: Exception) -> None:
    del trackers[kind]
    text = f"the tracker {kind!r} failed ({type(err).__name__}: {one_line(err)}); it logs no more"
    warnings.warn(text, stacklevel=2)


def _peak_memory_mib() -> float:
    """Return the peak memory of the CUDA device, or without one of this process."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
