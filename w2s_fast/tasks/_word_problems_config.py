"""Configuration of the task `word_problems`: its problems, and its two language models."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from w2s_fast.errors import W2SError
from w2s_fast.tasks._language_model_config import LanguageModelConfig

MOST_STEPS = 4


@dataclass(frozen=True)
class WordPretrainConfig(LanguageModelConfig):
    """The language model that a student starts from; see `LanguageModelConfig` for its fields."""

    PREFIX: ClassVar[str] = "task.word_problems.pretrain"
    MAX_LENGTH: ClassVar[int] = 512

    hidden: int = 96
    layers: int = 3
    heads: int = 3
    steps: int = 2000
    batch_size: int = 4
    length: int = 256
    lr: float = 3e-3
    seed: int = 0


@dataclass(frozen=True)
class SmallWordPretrainConfig(WordPretrainConfig):
    """A smaller language model, which a weak model starts from."""

    PREFIX: ClassVar[str] = "task.word_problems.pretrain_small"

    hidden: int = 64
    heads: int = 2
    steps: int = 1400
    lr: float = 4e-3


@dataclass(frozen=True)
class SolversConfig:
    """Who wrote the solutions in the text of the pretraining; one solver a document.

    A careful solver makes no mistake and writes out every step. A sloppy one writes steps too, but
    adds where he should multiply or subtract a comparison ("times as many", "fewer than"). A hasty
    one makes the same mistakes and writes the answer alone.

    Attributes:
        careful: Share of documents by careful solvers.
        hasty: Share of documents by hasty solvers; the rest is by sloppy ones.
    """

    careful: float = 0.3
    hasty: float = 0.2

    def __post_init__(self) -> None:
        if min(self.careful, self.hasty) < 0 or self.careful + self.hasty > 1:
            raise W2SError(
                f"task.word_problems.solvers.careful={self.careful}, hasty={self.hasty}: expected "
                "shares of at least 0 and together at most 1"
            )


@dataclass(frozen=True)
class WordProblemsConfig:
    """The problems of the task `word_problems`, and the models that are pretrained for it.

    Attributes:
        min_steps: Fewest steps of a problem.
        max_steps: Most steps of a problem, at most 4.
        distractor_frac: Share of problems with a sentence that counts something else.
        solvers: Who wrote the solutions of the pretraining.
        pretrain: The language model `word-problems-lm`.
        pretrain_small: The language model `word-problems-small-lm`.
    """

    min_steps: int = 2
    max_steps: int = 3
    distractor_frac: float = 0.5
    solvers: SolversConfig = field(default_factory=SolversConfig)
    pretrain: WordPretrainConfig = field(default_factory=WordPretrainConfig)
    pretrain_small: SmallWordPretrainConfig = field(default_factory=SmallWordPretrainConfig)

    def __post_init__(self) -> None:
        if not 1 <= self.min_steps <= self.max_steps <= MOST_STEPS:
            raise W2SError(
                f"task.word_problems.min_steps={self.min_steps}, max_steps={self.max_steps}: "
                f"expected 1 <= min_steps <= max_steps <= {MOST_STEPS}"
            )
        if not 0.0 <= self.distractor_frac <= 1.0:
            raise W2SError(
                f"task.word_problems.distractor_frac={self.distractor_frac}: expected a share "
                "between 0 and 1"
            )
