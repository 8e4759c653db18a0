"""Finished generations in a file: by prompt or by id, and what is missing is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from w2s_fast.errors import W2SError
from w2s_fast.sampling import FileSampler, Sampler, write_samples

PROMPT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1).filter(
    str.strip
)


def lines(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_rows_and_lists_are_samples_in_order(tmp_path: Path) -> None:
    rows = (
        {"id": 7, "out": "a"},
        {"id": 8, "out": "b"},
        {"id": 7, "out": "c"},
        {"id": 7, "out": ""},
    )
    own = FileSampler(lines(tmp_path / "x.jsonl", *rows), text="out", key="id")
    assert isinstance(own, Sampler)
    assert own.sample(["7", "8"], 1) == [["a"], ["b"]]
    assert own.sample(["7", "7"], 3, seed=9) == [["a", "c", ""]] * 2
    packed = lines(tmp_path / "y.jsonl", {"prompt": "p", "text": ["a", "b"]})
    assert FileSampler(packed).sample(["p"], 2) == [["a", "b"]]


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pyarrow.table({"prompt": ["p", "q"], "text": [["a", "b"], ["c"]]})
    parquet.write_table(table, tmp_path / "x.parquet")
    assert FileSampler(tmp_path / "x.parquet").sample(["q", "p"], 1) == [["c"], ["a"]]


@settings(deadline=None)
@given(st.dictionaries(PROMPT, st.lists(PROMPT, min_size=2, max_size=3), min_size=1, max_size=4))
def test_written_samples_are_read(
    tmp_path_factory: pytest.TempPathFactory, samples: dict[str, list[str]]
) -> None:
    path = tmp_path_factory.mktemp("samples") / "x.jsonl"
    write_samples(path, list(samples), list(samples.values()))
    prompts = list(samples)[::-1]
    assert FileSampler(path).sample(prompts, 2) == [samples[p][:2] for p in prompts]


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    path = lines(tmp_path / "x.jsonl", {"prompt": "p", "text": "a"}, {"prompt": "q", "text": "b"})
    own = FileSampler(path)
    with pytest.raises(W2SError, match=r"no sample of 2 of 3 prompts, the first is 'r'; expected"):
        own.sample(["p", "r", "s"], 1)
    with pytest.raises(W2SError, match="has 1 samples of 'p', and fewer than n=2 of 2 prompts"):
        own.sample(["p", "q"], 2)
    with pytest.raises(W2SError, match="n is 0"):
        own.sample(["p"], 0)
    with pytest.raises(W2SError, match="columns prompt, text; expected one named 'texts'; did you"):
        FileSampler(path, text="texts")
    with pytest.raises(W2SError, match="no such file"):
        FileSampler(tmp_path / "y.jsonl")


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"prompt": "p", "text": None}, "row 2 of column 'text' is None; expected a text"),
        ({"prompt": None, "text": "a"}, "row 2 of column 'prompt' is None; expected a prompt"),
        ({"prompt": "", "text": "a"}, "row 2 of column 'prompt' is ''"),
    ],
)
def test_wrong_rows(tmp_path: Path, row: dict[str, Any], problem: str) -> None:
    path = lines(tmp_path / "x.jsonl", {"prompt": "p", "text": "a"}, row)
    with pytest.raises(W2SError, match=problem):
        FileSampler(path)


def test_wrong_samples_are_not_written(tmp_path: Path) -> None:
    for prompts, samples in ((["p"], []), (["p", "p"], [["a"], ["b"]])):
        with pytest.raises(W2SError, match="expected a list for each of the different prompts"):
            write_samples(tmp_path / "x.jsonl", prompts, samples)
    assert not list(tmp_path.iterdir())
