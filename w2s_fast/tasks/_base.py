"""The data of a task: its three splits and the prompt for a language model.

The splits are disjoint sets of labelled texts: ``weak`` (its gold labels train the weak model),
``transfer`` (the weak model labels it for the student; its gold labels train the ceiling) and
``test``. They are a pure function of the configuration, the files it names and a seed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, Self, runtime_checkable

import numpy as np

from w2s_fast.errors import W2SError
from w2s_fast.tasks._config import TaskConfig


@dataclass(frozen=True, eq=False)
class Inputs:
    """Texts without labels; all columns have the same length N.

    Attributes:
        ids: Identifiers, unique in a task.
        texts: The texts.
        pairs: The second texts, or None.
        groups: Names of groups; rows of one group are never in two splits.
        votes: (N, m) int16 votes of m weak supervisors, -1 for an abstention; None if the data
            have none.
        prompts: Texts with which both texts of a preference begin, which policies complete; None if
            they are not known.
    """

    ids: tuple[str, ...]
    texts: tuple[str, ...]
    pairs: tuple[str, ...] | None
    groups: tuple[str, ...]
    votes: np.ndarray | None = field(default=None, kw_only=True)
    prompts: tuple[str, ...] | None = field(default=None, kw_only=True)

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: Sequence[int]) -> Self:
        """Return the given rows, in the given order."""
        return replace(
            self,
            ids=tuple(self.ids[i] for i in rows),
            texts=tuple(self.texts[i] for i in rows),
            pairs=_take(self.pairs, rows),
            groups=tuple(self.groups[i] for i in rows),
            votes=None if self.votes is None else self.votes[np.asarray(rows, dtype=np.int64)],
            prompts=_take(self.prompts, rows),
        )

    def join(self, other: Inputs) -> Inputs:
        """Return these rows and then those of ``other``; columns that only one has are dropped."""
        pairs, prompts = (
            None if a is None or b is None else a + b
            for a, b in ((self.pairs, other.pairs), (self.prompts, other.prompts))
        )
        texts, groups = self.texts + other.texts, self.groups + other.groups
        return Inputs(self.ids + other.ids, texts, pairs, groups, prompts=prompts)


@dataclass(frozen=True, eq=False)
class Examples(Inputs):
    """Texts with their gold labels.

    Attributes:
        labels: (N,) int64 gold classes; zeros for generation tasks.
        answers: Gold answers of a generation task, else None.
        subgroups: Name of each row's subgroup, or None. With the class it makes the groups of
            worst-group accuracy.
    """

    labels: np.ndarray
    answers: tuple[str, ...] | None = None
    subgroups: tuple[str, ...] | None = None

    @property
    def inputs(self) -> Inputs:
        """The same rows without gold labels, answers and subgroups."""
        columns = self.ids, self.texts, self.pairs, self.groups
        return Inputs(*columns, votes=self.votes, prompts=self.prompts)

    def cut(self, at: int) -> tuple[Examples, Examples]:
        """Return the rows before ``at`` and the rows from ``at`` on."""
        return self.take(range(at)), self.take(range(at, len(self)))

    def take(self, rows: Sequence[int]) -> Self:
        """Return the given rows, in the given order."""
        return replace(
            super().take(rows),
            labels=self.labels[np.asarray(rows, dtype=np.int64)],
            answers=_take(self.answers, rows),
            subgroups=_take(self.subgroups, rows),
        )


def _take(column: tuple[str, ...] | None, rows: Sequence[int]) -> tuple[str, ...] | None:
    return None if column is None else tuple(column[i] for i in rows)


@dataclass(frozen=True, eq=False)
class TaskData:
    """The three splits of a task; no id and no group is in two of them.

    Attributes:
        name: Name of the task.
        class_names: One name per class; ("wrong", "right") for generation tasks.
        weak, transfer, test: The splits.
        kind: ``classification``: each text (or two texts read together) has a class.
            ``preference``: ``texts`` and ``pairs`` are two whole dialogues; the class is 1 if the
            second is better. ``generation``: each text is a prompt, whose gold answer is a text
            that starts with the white space between the two.
        prompt: Prompt of a language model, with "{text}" (and "{pair}") in it.
        words: For each class the continuation of ``prompt`` that means it; empty: " " and its name.
        read: Generation tasks: returns the final answer in a generated text, "" if there is none.
        separator: Generation tasks: text between two examples in a prompt; a completion ends there.
        harm_score: Generation tasks without a single right answer: scores N texts by N numbers in
            [0, 1]; a text below 1/2 counts as right.
        ood: Out-of-distribution test items, scored beside ``test``; None: the task has none.
        conflict: Pairs of a conflicting objective, see ``TaskConfig.conflict_path``; None: the task
            has none.
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
    separator: str = "\n\n"
    ood: Examples | None = None
    conflict: Examples | None = None

    @property
    def splits(self) -> dict[str, Examples]:
        """The splits that the task has, by name."""
        splits = {"weak": self.weak, "transfer": self.transfer, "test": self.test}
        further = {"ood": self.ood, "conflict": self.conflict}
        return {**splits, **{name: part for name, part in further.items() if part is not None}}

    def with_prompt(
        self, cfg: TaskConfig, prompt: str | None = None, words: Sequence[str] = ()
    ) -> TaskData:
        """Return a copy with prompt and words of ``cfg``, or else with those given.

        Raises:
            W2SError: The number of ``cfg.words`` is not that of the classes.
        """
        if cfg.words is not None and len(cfg.words) != len(self.class_names):
            raise W2SError(
                f"task.words={list(cfg.words)}: {len(cfg.words)} words for "
                f"{len(self.class_names)} classes; give one for each of {list(self.class_names)}"
            )
        class_words = words if cfg.words is None else cfg.words
        return replace(self, prompt=cfg.prompt or prompt or self.prompt, words=tuple(class_words))

    def agree(self, one: str, two: str) -> bool:
        """Return whether two texts give the same answer; no answer is no match."""
        assert self.read is not None, f"task {self.name} has no answers to compare"
        answer = self.read(one)
        return answer != "" and answer == self.read(two)


@runtime_checkable
class Task(Protocol):
    """Anything with ``load``; the same configuration and seed must give the same splits."""

    def load(self, cfg: TaskConfig, seed: int) -> TaskData:
        """Return the splits.

        Raises:
            W2SError: The configuration or the data does not fit.
        """
        ...
