"""outcomes.parquet keeps which test items every model has right, whole or not at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from w2s_fast.errors import W2SError
from w2s_fast.report.outcomes import (
    OUTCOMES,
    WEAK,
    Outcomes,
    ceiling_model,
    group_numbers,
    read_outcomes,
    student_model,
    write_outcomes,
)


def test_outcomes_are_read_as_they_were_written(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    models = (WEAK, student_model("probe+xent"), ceiling_model(""), ceiling_model("probe+xent"))
    written = {
        seed: Outcomes(
            tuple(f"{seed}-{i}" for i in range(n)),
            tuple(f"group {i // 2}" for i in range(n)),
            {model: rng.random(n) < 0.5 for model in own},
        )
        for seed, n, own in ((10000, 7, models), (3, 5, models[:3]))
    }
    write_outcomes(tmp_path, written)
    found = read_outcomes(tmp_path)
    assert found is not None and list(found) == [10000, 3]
    for seed, own in written.items():
        assert (found[seed].ids, found[seed].groups) == (own.ids, own.groups)
        assert list(found[seed].right) == list(own.right), "a model that a seed lacks is absent"
        for model, right in own.right.items():
            np.testing.assert_array_equal(found[seed].right[model], right)
            assert found[seed].right[model].dtype == bool
    assert [path.name for path in tmp_path.iterdir()] == [OUTCOMES]


def test_a_folder_without_outcomes_and_a_damaged_file(tmp_path: Path) -> None:
    assert read_outcomes(tmp_path) is None
    write_outcomes(tmp_path, {0: Outcomes(("a",), ("a",), {WEAK: np.array([True])})})
    whole = (tmp_path / OUTCOMES).read_bytes()
    for damaged in (b"", b"PAR1", whole[: len(whole) // 2], whole.replace(b"seed", b"need")):
        (tmp_path / OUTCOMES).write_bytes(damaged)
        with pytest.raises(W2SError, match=r"outcomes.parquet cannot be read .*again"):
            read_outcomes(tmp_path)


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("seed", ["0"], "column 'seed' is string, expected int64"),
        ("id", None, "column 'id' is missing, expected string"),
        ("id", [None], "column 'id' is null, expected string"),
        ("group", [1], "column 'group' is int64"),
        ("weak", ["yes"], "column 'weak' is string, expected bool"),
        ("weak", [[True]], "column 'weak' is list"),
    ],
)
def test_a_column_of_another_type_is_named(
    column: str, values: list[object] | None, message: str, tmp_path: Path
) -> None:
    whole = {"seed": [0], "id": ["a"], "group": ["a"], "weak": [True]} | {column: values}
    table = pa.table({name: own for name, own in whole.items() if own is not None})
    pq.write_table(table, tmp_path / OUTCOMES)
    with pytest.raises(W2SError, match=f"cannot be read .{message}"):
        read_outcomes(tmp_path)


def test_items_without_a_name_are_refused(tmp_path: Path) -> None:
    columns = {"seed": [0, 0], "id": ["a", None], "group": ["a", "b"], "weak": [True, False]}
    pq.write_table(pa.table(columns), tmp_path / OUTCOMES)
    with pytest.raises(W2SError, match="column 'id' has 1 empty rows"):
        read_outcomes(tmp_path)


def test_a_group_has_one_number_everywhere() -> None:
    numbers = group_numbers({"a": ["x", "y", "x"], "b": ["y", "z"]})
    x, y, z = numbers["a"][0], numbers["a"][1], numbers["b"][1]
    assert len({x, y, z}) == 3 and numbers["a"][2] == x and numbers["b"][0] == y
