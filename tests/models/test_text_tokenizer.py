"""The tokenizer made from texts: total, lossless, and the same whoever makes it."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

from helpers.paths import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from w2s_fast.files import tree_hash
from w2s_fast.models.text_tokenizer import END, VOCABULARY, read_tokenizer, train_tokenizer

TEXTS = [f"The {word} film, number {i}: naïve 漢字 🙂\n" for i, word in enumerate("abcdefgh" * 20)]
_MAKE = """
import sys
from w2s_fast.models.text_tokenizer import train_tokenizer
sys.path.insert(0, "tests/models")
from test_text_tokenizer import TEXTS
train_tokenizer(TEXTS).save_pretrained(sys.argv[1])
"""


def test_equal_texts_give_equal_files_in_any_process_and_order(tmp_path: Path) -> None:
    shuffled = random.Random(0).sample(TEXTS, len(TEXTS))
    train_tokenizer(shuffled).save_pretrained(tmp_path / "here")
    digests = {tree_hash(tmp_path / "here")}
    for parallel, seed in (("0", "1"), ("1", "2")):
        environment = {"TOKENIZERS_PARALLELISM": parallel, "PYTHONHASHSEED": seed}
        folder = tmp_path / seed
        command = [sys.executable, "-c", _MAKE, str(folder)]
        path = f"{ROOT}:{ROOT / 'tests'}"
        subprocess.run(command, cwd=ROOT, env={**environment, "PYTHONPATH": path}, check=True)
        digests.add(tree_hash(folder))
    assert len(digests) == 1


@settings(max_examples=200, deadline=None)
@given(st.text(min_size=1))
def test_every_text_has_tokens_and_is_decoded_as_it_was(text: str) -> None:
    ids = _TOKENIZER(text, add_special_tokens=False)["input_ids"]
    assert ids and max(ids) < len(_TOKENIZER) <= VOCABULARY
    assert _TOKENIZER.decode(ids, clean_up_tokenization_spaces=False) == text


def test_words_of_the_texts_are_tokens_and_two_texts_are_told_apart(tmp_path: Path) -> None:
    assert _TOKENIZER.tokenize("The film, number") == ["The", "Ġfilm", ",", "Ġnumber"]
    one, two = _TOKENIZER("a b")["input_ids"], _TOKENIZER("a", " b")["input_ids"]
    end = _TOKENIZER.convert_tokens_to_ids(END)
    assert one == [end, *_TOKENIZER("a b", add_special_tokens=False)["input_ids"]]
    assert two.count(end) == 2 and two[0] == end
    _TOKENIZER.save_pretrained(tmp_path)
    again = read_tokenizer(tmp_path)
    assert again("a", " b")["input_ids"] == two
    assert (again.pad_token_id, again.padding_side) == (_TOKENIZER.pad_token_id, "right")


def test_a_text_without_spaces_takes_seconds_not_hours() -> None:
    start = time.process_time()
    train_tokenizer(["ACGT" * 50_000, "0" * 200_000, "-" * 200_000, " " * 200_000])
    assert time.process_time() - start < 20


_TOKENIZER = train_tokenizer(TEXTS)
