r"""How much likelier a language model finds the core continuation than the spurious one.

    A_i = log p(core_i | prompt_i) / n_i - log p(spurious_i | prompt_i) / m_i       n, m tokens

The core continuation follows from what the item is about, the spurious one from what usually goes
with it. A model that relies on the spurious attribute has A < 0 where the two differ. Unlike the
accuracy of an answer it grades every item, also those that a model answers right by a hair. With
``average=False`` the log-probabilities are not divided by their numbers of tokens.

Source: MM-SpuBench (Ye et al. 2024, arXiv 2406.17126), whose conditional generation likelihood
advantage (CGLA) compares such continuations of an image and a question. The division by tokens and
the summary are this package's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from w2s_fast.errors import W2SError
from w2s_fast.training.completions import encode_completions
from w2s_fast.training.likelihood import completion_logprob


@dataclass(frozen=True, eq=False)
class LikelihoodAdvantage:
    """Advantages of N items.

    Attributes:
        values: (N,) float64 A_i, nats per token, or nats of the whole continuation.
        mean: Mean of the values.
        se: Standard error of the mean over items; NaN for one item.
        share: Share of items with A_i > 0; ties count half.
    """

    values: np.ndarray
    mean: float
    se: float
    share: float


def likelihood_advantage(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[str],
    core: Sequence[str],
    spurious: Sequence[str],
    *,
    average: bool = True,
    max_length: int = 512,
    batch_size: int = 64,
) -> LikelihoodAdvantage:
    """Return the advantage of ``core`` over ``spurious`` continuations under a language model.

    Batches are distributed as in ``predict``; the model runs in eval mode and is returned to its
    mode.

    Args:
        model: A causal language model from ``build_model``.
        tokenizer: Its tokenizer.
        prompts: N texts.
        core, spurious: N continuations each, including the space before them if there is one.
        average: Divide each log-probability by its number of tokens.
        max_length: Tokens of prompt and continuation; a longer prompt loses its beginning.
        batch_size: Maximum rows of one forward.

    Raises:
        W2SError: The numbers of texts differ, there are none, or a result is not finite.
    """
    if not len(prompts) or not len(prompts) == len(core) == len(spurious):
        raise W2SError(
            f"{len(prompts)} prompts, {len(core)} core and {len(spurious)} spurious continuations; "
            "expected one of each for every item, and at least one item"
        )
    data = encode_completions(
        tokenizer, [*prompts, *prompts], [*core, *spurious], max_length, end=False
    )
    logp = completion_logprob(model, data, batch_size).astype(np.float64)
    if average:
        logp = logp / np.diff(data.starts)
    first, second = logp.reshape(2, -1)
    return advantage_of(first, second)


def advantage_of(core: np.ndarray, spurious: np.ndarray) -> LikelihoodAdvantage:
    """Return the advantage from log-probabilities (N,) of both continuations.

    Raises:
        W2SError: The arrays do not fit, are empty, or not finite.
    """
    first, second = np.asarray(core, dtype=np.float64), np.asarray(spurious, dtype=np.float64)
    if first.ndim != 1 or first.shape != second.shape or not first.size:
        raise W2SError(
            f"core has shape {first.shape}, spurious {second.shape}; expected log-probabilities "
            "(N,) of the same items, at least one"
        )
    values = first - second
    if not np.isfinite(values).all():
        row = int(np.flatnonzero(~np.isfinite(values))[0])
        raise W2SError(
            f"item {row} has log-probabilities {first[row]} and {second[row]}; expected finite "
            "numbers"
        )
    n = len(values)
    se = float(values.std(ddof=1) / np.sqrt(n)) if n > 1 else float("nan")
    share = float((values > 0).mean() + (values == 0).mean() / 2)
    return LikelihoodAdvantage(values, float(values.mean()), se, share)
