"""Make labeling functions of words and of regular expressions, and candidates of a vocabulary."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from w2s_fast.errors import W2SError
from w2s_fast.label_models.votes import ABSTAIN, check_classes
from w2s_fast.labeling.functions import LabelingFunction
from w2s_fast.labeling.vocabulary import Vocabulary


@dataclass(frozen=True)
class _Matches:
    """Vote for a class if the pattern occurs in the text; a class, so that it can be pickled."""

    label: int
    pattern: re.Pattern[str]

    def __call__(self, text: str) -> int:
        return self.label if self.pattern.search(text) else ABSTAIN


def keywords(
    label: int,
    words: str | Sequence[str],
    *,
    name: str | None = None,
    whole_words: bool = True,
    ignore_case: bool = True,
) -> LabelingFunction:
    """Make a function that votes for a class if any of the words or phrases occurs in the text.

    Args:
        label: The class, 0 or more.
        words: A word, or several. Spaces in a phrase match any white space.
        name: Name of the function; None makes one of class and words.
        whole_words: A word does not match inside of a longer one.
        ignore_case: Upper and lower case are the same.

    Raises:
        W2SError: The label is no class, or a word is empty or no text.
    """
    listed = [words] if isinstance(words, str) else list(words)
    if not listed:
        raise W2SError("words are empty; expected at least one word")
    for word in listed:
        if not isinstance(word, str) or not word.strip():
            raise W2SError(f"words have {word!r:.80}; expected a word that is not blank")
    options = "|".join(_pattern(word, whole_words) for word in listed)
    if name is None:
        more = f" and {len(listed) - 3} more" if len(listed) > 3 else ""
        name = f"{label}: {', '.join(listed[:3])}{more}"
    return regex(label, options, flags=re.IGNORECASE if ignore_case else 0, name=name)


def _pattern(word: str, whole: bool) -> str:
    body = r"\s+".join(map(re.escape, word.split()))
    # Not \b, which does not hold between a space and a word such as "$$$" or ":)".
    return rf"(?<!\w){body}(?!\w)" if whole else body


def regex(
    label: int, pattern: str | re.Pattern[str], *, flags: int = 0, name: str | None = None
) -> LabelingFunction:
    """Make a function that votes for a class if a regular expression matches in the text.

    Args:
        label: The class, 0 or more.
        pattern: The expression, searched for anywhere in the text.
        flags: Flags of ``re.compile``.
        name: Name of the function; None makes one of class and expression.

    Raises:
        W2SError: The label is no class, or the expression is wrong or empty.
    """
    _check_label(label)
    try:
        compiled = re.compile(pattern, flags)
    except (re.error, TypeError, ValueError) as error:
        raise W2SError(f"pattern {pattern!r:.80} cannot be compiled: {error}") from None
    if not isinstance(compiled.pattern, str):
        raise W2SError(f"pattern {pattern!r:.80} is of bytes; expected an expression of text")
    if not compiled.pattern:
        raise W2SError("pattern is empty and matches every text; expected an expression")
    return LabelingFunction(name or f"{label}: /{compiled.pattern}/", _Matches(label, compiled))


def _check_label(label: Any) -> None:
    if isinstance(label, bool) or not isinstance(label, int) or label < 0:
        raise W2SError(f"label is {label!r}; expected a class, an integer of at least 0")


def keyword_candidates(
    texts: Sequence[str],
    n_classes: int,
    *,
    min_df: int = 5,
    max_df: float = 0.3,
    max_words: int = 500,
) -> tuple[LabelingFunction, ...]:
    """Make a function of every frequent word and class, as a pool for ``select_functions``.

    Args:
        texts: Texts whose words are counted; they need no labels.
        n_classes: K.
        min_df: Least number of texts that have a word.
        max_df: Largest share of texts that have a word.
        max_words: The most frequent of these words are taken.

    Returns:
        K functions a word, in the order of words by frequency: "WORD -> CLASS".

    Raises:
        W2SError: No word is left.
    """
    check_classes(n_classes)
    words = Vocabulary(min_df=min_df, max_df=max_df, max_words=max_words).fit(texts).words
    return tuple(
        keywords(label, word, name=f"{word} -> {label}")
        for word in words
        for label in range(n_classes)
    )
