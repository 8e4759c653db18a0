"""Predictions of a model during its training, and the choice of the weights that are kept.

At every evaluation the model predicts a fixed set of rows. The predictions form a trajectory, which
methods that judge labels by how they are learned read. A score of them selects the best step, whose
weights can be restored at the end. Evaluation changes neither weights nor random state, and
everything is part of the checkpoints: a resumed training ends as an uninterrupted one does.
"""

from __future__ import annotations

import contextlib
import math
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from w2s_fast.distributed.world import World
from w2s_fast.errors import W2SError, nearest
from w2s_fast.files import file_hash
from w2s_fast.losses import Loss
from w2s_fast.models.weights import load_weights, save_weights
from w2s_fast.training.checkpoint import N_KEPT, Checkpoint, flush
from w2s_fast.training.completion_pairs import CompletionPairs, check_columns
from w2s_fast.training.completions import Completions
from w2s_fast.training.config import TrainConfig
from w2s_fast.training.data import RowData
from w2s_fast.training.likelihood import completion_logprob
from w2s_fast.training.pair_logprob import predict_pairs
from w2s_fast.training.prediction import predict
from w2s_fast.training.score_name import score_name

KEEPS = ("last", "best")
_MODEL = "model.safetensors"


@dataclass(frozen=True, eq=False)
class Watch:
    """Rows that ``train`` evaluates during training, and which weights it keeps.

    Attributes:
        data: M rows to predict. For ``Completions`` the (M,) log-probabilities take the place of
            (M, C) probabilities. ``CompletionPairs``, for a loss over pairs alone, are predicted as
            in ``predict_pairs``.
        score: function of the predictions; higher is better. A checkpoint knows it by its name, see
            ``score_name``.
        every: optimizer steps between evaluations; 0: at the end of every epoch. The end of the
            training is always evaluated.
        keep: ``last`` leaves the weights of the last step, ``best`` those of the first evaluation
            with the highest score (early stopping, Burns et al. 2023, Sec. 4; EleutherAI/w2s).

    Raises:
        W2SError: for a name or number that does not fit.
    """

    data: RowData
    score: Callable[[np.ndarray], float] | None = None
    every: int = 0
    keep: str = "last"

    def __post_init__(self) -> None:
        if self.keep not in KEEPS:
            raise W2SError(
                f"keep is {self.keep!r}; expected one of {', '.join(KEEPS)}"
                f"{nearest(self.keep, KEEPS)}"
            )
        if self.every < 0:
            raise W2SError(f"every is {self.every}; expected steps, or 0 for once an epoch")
        if self.keep == "best" and self.score is None:
            raise W2SError("keep='best' needs a score to select the best weights")

    def identity(self) -> dict[str, Any]:
        """Return what identifies this watch in a checkpoint."""
        score = score_name(self.score)
        return {
            "every": self.every, "keep": self.keep, "score": score, "data": self.data.digest(),
        }  # fmt: skip


class Evaluation(NamedTuple):
    """Predictions at one step of a training."""

    step: int
    score: float  # NaN without a score function
    probs: np.ndarray  # (M, C) float32


