"""Samples of a language model in this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from w2s_fast.sampling.protocol import check_request, sample_seed


@dataclass(frozen=True, eq=False, kw_only=True)
class GenerateSampler:
    """Samples with `w2s_fast.training.generate`, in batches of prompts of similar length.

    A sample is a function of model, settings, seed, prompt and its number, not of the batch or the
    process that computes it, except that rounding depends on the batch: where two tokens are as
    likely to within rounding, another batch may take the other one. All samples of a prompt in a
    batch share one computation of the prompt's keys and values.

    Attributes:
        model: A causal language model of ``build_model(..., kind="generation")``.
        tokenizer: Its tokenizer.
        max_new_tokens: Largest number of tokens of a sample.
        temperature: 0: the most likely token each time, so that all samples of a prompt are equal.
        top_p: Draw from the most likely tokens that have this probability together.
        batch_tokens: Largest number of tokens of a batch, prompts and samples together.
        batch_size: Largest number of samples of a batch.
        max_length: Tokens of prompt and sample together; a longer prompt loses its beginning. None:
            the limit of model and tokenizer.
        progress: Called with (samples done, samples).
        guide: Makes a logits processor for every batch, see ``generate``.
    """

    model: Any
    tokenizer: Any
    max_new_tokens: int = 512
    temperature: float = 1.0
    top_p: float = 1.0
    batch_tokens: int = 16384
    batch_size: int = 64
    max_length: int | None = None
    progress: Callable[[int, int], None] | None = None
    guide: Callable[[Any], Any] | None = None

    def sample(self, prompts: Sequence[str], n: int, *, seed: int = 0) -> list[list[str]]:
        """Return n samples of each prompt, without the end token; see `Sampler`.

        Raises:
            W2SError: A prompt, n or a setting does not fit.
        """
        from w2s_fast.training import generate

        check_request(prompts, n)
        distinct = list(dict.fromkeys(prompts))
        drawn = n if self.temperature else 1  # greedy samples are equal
        texts = generate(
            self.model,
            self.tokenizer,
            distinct,
            self.max_new_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            n=drawn,
            seed=[sample_seed(seed, prompt) for prompt in distinct],
            batch_size=self.batch_size,
            batch_tokens=self.batch_tokens,
            max_length=self.max_length,
            progress=self.progress,
            guide=self.guide,
        )
        samples = {p: texts[i * drawn : (i + 1) * drawn] for i, p in enumerate(distinct)}
        return [samples[p] * (n // drawn) for p in prompts]
