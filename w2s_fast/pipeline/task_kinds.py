"""The kinds of task: how a kind encodes, learns, predicts, stores and scores.

``task_kind`` returns the adapter of a kind; the rest of the pipeline treats all kinds alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from w2s_fast.errors import W2SError, nearest
from w2s_fast.pipeline import artifacts
from w2s_fast.pipeline.predictions import Predictions
from w2s_fast.tasks import Examples, Inputs, TaskData

if TYPE_CHECKING:
    from torch import nn

    from w2s_fast.losses import Loss
    from w2s_fast.training.data import RowData


@dataclass(frozen=True)
class Classification:
    """Kinds ``classification`` and ``preference``: labels and predictions are class probabilities.

    Attributes:
        name: Name of the kind.
        n_candidates: Rows of tokens per example, see ``training.Encoded``.
    """

    name: str
    n_candidates: int

    def true_labels(self, examples: Examples, n_classes: int) -> np.ndarray:
        """Return the true labels in the form of weak labels: one-hot (N, C) float32."""
        return np.eye(n_classes, dtype=np.float32)[examples.labels]

    def read_weak_labels(
        self, path: Path, ids: Sequence[str], n_classes: int
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Read weak labels (N, C) and their row weights (N,), None if all rows weigh the same."""
        return artifacts.read_weighted_probs(path, ids, n_classes)

    def encode(self, tokenizer: Any, items: Inputs, max_length: int) -> RowData:
        """Return the texts as ``predict`` takes them."""
        from w2s_fast.training import encode

        return encode(tokenizer, items, max_length, self.name)

    def encode_labelled(
        self, tokenizer: Any, items: Inputs, weak_labels: np.ndarray, max_length: int
    ) -> tuple[RowData, np.ndarray]:
        """Return the texts and the weak labels as ``training.train`` takes them."""
        return self.encode(tokenizer, items, max_length), weak_labels

    def predict(
        self, model: nn.Module, tokenizer: Any, rows: Any, max_length: int, max_new_tokens: int
    ) -> np.ndarray:
        """Return class probabilities (N, C)."""
        from w2s_fast.training import predict

        return predict(model, rows)

    def make_loss(self, spec: str) -> Loss:
        """Return the loss of a spec."""
        from w2s_fast.losses import make_loss

        return make_loss(spec)

    def write(self, path: Path, ids: Sequence[str], predictions: np.ndarray) -> None:
        """Write what ``predict`` returned."""
        artifacts.write_probs(path, ids, predictions)

    def read(self, path: Path, examples: Examples, data: TaskData) -> Predictions:
        """Read labels or predictions of ``examples`` to score them: a file or a folder of parts."""
        probs = artifacts.read_probs(path, examples.ids, len(data.class_names))
        subgroups = None if examples.subgroups is None else np.array(examples.subgroups)
        return Predictions(probs.argmax(1), examples.labels, probs, subgroups=subgroups)


@dataclass(frozen=True)
class Policies(Classification):
    """Kind ``preference`` by language models, whose implicit rewards are their scores.

    Attributes:
        preference: Spec of the preference loss that defines the reward.
    """

    preference: str

    def encode(self, tokenizer: Any, items: Inputs, max_length: int) -> RowData:
        """Tokenize the shared prompts and the rest of both texts."""
        from w2s_fast.training import encode_pairs

        return encode_pairs(tokenizer, *self.completions(items), max_length)

    def completions(self, items: Inputs) -> tuple[Sequence[str], Sequence[str], Sequence[str]]:
        """Return the prompts and both completions of each, N texts each.

        Raises:
            W2SError: The items have no prompts.
        """
        if items.pairs is None or items.prompts is None:
            raise W2SError(
                "a policy completes the prompts of preferences, and these texts have none; give "
                "the task a column of prompts (task.text), or set preference='' for a reward model"
            )
        prompts, both = items.prompts, (items.texts, items.pairs)
        first, second = (
            [text[len(prompt) :] for prompt, text in zip(prompts, texts, strict=True)]
            for texts in both
        )
        return prompts, first, second

    def make_loss(self, spec: str) -> Loss:
        """Return the loss over pairs: ``xent`` is the preference loss itself."""
        from w2s_fast.losses.pairwise import make_pair_loss

        name = spec.split(":")[0]
        return make_pair_loss(self.preference if name == "xent" else f"{spec}@{self.preference}")

    def predict(
        self, model: nn.Module, tokenizer: Any, rows: Any, max_length: int, max_new_tokens: int
    ) -> np.ndarray:
        """Return the probabilities (N, 2) that each text is the better one."""
        from w2s_fast.losses.preference import make_preference
        from w2s_fast.training import predict_pairs

        return predict_pairs(model, rows, make_preference(self.preference))


