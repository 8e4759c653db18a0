"""Verbalizer: class probabilities as targets of the next token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from w2s_fast.errors import W2SError
from w2s_fast.integrations.batches._arrays import items
from w2s_fast.integrations.batches.weak_labels import WeakLabels


def label_tokens(tokenizer: Any, words: Sequence[str]) -> tuple[int, ...]:
    """Return the token of each label word.

    Raises:
        W2SError: if a word is not exactly one known token, or two words are the same token.
    """
    tokens: list[int] = []
    words = items(words)
    for word in words:
        ids = tokenizer(word, add_special_tokens=False)["input_ids"]
        if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
            raise W2SError(
                f"label word {word!r} is {_pieces(tokenizer, ids)}; expected one token of the "
                f"tokenizer{_spaced(tokenizer, word)}"
            )
        if ids[0] in tokens:
            raise W2SError(f"label word {word!r} is the same token as another; choose other words")
        tokens.append(int(ids[0]))
    if len(tokens) < 2:
        raise W2SError(f"label words are {list(words)!r}; expected one for each class")
    return tuple(tokens)


def _pieces(tokenizer: Any, ids: Sequence[int]) -> str:
    if len(ids) == 1:
        return "unknown"
    shown = ", ".join(map(repr, tokenizer.convert_ids_to_tokens(list(ids))))
    return f"{len(ids)} tokens" + (f" ({shown})" if ids else "")


def _spaced(tokenizer: Any, word: str) -> str:
    """Return a hint if the word is one token with, or without, a leading space."""
    other = word.lstrip() if word != word.lstrip() else f" {word}"
    ids = tokenizer(other, add_special_tokens=False)["input_ids"]
    one = len(ids) == 1 and ids[0] != tokenizer.unk_token_id
    return f"; {other!r} is one" if one else "; choose another word"


def answer_rows(
    tokenizer: Any,
    prompts: Sequence[str],
    labels: WeakLabels,
    words: Sequence[str],
    *,
    max_length: int | None = None,
) -> list[dict[str, Any]]:
    """Make rows for a causal language model that answers each prompt with a label word.

    A row is the prompt followed by the most likely label word. Only that token counts: ``labels``
    are -100 before it. ``weak_ids`` and ``weak_probs`` (C,) are its target, ``weak_weight`` its
    weight. ``WeakLabelCollator`` collates the rows.

    Args:
        tokenizer: a transformers tokenizer. An end token that it appends to a text is removed.
        prompts: N texts, in the order of ``labels`` (``labels.at(ids)``).
        labels: weak labels of C classes.
        words: C label words, one for each class, each a single token; include the leading space
            if the tokenizer needs it (``" yes"``).
        max_length: tokens of a row; a longer prompt loses its beginning.

    Raises:
        W2SError: if sizes differ, a word is not one token, or a prompt is empty.
    """
    prompts = items(prompts)
    if not isinstance(labels, WeakLabels):
        raise W2SError(
            f"labels are {type(labels).__name__}; expected WeakLabels(ids, probs), or the result "
            "of read_labels"
        )
    tokens = label_tokens(tokenizer, words)
    if len(prompts) != len(labels) or len(tokens) != labels.probs.shape[1]:
        raise W2SError(
            f"{len(prompts)} prompts and {len(tokens)} label words for labels of "
            f"{len(labels)} items and {labels.probs.shape[1]} classes; expected as many"
        )
    rows = []
    for i, prompt in enumerate(_encoded(tokenizer, prompts, max_length)):
        probs = labels.probs[i].tolist()
        answer = tokens[max(range(len(tokens)), key=probs.__getitem__)]
        row = {
            "input_ids": [*prompt, answer],
            "labels": [-100] * len(prompt) + [answer],
            "weak_ids": list(tokens),
            "weak_probs": probs,
        }
        if labels.weight is not None:
            row["weak_weight"] = float(labels.weight[i])
        rows.append(row)
    return rows


def _encoded(tokenizer: Any, prompts: Sequence[str], max_length: int | None) -> list[list[int]]:
    encoded = []
    for i, ids in enumerate(tokenizer(list(prompts))["input_ids"] if prompts else []):
        if len(ids) > 1 and ids[-1] == tokenizer.eos_token_id:
            ids = ids[:-1]
        if not ids:
            raise W2SError(f"prompt {i} is empty; expected a text to answer")
        encoded.append(list(ids) if max_length is None else list(ids[-(max_length - 1) :]))
    return encoded
