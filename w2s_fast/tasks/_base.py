"""What every task is made of: its configuration and its three splits.

A task gives three disjoint sets of labelled texts: ``weak`` (the supervisor's gold labels),
``transfer`` (what the supervisor labels for the student; the ceiling uses its gold labels) and
``test``. Everything here is a pure function of the configuration, the files it names and a seed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

import numpy as np

from w2s_fast.errors import W2SError


@dataclass(frozen=True)
class PretrainConfig:
    """The small causal language model of the task `agreement`, and how long it is trained.

    Attributes:
        hidden: Width of the model.
        layers: Number of decoder layers.
        heads: Attention heads; must divide ``hidden``.
        steps: Optimizer steps.
        batch_size: Sequences a step.
        length: Tokens a sequence, at most 128.
        lr: Peak learning rate (AdamW, 50 steps of warm-up, cosine down to 5 %).
        cue_frac: Share of noun phrases that carry a number cue ("this", "these").
    """

    hidden: int = 96
    layers: int = 3
    heads: int = 4
    steps: int = 600
    batch_size: int = 16
    length: int = 64
    lr: float = 4e-3
    cue_frac: float = 0.5

    def __post_init__(self) -> None:
        if self.hidden < 1 or self.heads < 1 or self.hidden % (2 * self.heads):
            raise W2SError(
                f"pretrain.hidden={self.hidden} does not split into {self.heads} heads of even "
                "width; use a multiple of 2 * pretrain.heads"
            )
        for name in ("layers", "steps", "batch_size"):
            if getattr(self, name) < 1:
                raise W2SError(f"pretrain.{name}={getattr(self, name)}: expected at least 1")
        if not 2 <= self.length <= 128:
            raise W2SError(f"pretrain.length={self.length}: expected 2 to 128 tokens")
        _check_frac("pretrain.cue_frac", self.cue_frac)


@dataclass(frozen=True)
class TaskConfig:
    """Which task, where its rows come from, and how many of them each split gets.

    Attributes:
        name: A key of ``TASKS``, or "pkg.module:Name" for a task of your own.
        path: A file (task `local`), or the directory of a local copy of a Hugging Face set.
        test_path: A separate test file (task `local`); without it the test rows come from ``path``.
        text: Column of the text: a name, or a position counted from 0.
        text_pair: Column of a second text, if the task has one.
        label: Column of the gold label, strings or integers.
        group: Column whose equal values belong together (a document, a premise): such rows
            never stand in two splits. Equal texts never do, with or without it.
        classes: Class names in order; without it the sorted labels of ``path``.
        header: Whether a CSV or TSV file starts with column names; without it, yes, unless all
            columns are given by position.
        delimiter: Column separator; without it a comma for .csv and a tab for .tsv.
        quoted: Whether '"' encloses values; without it yes for .csv and no for .tsv.
        n_weak: Gold examples for the weak supervisor.
        n_transfer: Examples that it labels for the student.
        n_test: Examples that everything is scored on.
        balance: Whether each split has equally many rows of each class.
        attractor_frac: Share of `agreement` items that end in a noun of the other number.
        language_seed: Which of its words the language of `agreement` uses often.
        pretrain: The language model of `agreement`.
    """

    name: str = "agreement"
    path: str | None = None
    test_path: str | None = None
    text: str = "text"
    text_pair: str | None = None
    label: str = "label"
    group: str | None = None
    classes: tuple[str, ...] | None = None
    header: bool | None = None
    delimiter: str | None = None
    quoted: bool | None = None
    n_weak: int = 500
    n_transfer: int = 2000
    n_test: int = 2000
    balance: bool = True
    attractor_frac: float = 0.2
    language_seed: int = 0
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)

    def __post_init__(self) -> None:
        for name in ("n_weak", "n_transfer", "n_test"):
            if getattr(self, name) < 2:
                raise W2SError(f"task.{name}={getattr(self, name)}: expected at least 2 examples")
        if self.classes is not None and len(set(self.classes)) < max(2, len(self.classes)):
            raise W2SError(
                f"task.classes={list(self.classes)}: expected at least two different class names"
            )
        _check_frac("task.attractor_frac", self.attractor_frac)


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


@dataclass(frozen=True, eq=False)
class Examples(Inputs):
    """Texts with their gold labels.

    Attributes:
        labels: (N,) int64 gold classes; zeros where the gold is a text.
        answers: Gold answers of a task of kind ``answers``, else None.
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

    def take(self, rows: Sequence[int]) -> Examples:
        """Return the given rows, in the given order."""

        def chosen(column: tuple[str, ...] | None) -> tuple[str, ...] | None:
            return None if column is None else tuple(column[i] for i in rows)

        return replace(
            self,
            ids=tuple(self.ids[i] for i in rows),
            texts=tuple(self.texts[i] for i in rows),
            pairs=chosen(self.pairs),
            groups=tuple(self.groups[i] for i in rows),
            labels=self.labels[np.asarray(rows, dtype=np.int64)],
            answers=chosen(self.answers),
        )


@dataclass(frozen=True, eq=False)
class TaskData:
    """The three splits of a task: no id and no group is in two of them.

    Attributes:
        name: Of the task.
        class_names: One a class; of ``answers``, ("wrong", "right").
        weak, transfer, test: The splits.
        kind: ``classes``: a text (or two that are read together) has a class. ``preference``:
            ``texts`` and ``pairs`` are two whole dialogues, the class is 1 where the second is the
            better one. ``answers``: a text is a prompt, its gold an answer in words.
        prompt: What a language model is asked about a text, with "{text}" (and "{pair}") in it.
        words: For each class the continuation of ``prompt`` that means it; empty: " " and its name.
        read: Of kind ``answers``: the final answer in a generated text, "" where there is none.
    """

    name: str
    class_names: tuple[str, ...]
    weak: Examples
    transfer: Examples
    test: Examples
    kind: str = "classes"
    prompt: str = "{text}\n"
    words: tuple[str, ...] = ()
    read: Callable[[str], str] | None = None


@runtime_checkable
class Task(Protocol):
    """Anything with a ``load``: the same configuration and seed give the same splits."""

    def load(self, cfg: TaskConfig, seed: int) -> TaskData:
        """Return the splits.

        Raises:
            W2SError: The configuration or the data does not fit.
        """
        ...


def _check_frac(name: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise W2SError(f"{name}={value}: expected a share between 0 and 1")
