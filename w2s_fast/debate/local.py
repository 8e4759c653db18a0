"""A writer that is a language model in this process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from w2s_fast.debate.config import WriterConfig


@dataclass(frozen=True, eq=False)
class LocalWriter:
    """Writes with ``generate``; a text is a function of model, prompt and seed.

    Args:
        model: language model of ``build_model(..., kind="generation")``.
        tokenizer: its tokenizer; with a chat template, prompts become user messages.
        cfg: ``temperature`` and ``max_tokens`` are used.
    """

    model: Any
    tokenizer: Any
    cfg: WriterConfig

    def __call__(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[str]:
        """Write N texts for N prompts.

        Raises:
            W2SError: The model has no room for ``max_tokens``.
        """
        from w2s_fast.training import generate

        return generate(
            self.model,
            self.tokenizer,
            [self._chat_prompt(prompt) for prompt in prompts],
            self.cfg.max_tokens,
            temperature=self.cfg.temperature,
            seed=seeds,
        )

    def _chat_prompt(self, prompt: str) -> str:
        if not getattr(self.tokenizer, "chat_template", None):
            return prompt
        message = [{"role": "user", "content": prompt}]
        text = self.tokenizer.apply_chat_template(
            message, tokenize=False, add_generation_prompt=True
        )
        return text.removeprefix(self.tokenizer.bos_token or "")  # encoding adds it again