class Monitor:
    """The evaluations of one training.

    Attributes:
        evaluations: in order of their steps.
        identity: of the watch, for the checkpoint.
    """

    def __init__(
        self,
        watch: Watch,
        model: nn.Module,
        loss: Loss,
        cfg: TrainConfig,
        n_rows: int,
        world: World,
        directory: Path | None,
    ) -> None:
        if watch.keep == "best" and world.size > 1 and directory is None:
            raise W2SError(
                "keep='best' with several processes needs checkpoint_dir, a folder that all see"
            )
        self._preference: Any = getattr(loss, "preference", None)  # of a loss over pairs
        if isinstance(watch.data, CompletionPairs):
            check_columns(watch.data, self._preference)
        self.identity = watch.identity()
        self._watch, self._model, self._world = watch, model, world
        self._batch_size, self._n_rows, self._steps = cfg.batch_size, n_rows, cfg.steps(n_rows)
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        if watch.keep == "best" and directory is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="w2s-best-")
            directory = Path(self._temporary.name)
        self._directory = directory
        self._in_checkpoints: list[int] = []  # best steps that checkpoints on disk refer to
        self._checksums: dict[str, str] = {}  # of the files of the best weights, on rank 0
        self.evaluations: list[Evaluation] = []

    def due(self, done: int) -> bool:
        """Return whether to evaluate after ``done`` steps."""
        if self._watch.every:
            return done % self._watch.every == 0 or done == self._steps
        epochs = [n * self._batch_size // self._n_rows for n in (done - 1, done)]
        return epochs[1] > epochs[0] or done == self._steps

    def evaluate(self, done: int) -> None:
        """Predict, score, and save the weights if they are the best so far."""
        data = self._watch.data
        if isinstance(data, Completions):
            probs = completion_logprob(self._model, data)
        elif isinstance(data, CompletionPairs):
            probs = predict_pairs(self._model, data, self._preference)
        else:
            probs = predict(self._model, data)
        score = math.nan
        if self._watch.score is not None:
            score = float(self._watch.score(probs))
            if not math.isfinite(score):
                raise W2SError(f"the score at step {done} is {score}; expected a finite number")
        self.evaluations.append(Evaluation(done, score, probs))
        if self._watch.keep == "best" and self.best == done:
            path = self._path(done)
            if self._world.is_main_process:
                with contextlib.suppress(OSError):  # the write that follows raises the error
                    path.parent.mkdir(parents=True, exist_ok=True)
            save_weights(self._model, path, self._world)
            if self._world.is_main_process:
                files = [p for p in sorted(path.parent.iterdir()) if not p.name.startswith(".")]
                self._checksums = {f"{path.parent.name}/{p.name}": file_hash(p) for p in files}
            self._prune()

    @property
    def best(self) -> int | None:
        """Step of the first evaluation with the highest score; None without scores."""
        if self._watch.score is None or not self.evaluations:
            return None
        return max(self.evaluations, key=lambda e: e.score).step

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield what a resumed training needs, by name."""
        if self.evaluations:
            steps, scores, probs = zip(*self.evaluations, strict=True)
            yield "watch.steps", torch.tensor(steps)
            yield "watch.scores", torch.tensor(scores, dtype=torch.float64)
            yield "watch.trajectory", torch.from_numpy(np.stack(probs))

    def before_checkpoint(self) -> dict[str, str]:
        """Flush the best weights to disk before a checkpoint refers to them.

        Returns:
            The SHA-256 of their files, by path relative to the folder of the checkpoints.
        """
        if self._directory is not None and self._world.is_main_process:
            with contextlib.suppress(OSError):  # some file systems cannot flush
                for name in self._checksums:
                    flush(self._directory / name)
        return self._checksums

    def after_checkpoint(self) -> None:
        """Remove weights that no checkpoint refers to any more."""
        if self._watch.keep == "best" and self.best is not None:
            self._in_checkpoints = [*self._in_checkpoints, self.best][-N_KEPT:]
            self._prune()

    def load(self, saved: Checkpoint) -> None:
        """Restore the evaluations from a checkpoint, which ``checkpoint.load`` has verified."""
        steps, scores = saved.read("watch.steps"), saved.read("watch.scores")
        probs = saved.read("watch.trajectory")
        if steps is None or scores is None or probs is None:
            return
        rows = zip(steps.tolist(), scores.tolist(), probs.numpy(), strict=True)
        self.evaluations = [Evaluation(*row) for row in rows]
        if self._watch.keep == "best" and self.best is not None:
            self._in_checkpoints = self._kept_until(self.best)
            self._checksums = saved.files

    def _kept_until(self, best: int) -> list[int]:
        """Return the steps of the saved weights that this checkpoint and the one before refer to.

        The one before is not read here, but a later damage to this one falls back on it.
        """
        assert self._directory is not None
        names = [folder.name.removeprefix("best-") for folder in self._directory.glob("best-*")]
        steps = [int(name) for name in names if name.isdecimal()]
        return sorted(step for step in steps if step <= best)[-N_KEPT:]

    def finish(self) -> dict[str, Any]:
        """Restore the best weights if they are to be kept; return the evaluations for ``train``."""
        best = self.best
        last_step = self.evaluations[-1].step
        if self._watch.keep == "best" and best is not None and best != last_step:
            self._world.call_on_main(self._check_best)
            load_weights(self._model, self._path(best), self._world)
        if self._temporary is not None:
            self._temporary.cleanup()
        steps, scores, probs = zip(*self.evaluations, strict=True)
        return {
            "watched": list(steps),
            "scores": None if self._watch.score is None else list(scores),
            "best": best,
            "trajectory": np.stack(probs),
        }

    def _check_best(self) -> None:
        """Raise `W2SError` if the files of the best weights are not as they were written."""
        assert self._directory is not None
        for name, checksum in self._checksums.items():
            path = self._directory / name
            if not path.is_file() or file_hash(path) != checksum:
                raise W2SError(
                    f"the best weights, {path}, changed after they were written; run the training "
                    "again with checkpoint_dir on a disk that keeps them"
                )

    def _path(self, step: int) -> Path:
        assert self._directory is not None
        return self._directory / f"best-{step:08d}" / _MODEL

    def _prune(self) -> None:
        if not self._world.is_main_process or self._directory is None:
            return
        steps = (*self._in_checkpoints, self.best)
        needed = {self._path(step).parent.name for step in steps if step is not None}
        for folder in self._directory.glob("best-*"):
            if folder.name not in needed:
                shutil.rmtree(folder, ignore_errors=True)
