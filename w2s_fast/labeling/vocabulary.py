r"""Count words: features of texts (n, D) without a model.

    tf-idf_iw = (1 + log count_iw) (1 + log((1 + n) / (1 + df_w))),   rows scaled to length 1

df_w is the number of texts with the word. Source: Salton and Buckley 1988, with smoothed
document frequencies.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.label_models._options import check_number
from w2s_fast.labeling.functions import check_texts

_WORD = re.compile(r"\w+")


@dataclass
class Vocabulary:
    """The frequent words of texts, in lower case, and the counts of these words.

    Attributes:
        min_df: Least number of texts that have a word.
        max_df: Largest share of texts that have a word.
        max_words: The most frequent of these words are taken.
        words: D words after ``fit``, the most frequent first, equal ones in alphabetical order.
        idf: (D,) float32 after ``fit``.
    """

    min_df: int = 2
    max_df: float = 1.0
    max_words: int = 10_000
    words: tuple[str, ...] = field(init=False, default=())
    idf: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_number("min_df", self.min_df, 1)
        check_number("max_df", self.max_df, 0.0, 1.0)
        check_number("max_words", self.max_words, 1)

    def fit(self, texts: Sequence[str]) -> Self:
        """Count the words of texts; return the vocabulary.

        Raises:
            W2SError: No word is frequent enough.
        """
        texts = check_texts("texts", texts)
        df = Counter(word for text in texts for word in set(words_of(text)))
        most = self.max_df * len(texts)
        frequent = [w for w in df if self.min_df <= df[w] <= most]
        if not frequent:
            raise W2SError(
                f"no word is in at least {self.min_df} and at most {most:g} of {len(texts)} texts; "
                "expected at least one: change min_df or max_df"
            )
        frequent.sort(key=lambda w: (-df[w], w))
        self.words = tuple(frequent[: self.max_words])
        counts = torch.tensor([df[w] for w in self.words], dtype=torch.float64)
        self.idf = (1 + ((1 + len(texts)) / (1 + counts)).log()).float()
        return self

    def counts(self, texts: Sequence[str]) -> Tensor:
        """Return how often each word occurs in each text, (n, D) float32.

        Raises:
            W2SError: ``fit`` was not called, or a text is no text.
        """
        if not self.words:
            raise W2SError("the vocabulary has no words yet; call fit(texts) first")
        texts = check_texts("texts", texts)
        column = {word: i for i, word in enumerate(self.words)}
        out = torch.zeros(len(texts), len(self.words))
        for row, text in enumerate(texts):
            for word, count in Counter(words_of(text)).items():
                if word in column:
                    out[row, column[word]] = count
        return out

    def tf_idf(self, texts: Sequence[str]) -> Tensor:
        """Return rows of tf-idf, (n, D) float32 of length 1, or 0 for a text without such words.

        Raises:
            W2SError: As ``counts``.
        """
        counts = self.counts(texts)
        weights = torch.where(counts > 0, 1 + counts.clamp(min=1).log(), counts) * self.idf
        return torch.nn.functional.normalize(weights, dim=1)


def words_of(text: str) -> list[str]:
    """Return the words of a text in lower case: letters, digits and underscores."""
    return _WORD.findall(text.lower())
