"""What every task is made of: its three splits, and how they are put to a model.

A task gives three disjoint sets of labelled texts: ``weak`` (the supervisor's gold labels),
``transfer`` (what the supervisor labels for the student; the ceiling uses its gold labels) and
``test``. Everything here is a pure function of the configuration, the files it names and a seed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from w2s_fast.errors import W2SError
from w2s_fast.tasks._config import TaskConfig

if TYPE_CHECKING:
    from typing import Self  # from Python 3.11 on


@dataclass(frozen=True, eq=False)
class Inputs:
    """What a model may read of a set of texts; all columns have the same length N.

    Attributes:
        ids: Different for all rows of a task.
        texts: The texts.
        pairs: The second texts, or None.
        groups: Rows of one group never stand in two splits.
    """

    ids: tuple[str, ...]
    texts: tuple[str, ...]
    pairs: tuple[str, ...] | None
    groups: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: Sequence[int]) -> Self:
        """Return the given rows, in the given order."""
        return replace(
            self,
            ids=tuple(self.ids[i] for i in rows),
            texts=tuple(self.texts[i] for i in rows),
            pairs=_chosen(self.pairs, rows),
            groups=tuple(self.groups[i] for i in rows),
        )


@dataclass(frozen=True, eq=False)
class Examples(Inputs):
    """Texts with their gold labels.

    Attributes:
        labels: (N,) int64 gold classes; zeros where the gold is a text.
        answers: Gold answers of a task of kind ``generation``, else None.
    """

    labels: np.ndarray
    answers: tuple[str, ...] | None = None

    @property
    def inputs(self) -> Inputs:
        """The same rows without their gold."""
        return Inputs(self.ids, self.texts, self.pairs, self.groups)

    def cut(self, at: int) -> tuple[Examples, Examples]:
        """Return the rows before ``at`` and the rows from there on."""
        return self.take(range(at)), self.take(range(at, len(self)))

    def take(self, rows: Sequence[int]) -> Self:
        """Return the given rows, in the given order."""
        return replace(
            super().take(rows),
            labels=self.labels[np.asarray(rows, dtype=np.int64)],
            answers=_chosen(self.answers, rows),
        )


def _chosen(column: tuple[str, ...] | None, rows: Sequence[int]) -> tuple[str, ...] | None:
    return None if column is None else tuple(column[i] for i in rows)


@dataclass(frozen=True, eq=False)
class TaskData:
    """The three splits of a task: no id and no group is in two of them.

    Attributes:
        name: Of the task.
        class_names: One a class; of ``generation``, ("wrong", "right").
        weak, transfer, test: The splits.
        kind: ``classification``: a text (or two that are read together) has a class.
            ``preference``: ``texts`` and ``pairs`` are two whole dialogues, the class is 1 where
            the second is the better one. ``generation``: a text is a prompt, its gold an answer in
            words that starts with the white space between the two.
        prompt: What a language model is asked about a text, with "{text}" (and "{pair}") in it.
        words: For each class the continuation of ``prompt`` that means it; empty: " " and its name.
        read: Of kind ``generation``: the final answer in a generated text, "" where there is none.
        harm_score: Of kind ``generation`` where no answer is the one right one: N texts to N
            numbers in [0, 1]; a text below 1/2 counts as right.
    """

    name: str
    class_names: tuple[str, ...]
    weak: Examples
    transfer: Examples
    test: Examples
    kind: str = "classification"
    prompt: str = "{text}\n"
    words: tuple[str, ...] = ()
    read: Callable[[str], str] | None = None
    harm_score: Callable[[Sequence[str]], Sequence[float]] | None = None

    def worded(
        self, cfg: TaskConfig, prompt: str | None = None, words: Sequence[str] = ()
    ) -> TaskData:
        """Return the same with the question of ``cfg``, or else with the one given.

        Raises:
            W2SError: ``cfg.words`` are not as many as the classes.
        """
        if cfg.words is not None and len(cfg.words) != len(self.class_names):
            raise W2SError(
                f"task.words={list(cfg.words)}: {len(cfg.words)} words for "
                f"{len(self.class_names)} classes; give one for each of {list(self.class_names)}"
            )
        chosen = words if cfg.words is None else cfg.words
        return replace(self, prompt=cfg.prompt or prompt or self.prompt, words=tuple(chosen))

    def agree(self, one: str, two: str) -> bool:
        """Return whether two texts give the same answer; no answer is no match."""
        assert self.read is not None, f"task {self.name} has no answers to compare"
        answer = self.read(one)
        return answer != "" and answer == self.read(two)


@runtime_checkable
class Task(Protocol):
    """Anything with a ``load``: the same configuration and seed give the same splits."""

    def load(self, cfg: TaskConfig, seed: int) -> TaskData:
        """Return the splits.

        Raises:
            W2SError: The configuration or the data does not fit.
        """
        ...
