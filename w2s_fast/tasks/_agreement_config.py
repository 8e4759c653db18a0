"""Configuration of the embedded task: its language model, its shortcut, and its shifted items."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from w2s_fast.errors import W2SError
from w2s_fast.tasks._language_model_config import LanguageModelConfig

N_ADVERBS = 4  # before a text with a shortcut
MAX_DISTANCE = 16  # nouns; a prefix then has at most 75 tokens
_MAX_IN_TEXT = 5  # longer sentences without a reserved prefix take long to draw


@dataclass(frozen=True)
class PretrainConfig(LanguageModelConfig):
    """The small causal language model of the task `agreement` and its pretraining.

    ``steps``, ``noun_coverage``, ``noise_frac`` and ``attractor_distance`` decide how much of the
    task the model knows before it is finetuned.

    Attributes:
        cue_frac: Share of noun phrases with a number cue ("this", "these").
        noun_coverage: Share of the nouns that occur in the text. The model cannot know the number
            of the others, which occur in the task alone.
        noise_frac: Share of sentences whose main verb has the wrong number.
        attractor_distance: Largest ``task.attractor_distance`` of a sentence, at most 5; smaller
            ones are as frequent.
    """

    PREFIX: ClassVar[str] = "task.pretrain"
    MAX_LENGTH: ClassVar[int] = 128

    hidden: int = 96
    layers: int = 3
    heads: int = 4
    steps: int = 600
    batch_size: int = 16
    length: int = 64
    lr: float = 4e-3
    seed: int = 0
    cue_frac: float = 0.5
    noun_coverage: float = 0.85
    noise_frac: float = 0.0
    attractor_distance: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("cue_frac", "noise_frac", "noun_coverage"):
            check_frac(f"task.pretrain.{name}", getattr(self, name))
        if self.noun_coverage < 0.1:
            raise W2SError(
                f"task.pretrain.noun_coverage={self.noun_coverage}: expected at least 0.1, so that "
                "the text has nouns"
            )
        check_distance("task.pretrain.attractor_distance", self.attractor_distance, _MAX_IN_TEXT)


@dataclass(frozen=True)
class ShortcutConfig:
    """A spurious feature in the texts of the task `agreement` (arXiv 2310.16228).

    Attributes:
        availability: How easily the feature is read: the number of adverbs, of the four before a
            text, that carry it; the others are neutral. 0: texts have neither feature nor adverbs.
        predictivity: Share of the items whose feature agrees with the label; at 0.5 it says
            nothing.
    """

    availability: int = 0
    predictivity: float = 0.9

    def __post_init__(self) -> None:
        if not 0 <= self.availability <= N_ADVERBS:
            raise W2SError(
                f"task.shortcut.availability={self.availability}: expected 0 to {N_ADVERBS} adverbs"
            )
        check_frac("task.shortcut.predictivity", self.predictivity)


@dataclass(frozen=True)
class OodConfig:
    """Out-of-distribution test items of the task `agreement`, scored beside its test items.

    Attributes:
        n: Number of items; 0: none.
        predictivity: Their ``task.shortcut.predictivity``; by default 1 minus that of the other
            items, so that the shortcut is reversed.
        attractor_distance: Their ``task.attractor_distance``; by default that of the other items.
    """

    n: int = 0
    predictivity: float | None = None
    attractor_distance: int | None = None

    def __post_init__(self) -> None:
        if self.n == 1 or self.n < 0:
            raise W2SError(f"task.ood.n={self.n}: expected at least 2 items, or 0 for none")
        if self.predictivity is not None:
            check_frac("task.ood.predictivity", self.predictivity)
        if self.attractor_distance is not None:
            check_distance("task.ood.attractor_distance", self.attractor_distance)

    def shifted(self, shortcut: ShortcutConfig, distance: int) -> tuple[ShortcutConfig, int]:
        """Return shortcut and attractor distance of these items from those of the others."""
        own = self.predictivity
        own = 1 - shortcut.predictivity if own is None else own
        return replace(shortcut, predictivity=own), self.attractor_distance or distance

    def check_shift(self, shortcut: ShortcutConfig, distance: int) -> None:
        """Raise ``W2SError`` if there are such items and they have the others' distribution."""
        own, own_distance = self.shifted(shortcut, distance)
        same = own.predictivity == shortcut.predictivity or not shortcut.availability
        if self.n and same and own_distance == distance:
            raise W2SError(
                f"task.ood.n={self.n}: these items would be like the test items; give them another "
                "task.ood.attractor_distance, or another task.ood.predictivity and set "
                "task.shortcut.availability"
            )


def check_frac(name: str, value: float) -> None:
    """Raise ``W2SError`` unless a share is between 0 and 1."""
    if not 0.0 <= value <= 1.0:
        raise W2SError(f"{name}={value}: expected a share between 0 and 1")


def check_distance(name: str, value: int, most: int = MAX_DISTANCE) -> None:
    """Raise ``W2SError`` unless a distance is a number of nouns from 1 to ``most``."""
    if not 1 <= value <= most:
        raise W2SError(f"{name}={value}: expected 1 to {most} nouns")
