"""The interface of all samplers, and the seed of a sample."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from w2s_fast.errors import W2SError


@runtime_checkable
class Sampler(Protocol):
    """Draws texts that continue prompts."""

    def sample(self, prompts: Sequence[str], n: int, *, seed: int = 0) -> list[list[str]]:
        """Return n samples of each prompt.

        Args:
            prompts: N texts; equal prompts have equal samples.
            n: Samples a prompt. The first samples do not depend on n.
            seed: Another seed draws other samples.

        Returns:
            N lists of n texts, in the order of the prompts.

        Raises:
            W2SError: A prompt or n does not fit, or the texts cannot be had.
        """
        ...


def sample_seed(seed: int, prompt: str, bits: int = 63) -> int:
    """Return the seed of a prompt's samples, a hash of both: no other prompt changes it."""
    digest = hashlib.sha256(f"{seed}\0{prompt}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "little") >> (64 - bits)


def check_request(prompts: Sequence[str], n: int) -> None:
    """Check what every sampler is asked.

    Raises:
        W2SError: There are no prompts, one is no text or blank, or n is below 1.
    """
    if isinstance(prompts, str) or not len(prompts):
        raise W2SError(f"prompts are {prompts!r}; expected a list of at least one text")
    for row, prompt in enumerate(prompts):
        if not isinstance(prompt, str) or not prompt.strip():
            raise W2SError(f"prompts[{row}] is {prompt!r}; expected a text that is not blank")
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise W2SError(f"n is {n!r}; expected at least 1 sample a prompt")
