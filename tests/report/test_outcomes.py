"""outcomes.parquet keeps which test items every model has right, whole or not at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
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


def test_a_group_has_one_number_everywhere() -> None:
    numbers = group_numbers({"a": ["x", "y", "x"], "b": ["y", "z"]})
    x, y, z = numbers["a"][0], numbers["a"][1], numbers["b"][1]
    assert len({x, y, z}) == 3 and numbers["a"][2] == x and numbers["b"][0] == y
