"""What a model answers while it trains, and which moment of the training is kept.

At every look the model predicts a set of rows. The answers are a trajectory (methods that judge
labels by how they are learned read it); a score of them says which moment was best, and the
weights of that moment come back at the end if that is wanted. Looking touches neither weights nor
random state. All of it is in the checkpoints: a resumed training ends where a straight one does.
"""

from __future__ import annotations

import contextlib
import math
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from w2s_fast.distributed.world import World
from w2s_fast.errors import W2SError, nearest
from w2s_fast.models.weights import load_weights, save_weights
from w2s_fast.training.checkpoint import KEPT, Checkpoint, flush
from w2s_fast.training.completions import Answers
from w2s_fast.training.config import TrainConfig
from w2s_fast.training.data import RowData
from w2s_fast.training.likelihood import answer_logprob
from w2s_fast.training.prediction import predict

KEEPS = ("last", "best")
_MODEL = "model.safetensors"


@dataclass(frozen=True, eq=False)
class Watch:
    """What ``train`` looks at on its way.

    Attributes:
        data: M rows that are predicted; of ``Answers`` the (M,) log-probabilities take the place of
            (M, C) probabilities.
        score: of what was predicted; higher is better.
        every: optimizer steps between looks; 0: at the end of every epoch. The end of the training
            is always looked at.
        keep: ``last`` leaves the weights of the last step, ``best`` those of the first look with
            the highest score (early stopping, Burns et al. 2023, Sec. 4; EleutherAI/w2s).

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
            raise W2SError("keep='best' needs a score to tell which moment is best")

    def identity(self) -> dict[str, Any]:
        """What makes it this watch, for the checkpoint."""
        return {"every": self.every, "keep": self.keep, "data": self.data.digest()}


class Watching:
    """The looks of one training.

    Attributes:
        seen: per look: step, score (NaN without one), probabilities (M, C) float32.
        identity: of the watch.
    """

    def __init__(
        self,
        watch: Watch,
        model: nn.Module,
        cfg: TrainConfig,
        rows: int,
        world: World,
        directory: Path | None,
    ) -> None:
        if watch.keep == "best" and world.size > 1 and directory is None:
            raise W2SError(
                "keep='best' with several processes needs checkpoint_dir, a folder that all see"
            )
        self.identity = watch.identity()
        self._watch, self._model, self._world = watch, model, world
        self._batch, self._rows, self._steps = cfg.batch_size, rows, cfg.steps(rows)
        self._own: tempfile.TemporaryDirectory[str] | None = None
        if watch.keep == "best" and directory is None:
            self._own = tempfile.TemporaryDirectory(prefix="w2s-best-")
            directory = Path(self._own.name)
        self._directory = directory
        self._saved: list[int] = []  # best steps that checkpoints on disk refer to
        self.seen: list[tuple[int, float, np.ndarray]] = []

    def due(self, done: int) -> bool:
        """Whether to look after ``done`` steps."""
        if self._watch.every:
            return done % self._watch.every == 0 or done == self._steps
        epochs = [n * self._batch // self._rows for n in (done - 1, done)]
        return epochs[1] > epochs[0] or done == self._steps

    def look(self, done: int) -> None:
        """Predict, score, and save the weights if they are the best so far."""
        data = self._watch.data
        if isinstance(data, Answers):
            probs = answer_logprob(self._model, data)
        else:
            probs = predict(self._model, data)
        score = math.nan
        if self._watch.score is not None:
            score = float(self._watch.score(probs))
            if not math.isfinite(score):
                raise W2SError(f"the score at step {done} is {score}; expected a finite number")
        self.seen.append((done, score, probs))
        if self._watch.keep == "best" and self.best == done:
            path = self._path(done)
            if self._world.is_main_process:
                with contextlib.suppress(OSError):  # the write that follows fails, and says so
                    path.parent.mkdir(parents=True, exist_ok=True)
            save_weights(self._model, path, self._world)
            self._prune()

    @property
    def best(self) -> int | None:
        """Step of the first look with the highest score; None before any, or without scores."""
        if self._watch.score is None or not self.seen:
            return None
        return max(self.seen, key=lambda look: look[1])[0]

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """What a resumed training needs to know, by name."""
        if self.seen:
            steps, scores, probs = zip(*self.seen, strict=True)
            yield "watch.steps", torch.tensor(steps)
            yield "watch.scores", torch.tensor(scores, dtype=torch.float64)
            yield "watch.trajectory", torch.from_numpy(np.stack(probs))

    def before_checkpoint(self) -> None:
        """The best weights must lie on the disk before a checkpoint refers to them."""
        if self._watch.keep == "best" and self.best is not None and self._world.is_main_process:
            with contextlib.suppress(OSError):  # some file systems cannot
                for path in self._path(self.best).parent.iterdir():
                    flush(path)

    def after_checkpoint(self) -> None:
        """Remove what no checkpoint refers to any more."""
        if self._watch.keep == "best" and self.best is not None:
            self._saved = [*self._saved, self.best][-KEPT:]
            self._prune()

    def load(self, found: Checkpoint) -> None:
        """Go on from a checkpoint.

        Raises:
            W2SError: if the best weights it refers to are gone.
        """
        steps, scores = found.read("watch.steps"), found.read("watch.scores")
        probs = found.read("watch.trajectory")
        if steps is None or scores is None or probs is None:
            return
        self.seen = list(zip(steps.tolist(), scores.tolist(), probs.numpy(), strict=True))
        if self._watch.keep != "best" or self.best is None:
            return
        self._saved = [self.best]
        folder = self._path(self.best).parent
        if not folder.is_dir():
            raise W2SError(
                f"checkpoint {found.path} refers to the weights in {folder}, which are gone; "
                "remove the checkpoints to start again"
            )

    def finish(self) -> dict[str, Any]:
        """Bring the best weights back if they are wanted; what ``train`` returns of the looks."""
        best = self.best
        if self._watch.keep == "best" and best is not None and best != self.seen[-1][0]:
            load_weights(self._model, self._path(best), self._world)
        if self._own is not None:
            self._own.cleanup()
        steps, scores, probs = zip(*self.seen, strict=True)
        return {
            "watched": list(steps),
            "scores": None if self._watch.score is None else list(scores),
            "best": best,
            "trajectory": np.stack(probs),
        }

    def _path(self, step: int) -> Path:
        assert self._directory is not None
        return self._directory / f"best-{step:08d}" / _MODEL

    def _prune(self) -> None:
        if not self._world.is_main_process or self._directory is None:
            return
        wanted = {self._path(s).parent.name for s in (*self._saved, self.best) if s is not None}
        for folder in self._directory.glob("best-*"):
            if folder.name not in wanted:
                shutil.rmtree(folder, ignore_errors=True)