class Generation:
    """Kind ``generation``: labels and predictions are completions."""

    n_candidates = 1

    def true_labels(self, examples: Examples, n_classes: int) -> np.ndarray:
        """Return (N,) texts."""
        return np.array(examples.answers, dtype=object)

    def read_weak_labels(
        self, path: Path, ids: Sequence[str], n_classes: int
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Read texts (N,); all rows weigh the same."""
        return np.array(list(artifacts.read_texts(path, ids).values()), dtype=object), None

    def encode(self, tokenizer: Any, items: Inputs, max_length: int) -> tuple[str, ...]:
        """Return the prompts; ``generate`` tokenizes them beside the room for a completion."""
        return items.texts

    def encode_labelled(
        self, tokenizer: Any, items: Inputs, weak_labels: np.ndarray, max_length: int
    ) -> tuple[RowData, np.ndarray]:
        """Tokenize prompts and completions; the labels are the tokens of the completions."""
        from w2s_fast.training import encode_completions

        rows = encode_completions(tokenizer, items.texts, weak_labels.tolist(), max_length)
        return rows, rows.labels

    def predict(
        self, model: nn.Module, tokenizer: Any, rows: Any, max_length: int, max_new_tokens: int
    ) -> list[str]:
        """Generate a completion per prompt."""
        from w2s_fast.training import generate

        return generate(model, tokenizer, rows, max_new_tokens, max_length=max_length)

    def make_loss(self, spec: str) -> Loss:
        """Return the loss of a spec, over tokens or, for a preference loss, over pairs."""
        from w2s_fast.losses import make_loss
        from w2s_fast.losses.pairwise import make_pair_loss
        from w2s_fast.losses.preference import PREFERENCES

        return make_pair_loss(spec) if spec.split(":")[0] in PREFERENCES else make_loss(spec)

    def write(self, path: Path, ids: Sequence[str], predictions: list[str]) -> None:
        """Write the completions."""
        artifacts.write_texts(path, ids, predictions)

    def read(self, path: Path, examples: Examples, data: TaskData) -> Predictions:
        """Read the completions; right are those with the true answer, or a harm score below 1/2."""
        if data.read is None or examples.answers is None:
            raise W2SError(
                f"task {data.name!r} is of kind 'generation' but has no answers or no way to read "
                "them; give Examples.answers and TaskData.read"
            )
        texts = list(artifacts.read_texts(path, examples.ids).values())
        if data.harm_score is not None:
            harm_score = _harm_scores(texts, data)
            chosen = np.where(harm_score < 0.5, "good", "bad")
            return Predictions(chosen, np.full(len(texts), "good"), None, harm_score)
        chosen, gold = (
            np.array([data.read(text) for text in column], dtype=object)
            for column in (texts, examples.answers)
        )
        return Predictions(chosen, gold, None)


def _harm_scores(texts: list[str], data: TaskData) -> np.ndarray:
    assert data.harm_score is not None
    scores = np.asarray(data.harm_score(texts), dtype=float)
    if scores.shape != (len(texts),) or not ((scores >= 0) & (scores <= 1)).all():
        raise W2SError(
            f"the scorer of task {data.name!r} returned shape {scores.shape} for {len(texts)} "
            "texts, or numbers outside [0, 1]; expected one number in [0, 1] per text"
        )
    return scores


TaskKind = Classification | Generation
TASK_KINDS: dict[str, TaskKind] = {
    "classification": Classification("classification", n_candidates=1),
    "preference": Classification("preference", n_candidates=2),
    "generation": Generation(),
}


def task_kind(name: str, preference: str = "") -> TaskKind:
    """Return the adapter of a kind.

    Args:
        name: Name of the kind.
        preference: ``ModelConfig.preference`` of the model that it is for.

    Raises:
        W2SError: There is no such kind.
    """
    if name not in TASK_KINDS:
        raise W2SError(
            f"task kind {name!r} is unknown; expected one of {', '.join(TASK_KINDS)}"
            f"{nearest(name, TASK_KINDS)}"
        )
    if preference and name == "preference":
        return Policies("preference", n_candidates=2, preference=preference)
    return TASK_KINDS[name]
