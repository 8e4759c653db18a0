"""The settings of tasks: which one, where its rows come from, how many of them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

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
class ChessConfig:
    """The puzzles of the task `chess`, drawn from games of random legal moves.

    Attributes:
        mate_in: Moves to mate, 1 or 2; a puzzle of two takes about a hundred times as long to find.
        plies: Longest game, in half moves.
        engine: Program that speaks UCI (Stockfish): puzzles are then positions in which its best
            move is clearly better than the second best, mate or not.
        nodes: Positions the engine looks at before it decides.
    """

    mate_in: int = 1
    plies: int = 120
    engine: str | None = None
    nodes: int = 20_000

    def __post_init__(self) -> None:
        if self.mate_in not in (1, 2):
            raise W2SError(f"chess.mate_in={self.mate_in}: expected 1 or 2")
        if self.plies < 10:
            raise W2SError(f"chess.plies={self.plies}: expected at least 10 half moves")
        if self.nodes < 1:
            raise W2SError(f"chess.nodes={self.nodes}: expected at least 1")


@dataclass(frozen=True)
class TaskConfig:
    """Which task, where its rows come from, and how many of them each split gets.

    Attributes:
        name: A key of ``TASKS``, or "pkg.module:Name" for a task of your own.
        path: A file (tasks `local`, `pairs`, `local_answers`, `wts_safety`, `wts_toxicity`), or the
            directory of a local copy of a Hugging Face set.
        test_path: A separate test file; without it the test rows come from ``path``.
        text: Column of the text: a name, or a position counted from 0. Tasks with prompts read
            "prompt" where this is left as it is.
        text_pair: Column of a second text, if the task has one.
        label: Column of the gold label, strings or integers; of `local_answers` the gold answer.
        chosen: Column of the preferred answer (task `pairs`).
        rejected: Column of the other answer (task `pairs`).
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
        prompt: What a language model is asked about a text instead of the task's own question;
            "{text}" stands for the text, "{pair}" for the second one.
        words: What it says for each class, in the order of the classes, instead of the task's own.
        read: Where the answer of `local_answers` stands in a generated text: "text" (all of it),
            "line" (its last line) or "number" (after "####", else the last number).
        scorer: "package.module:function" that says how bad texts are (task `wts_toxicity`): a list
            of N texts in, N numbers in [0, 1] out; below 1/2 is right.
        answer_tokens: Longest answer that a model may write (tasks of kind `generation`).
        attractor_frac: Share of `agreement` items that end in a noun of the other number.
        language_seed: Which of its words the language of `agreement` uses often.
        pretrain: The language model of `agreement`.
        chess: The puzzles of `chess`.
    """

    name: str = "agreement"
    path: str | None = None
    test_path: str | None = None
    text: str = "text"
    text_pair: str | None = None
    label: str = "label"
    chosen: str = "chosen"
    rejected: str = "rejected"
    group: str | None = None
    classes: tuple[str, ...] | None = None
    header: bool | None = None
    delimiter: str | None = None
    quoted: bool | None = None
    n_weak: int = 500
    n_transfer: int = 2000
    n_test: int = 2000
    balance: bool = True
    prompt: str | None = None
    words: tuple[str, ...] | None = None
    read: str = "text"
    scorer: str | None = None
    answer_tokens: int = 256
    attractor_frac: float = 0.2
    language_seed: int = 0
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    chess: ChessConfig = field(default_factory=ChessConfig)

    def __post_init__(self) -> None:
        for name in ("n_weak", "n_transfer", "n_test"):
            if getattr(self, name) < 2:
                raise W2SError(f"task.{name}={getattr(self, name)}: expected at least 2 examples")
        if self.answer_tokens < 1:
            raise W2SError(f"task.answer_tokens={self.answer_tokens}: expected at least 1 token")
        if self.classes is not None and len(set(self.classes)) < max(2, len(self.classes)):
            raise W2SError(
                f"task.classes={list(self.classes)}: expected at least two different class names"
            )
        if self.prompt is not None and "{text}" not in self.prompt:
            raise W2SError(
                f"task.prompt={self.prompt!r} shows no text; put {{text}} where it belongs"
            )
        if self.words is not None and len(set(self.words) - {""}) < max(2, len(self.words)):
            raise W2SError(
                f"task.words={list(self.words)}: expected one word a class, all different"
            )
        _check_frac("task.attractor_frac", self.attractor_frac)

    def with_defaults(self, **defaults: Any) -> TaskConfig:
        """Return the same with other defaults: a field that was set stays as it was set."""
        plain = TaskConfig()
        unset = {k: v for k, v in defaults.items() if getattr(self, k) == getattr(plain, k)}
        return replace(self, **unset)


def _check_frac(name: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise W2SError(f"{name}={value}: expected a share between 0 and 1")
