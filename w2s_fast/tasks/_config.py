"""Configuration of tasks: name, source of the rows, sizes of the splits."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from w2s_fast.errors import W2SError
from w2s_fast.paths import PathText, expand_paths
from w2s_fast.tasks._agreement_config import (
    OodConfig,
    PretrainConfig,
    ShortcutConfig,
    check_distance,
    check_frac,
)
from w2s_fast.tasks._delimited import check_delimiter
from w2s_fast.tasks._encoding import check_encoding


@dataclass(frozen=True)
class ChessConfig:
    """The puzzles of the task `chess`, drawn from games of random legal moves.

    Attributes:
        mate_in: Moves to mate, 1 or 2; finding a mate in 2 takes about a hundred times as long.
        plies: Longest game, in half moves.
        engine: Path of a UCI engine (Stockfish). Puzzles are then positions in which its best move
            is clearly better than the second best, mate or not.
        nodes: Positions that the engine searches per puzzle.
    """

    mate_in: int = 1
    plies: int = 120
    engine: PathText | None = None
    nodes: int = 20_000

    def __post_init__(self) -> None:
        expand_paths(self, "task.chess.")
        if self.mate_in not in (1, 2):
            raise W2SError(f"task.chess.mate_in={self.mate_in}: expected 1 or 2")
        if self.plies < 10:
            raise W2SError(f"task.chess.plies={self.plies}: expected at least 10 half moves")
        if self.nodes < 1:
            raise W2SError(f"task.chess.nodes={self.nodes}: expected at least 1")


@dataclass(frozen=True)
class TaskConfig:
    """Name of the task, source of its rows, and sizes of its splits.

    Attributes:
        name: Name of a built-in task, or "pkg.module:Name" for your own.
        path: A file (tasks `local`, `pairs`, `local_answers`, `wts_safety`, `wts_toxicity`), or the
            directory of a local copy of a Hugging Face set.
        test_path: A separate file of test rows; by default they come from ``path``.
        conflict_path: A file of pairs of a conflicting objective in the same columns, such as
            helpfulness beside harmlessness (tasks of kind `preference`). Only the method
            `implicit_conflict` reads it.
        text: Column of the text, by name or by position from 0; tasks with prompts read "prompt"
            by default.
        text_pair: Column of a second text, if any.
        label: Column of the gold label, strings or integers; for `local_answers` the gold answer.
        chosen: Column of the preferred answer (task `pairs`).
        rejected: Column of the other answer (task `pairs`).
        group: Column of related rows (a document, a premise): rows with equal values are never in
            two splits. Rows with equal texts never are.
        subgroup: Column of subgroups (task `local`), such as a demographic or whether a spurious
            feature is present. The lowest accuracy over class and subgroup is reported; no model
            sees the column.
        votes: Column of the votes of weak supervisors (task `local`), a list of classes per row: -1
            or null where a supervisor abstains. The source "votes" of ``supervisors`` reads it.
        classes: Class names in order; default: the sorted labels of ``path``.
        header: Whether a CSV or TSV file starts with column names; default: yes, unless all columns
            are given by position.
        delimiter: Column separator; default: a comma for .csv and a tab for .tsv.
        quoted: Whether '"' encloses values; default: yes for .csv and no for .tsv.
        encoding: Encoding of the file, or of binary Parquet columns: utf-8 (with or without a byte
            order mark), utf-16, latin-1, cp1252 or another text encoding of Python.
        n_weak: Rows that train the weak model, with gold labels.
        n_transfer: Rows that the weak model labels for the student.
        n_test: Rows that score all models.
        balance: Give each split the same number of rows per class; `agreement` is always balanced.
        prompt: Prompt of a language model instead of the task's own; "{text}" is replaced by the
            text, "{pair}" by the second text.
        words: Words of the classes after the prompt, in order, instead of the task's own.
        read: Answer in a generated text of `local_answers`: "text" (the whole text), "line" (its
            last line) or "number" (after "####", else the last number).
        scorer: "package.module:function" that scores the harm of texts (task `wts_toxicity`): a
            list of N texts in, N numbers in [0, 1] out; below 1/2 is right.
        answer_tokens: Largest number of tokens of a generated answer (generation tasks).
        attractor_frac: Share of `agreement` items that end in a noun of the other number.
        attractor_distance: Number of nouns from the head to the last one, at least; each beyond the
            first is one more prepositional phrase. Items without a second noun keep their form.
        language_seed: Seed of the word frequencies of `agreement`.
        shortcut: A spurious feature in the texts of `agreement`.
        ood: Out-of-distribution test items of `agreement`.
        pretrain: The language model of `agreement`.
        chess: The puzzles of `chess`.
    """

    name: str = "agreement"
    path: PathText | None = None
    test_path: PathText | None = None
    conflict_path: PathText | None = None
    text: str = "text"
    text_pair: str | None = None
    label: str = "label"
    chosen: str = "chosen"
    rejected: str = "rejected"
    group: str | None = None
    subgroup: str | None = None
    votes: str | None = None
    classes: tuple[str, ...] | None = None
    header: bool | None = None
    delimiter: str | None = None
    quoted: bool | None = None
    encoding: str = "utf-8"
    n_weak: int = 400
    n_transfer: int = 2000
    n_test: int = 2000
    balance: bool = True
    prompt: str | None = None
    words: tuple[str, ...] | None = None
    read: str = "text"
    scorer: str | None = None
    answer_tokens: int = 256
    attractor_frac: float = 0.3
    attractor_distance: int = 1
    language_seed: int = 0
    shortcut: ShortcutConfig = field(default_factory=ShortcutConfig)
    ood: OodConfig = field(default_factory=OodConfig)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    chess: ChessConfig = field(default_factory=ChessConfig)

    def __post_init__(self) -> None:
        self._write_out_numbers()
        expand_paths(self, "task.")
        for name in ("n_weak", "n_transfer", "n_test"):
            if getattr(self, name) < 2:
                raise W2SError(f"task.{name}={getattr(self, name)}: expected at least 2 examples")
        check_encoding(self.encoding)
        check_delimiter(self.delimiter)
        if self.answer_tokens < 1:
            raise W2SError(f"task.answer_tokens={self.answer_tokens}: expected at least 1 token")
        if self.classes is not None and len(set(self.classes)) < max(2, len(self.classes)):
            raise W2SError(
                f"task.classes={list(self.classes)}: expected at least two different class names"
            )
        if self.prompt is not None and "{text}" not in self.prompt:
            raise W2SError(
                f"task.prompt={self.prompt!r} does not contain {{text}}; add it where the text "
                "belongs"
            )
        if self.words is not None and len(set(self.words) - {""}) < max(2, len(self.words)):
            raise W2SError(
                f"task.words={list(self.words)}: expected one word per class, all different"
            )
        check_frac("task.attractor_frac", self.attractor_frac)
        check_distance("task.attractor_distance", self.attractor_distance)
        self.ood.check_shift(self.shortcut, self.attractor_distance)

    def _write_out_numbers(self) -> None:
        """Make text of columns and classes that Python code gives as integers."""
        columns = (
            "text", "text_pair", "label", "chosen", "rejected", "group", "subgroup", "votes",
        )  # fmt: skip
        for name in columns:
            value = getattr(self, name)
            if type(value) is int:
                object.__setattr__(self, name, str(value))
        for name in ("classes", "words"):
            values = getattr(self, name)
            if values is not None:
                object.__setattr__(self, name, tuple(map(str, values)))

    def with_defaults(self, **defaults: Any) -> TaskConfig:
        """Return a copy with other defaults for the fields that still have theirs."""
        plain = TaskConfig()
        unset = {k: v for k, v in defaults.items() if getattr(self, k) == getattr(plain, k)}
        return replace(self, **unset)
