"""Read and write outcomes.parquet: which test items every model of a run has right, at all seeds.

It has a row per seed and test item: ``seed`` (int64), ``id`` and ``group`` (string), and for every
model a bool column: "weak", "student/NAME", "ceiling" and "ceiling/NAME" (of one student); null
where a seed lacks the model. Items of one group are correlated. Comparisons of several runs read
it, because accuracies do not tell which errors two seeds have in common.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from w2s_fast.errors import W2SError, one_line

OUTCOMES = "outcomes.parquet"
WEAK = "weak"
_KINDS = {"seed": "int64", "id": "string", "group": "string"}  # those of models are bool

Key = TypeVar("Key", bound=Hashable)


def student_model(name: str) -> str:
    """Return the model of a student."""
    return f"student/{name}"


def ceiling_model(student_name: str) -> str:
    """Return the model of a ceiling; the name is empty for the plain one."""
    return f"ceiling/{student_name}" if student_name else "ceiling"


@dataclass(frozen=True, eq=False)
class Outcomes:
    """The test items of one seed.

    Attributes:
        ids: N ids.
        groups: N names of groups; a name is the same group at all seeds, and in all runs of a task.
        right: (N,) bool by model, whether its prediction is right.
    """

    ids: tuple[str, ...]
    groups: tuple[str, ...]
    right: Mapping[str, np.ndarray]


def group_numbers(groups: Mapping[Key, Sequence[str]]) -> dict[Key, np.ndarray]:
    """Return numbers (N,) int64 in place of names; a name has one number under all keys."""
    numbers = {name: i for i, name in enumerate(sorted(set().union(*groups.values())))}
    return {key: np.array([numbers[name] for name in own]) for key, own in groups.items()}


def write_outcomes(out: Path, outcomes: Mapping[int, Outcomes]) -> None:
    """Write the outcomes by seed into a folder, whole or not at all."""
    import pyarrow as pa

    from w2s_fast.files import write_bytes

    models = dict.fromkeys(model for own in outcomes.values() for model in own.right)
    columns: dict[str, list[Any]] = {name: [] for name in (*_KINDS, *models)}
    for seed, own in outcomes.items():
        columns["seed"] += [seed] * len(own.ids)
        columns["id"] += own.ids
        columns["group"] += own.groups
        for model in models:
            lacking = [None] * len(own.ids)
            columns[model] += own.right[model].tolist() if model in own.right else lacking
    table = pa.table({n: pa.array(v, _KINDS.get(n, "bool")) for n, v in columns.items()})
    write_bytes(out / OUTCOMES, _parquet(table))


def _parquet(table: Any) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    stream = pa.BufferOutputStream()
    pq.write_table(table, stream)
    return bytes(stream.getvalue())


def read_outcomes(out: Path) -> dict[int, Outcomes] | None:
    """Return the outcomes by seed; None if the folder has none, as an older version left it.

    Raises:
        W2SError: The file is damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = out / OUTCOMES
    if not path.exists():
        return None
    try:
        table = pq.read_table(path)
        _check_columns(table)
        seeds = table["seed"].to_numpy()
        return {int(s): _of_seed(table.filter(pa.array(seeds == s))) for s in dict.fromkeys(seeds)}
    except (OSError, ValueError, pa.ArrowException) as err:
        raise W2SError(f"{path} cannot be read ({one_line(err)}); make the results again") from err


def _check_columns(table: Any) -> None:
    """Raise ValueError for a column that is missing, of another type, or has no value in a row."""
    found = {field.name: str(field.type) for field in table.schema}
    for name, kind in {**_KINDS, **dict.fromkeys(set(found) - set(_KINDS), "bool")}.items():
        if found.get(name) != kind:
            raise ValueError(f"column {name!r} is {found.get(name, 'missing')}, expected {kind}")
        if name in _KINDS and table[name].null_count:
            raise ValueError(f"column {name!r} has {table[name].null_count} empty rows")


def _of_seed(table: Any) -> Outcomes:
    right = {
        name: table[name].to_numpy().astype(bool)
        for name in table.column_names
        if name not in _KINDS and not table[name].null_count
    }
    return Outcomes(tuple(table["id"].to_pylist()), tuple(table["group"].to_pylist()), right)
