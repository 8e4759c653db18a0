"""JSON that is nested too deeply is an error of one line; pyarrow would end the process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.task_data import fails, local_config, numbered_rows, write_rows
from hypothesis import example, given, settings
from hypothesis import strategies as st

from w2s_fast.errors import W2SError
from w2s_fast.tasks import _nesting, get_task
from w2s_fast.tasks._files import read_table

DEEP = [
    "[" * 200_000 + "]" * 200_000,
    '{"a":' * 200_000 + "1" + "}" * 200_000,
    '["]", ' * 200_000 + "1" + "]" * 200_000,  # a bracket in a text closes nothing
    r'["\\", "\"", "\\\"]", ' * 200_000 + "1" + "]" * 200_000,
    "[\n" * 200_000 + "]" * 200_000,  # pyarrow goes on in the next line
]


@pytest.mark.parametrize("cell", DEEP, ids=range(len(DEEP)))
def test_a_deep_column_is_an_error_that_names_the_line(tmp_path: Path, cell: str) -> None:
    """In a column that nobody reads, too."""
    path = write_rows(tmp_path / "a.jsonl", numbered_rows(40))
    line = '{"text": "x", "label": 1, "extra": ' + cell + "}\n"
    path.write_text(path.read_text() + line + path.read_text())
    fails(
        lambda: get_task("local").load(local_config(path), 0),
        f"{path}: line {140 if cell[1] == chr(10) else 41} has lists", "more than 100 levels deep",
    )  # fmt: skip


def test_what_only_looks_deep_is_read(tmp_path: Path) -> None:
    rows = [
        {"text": "[" * 500, "extra": [["["] * 200] * 200},
        {"text": '"[{\\"' * 500, "extra": [[]]},
        {"text": "\\", "extra": [["[\\"], ['["']]},
    ] * 40
    path = write_rows(tmp_path / "a.jsonl", rows)
    assert read_table(path).to_pylist() == rows


JSON = st.recursive(
    st.text('[]{}"\\é\n', max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text('[{"\\'), inner, max_size=2)
    ),
)


@settings(deadline=None, max_examples=200)
@given(values=st.lists(JSON, min_size=1, max_size=4), most=st.integers(0, 4))
@example(values=[["]"], [[]]], most=1)
def test_levels_are_counted_as_python_does(values: list[object], most: int) -> None:
    """In chunks of a few bytes, and up to a limit of a few levels."""
    deep = [number for number, value in enumerate(values, 1) if levels(value) > most]
    data = "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_nesting, "_CHUNK", 5)
        patch.setattr(_nesting, "MOST_LEVELS", most)
        try:
            _nesting.check_nesting(data, Path("a.jsonl"))
        except W2SError as error:
            assert str(error).startswith(f"a.jsonl: line {deep[0]} has")
        else:
            assert not deep


def levels(value: object) -> int:
    """Return how many lists and objects are within one another."""
    if isinstance(value, dict):
        value = list(value.values())
    return 1 + max(map(levels, value), default=0) if isinstance(value, list) else 0
