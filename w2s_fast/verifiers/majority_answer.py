r"""The majority vote over answers as a further verifier, and as a baseline of its own.

    s_i = (f_i - min f) / (max f - min f)     over the responses to one problem
    f_i: number of responses to the problem with the same answer as response i

If all answers are equally frequent, s_i = 1. A response without an answer agrees with none, not
even with another one without an answer, and has s_i = 0.

As a verifier it is not independent of others that prefer frequent answers, and counts them twice.

Source: the released code of Weaver (arXiv 2506.18203); as a baseline: Wang et al. 2023 (arXiv
2203.11171), self-consistency.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np

from w2s_fast.errors import W2SError
from w2s_fast.verifiers.rows import check_problems, is_name, sequence, shown


def majority_verifier(
    answers: Sequence[Hashable | None], problems: Sequence[Hashable]
) -> np.ndarray:
    """Score responses by the frequency of their answer in their problem, (N,) float64 in [0, 1].

    Args:
        answers: N final answers in one spelling; None or blank: the response has no answer.
        problems: (N,) names of problems.

    Raises:
        W2SError: Answers or problems are wrong.
    """
    names = sequence("answers", answers)
    index = check_problems(problems, len(names)).index
    answered = np.array([is_name(name) for name in names])
    for row in np.flatnonzero(~answered).tolist():
        if names[row] is not None and not isinstance(names[row], str):
            raise W2SError(
                f"answers[{row}] is {shown(names[row])}; expected a string, or None for no answer"
            )
    keys = list(zip(index.tolist(), names, strict=True))
    counts = Counter(key for key, has in zip(keys, answered, strict=True) if has)
    frequency = np.array([counts.get(key, 0) for key in keys], dtype=np.float64)
    n = int(index.max()) + 1
    low, high = np.full(n, np.inf), np.zeros(n)
    np.minimum.at(low, index, frequency)
    np.maximum.at(high, index, frequency)
    spread = (high - low)[index]
    tied = answered.astype(np.float64)
    return np.divide(frequency - low[index], spread, out=tied, where=spread > 0)
