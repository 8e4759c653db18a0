"""Prompts and answers as rows of tokens: where labels stand, what is cut and what refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from w2s_fast.errors import W2SError
from w2s_fast.tasks.datasets.agreement import tokenizer as agreement_tokenizer
from w2s_fast.training import encode_completions


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return agreement_tokenizer()


def test_encode(tokenizer: Any) -> None:
    prompts, answers = ["the old", "key", "red door near the boy"], [" cat", " dog cat", " key"]
    data = encode_completions(tokenizer, prompts, answers, max_length=5)

    def words(ids: np.ndarray) -> str:
        return " ".join(tokenizer.convert_ids_to_tokens(ids.tolist()))

    eos = tokenizer.eos_token
    inputs = [words(part) for part in np.split(data.tokens, data.offsets[1:-1])]
    assert inputs == [f"{eos} the old cat", f"{eos} key dog cat", f"{eos} near the boy key"]
    labels = [words(part) for part in np.split(data.labels, data.starts[1:-1])]
    assert labels == [f"cat {eos}", f"dog cat {eos}", f"key {eos}"]
    ids, mask, positions = data.batch(np.array([2, 0]))
    assert mask.sum(1).tolist() == [5, 4] and positions.tolist() == [3, 4, 7, 8]
    index, owner = data.label_index(np.array([2, 1, 0]), 2)
    # Process 0 has rows 2 and 0 with two labels each, process 1 row 1 with three.
    assert index.tolist() == [5, 2, 6, 3, 0, 4, 1, -1]
    assert owner.tolist() == [0, 1, 0, 1, 2, 1, 2, 0]
    part = data.rows(slice(1, 3))
    assert part.labels.tolist() == data.labels[2:].tolist() and part.starts.tolist() == [0, 3, 5]
    assert torch.equal(part.batch(np.array([1])).input_ids, data.batch(np.array([2])).input_ids)
    short = encode_completions(tokenizer, prompts, answers, end=False)
    assert short.digest() != data.digest() and short.labels.tolist() != data.labels.tolist()
    words_alone = [words(part) for part in np.split(short.labels, short.starts[1:-1])]
    assert words_alone == ["cat", "dog cat", "key"]


def test_what_cannot_be_encoded(tokenizer: Any) -> None:
    def refused(match: str, prompts: list[str], answers: list[str], **options: Any) -> None:
        with pytest.raises(W2SError, match=match):
            encode_completions(tokenizer, prompts, answers, **options)

    refused(
        "completion 1 has 3 tokens and leaves no room", ["the"] * 2, [" a", " a b c"], max_length=3
    )
    refused("1 prompts and 2 completions", ["the"], ["a", "b"])
    refused("completion 0 is '', which has no tokens", ["the"], [""], end=False)
    assert encode_completions(tokenizer, ["the"], [""]).labels.tolist() == [tokenizer.eos_token_id]
    one = encode_completions(tokenizer, ["the old key"], [" cat dog"], max_length=3)
    assert one.tokens.tolist()[1:] == one.labels.tolist()[:-1]  # one prompt token is left


def test_a_token_over_the_seam() -> None:
    """Where prompt and answer would merge, the answer is tokenized alone, and stays an answer."""

    class Pairs:
        """Two letters a token; a prompt of odd length merges with what follows."""

        model_max_length, pad_token_id, eos_token_id, bos_token_id = 99, 0, 0, None
        eos_token = "<e>"

        def __call__(self, texts: Any, **_: Any) -> dict[str, Any]:
            def ids(text: str) -> list[int]:
                parts = [text[i : i + 2] for i in range(0, len(text), 2)]
                return [sum(ord(c) * 256**i for i, c in enumerate(p)) for p in parts]

            one = isinstance(texts, str)
            return {"input_ids": ids(texts) if one else [ids(t) for t in texts]}

    tokenizer = Pairs()
    data = encode_completions(tokenizer, ["abcd", "abc"], ["xy", "xy"])
    xy = tokenizer("xy")["input_ids"]
    assert data.labels.tolist() == [*xy, 0, *xy, 0]
    assert data.tokens.tolist() == [*tokenizer("abcdxy")["input_ids"],
                                    *tokenizer("abc")["input_ids"], *xy]  # fmt: skip
