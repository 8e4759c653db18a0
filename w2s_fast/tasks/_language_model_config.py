"""Size and pretraining of the small language models of the embedded tasks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from w2s_fast.errors import W2SError


@dataclass(frozen=True)
class LanguageModelConfig:
    """A small causal language model and its pretraining.

    Attributes:
        hidden: Width of the model.
        layers: Number of decoder layers.
        heads: Attention heads; must divide ``hidden``.
        steps: Optimizer steps.
        batch_size: Sequences per step.
        length: Tokens per sequence.
        lr: Peak learning rate (AdamW, 50 steps of warm-up, cosine decay to 0.05 of it).
        seed: Seed of the initial weights and the text.
    """

    PREFIX: ClassVar[str]  # of the settings in error messages
    MAX_LENGTH: ClassVar[int]  # tokens of a sequence

    hidden: int
    layers: int
    heads: int
    steps: int
    batch_size: int
    length: int
    lr: float
    seed: int

    def __post_init__(self) -> None:
        if self.hidden < 1 or self.heads < 1 or self.hidden % (2 * self.heads):
            raise W2SError(
                f"{self.PREFIX}.hidden={self.hidden} does not split into {self.heads} heads of "
                "even width; use a multiple of 2 * pretrain.heads"
            )
        for name in ("layers", "steps", "batch_size"):
            if getattr(self, name) < 1:
                raise W2SError(f"{self.PREFIX}.{name}={getattr(self, name)}: expected at least 1")
        if not 0 <= self.seed < 2**31:
            raise W2SError(f"{self.PREFIX}.seed={self.seed} is outside 0 to 2**31 - 1")
        if not 2 <= self.length <= self.MAX_LENGTH:
            raise W2SError(
                f"{self.PREFIX}.length={self.length}: expected 2 to {self.MAX_LENGTH} tokens"
            )
