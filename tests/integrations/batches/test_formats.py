"""Rows in lists, NumPy, torch, Arrow or pandas: one batch, or one line that says what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from helpers.batch_formats import LAST, Row, ragged

from w2s_fast.errors import W2SError
from w2s_fast.integrations.batches import WeakLabelCollator
from w2s_fast.tasks.datasets.agreement import tokenizer as agreement_tokenizer

ROWS: list[Row] = [
    {
        "input_ids": [5, 6, 7], "attention_mask": [0, 1, 1], "labels": [-100, 6, 7],
        "weak_labels": [-100, -100, 3], "weak_ids": [[4], [], [6, 7]],
        "weak_probs": [[0.5], [], [0.25, 0.5]], "weak_rest": [0.5, 0.0, 0.25], "weak_weight": 0.5,
    },
    {
        "input_ids": [5, 8], "attention_mask": [1, 1], "labels": [-100, 8],
        "weak_labels": [2, -100], "weak_ids": [[], [9]], "weak_probs": [[], [1.0]],
        "weak_rest": [0.0, 0.0], "weak_weight": 2.0,
    },
]  # fmt: skip
SOFT: list[Row] = [
    {"input_ids": [5, 6], "weak_labels": [[0.5, 0.5, 0.0], [0.0, 0.25, 0.75]], "weak_weight": 1},
    {"input_ids": [5], "weak_labels": [[0.0, 1.0, 0.0]], "weak_weight": 3},
]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return agreement_tokenizer()


def each(convert: Callable[[Any], Any]) -> Callable[[list[Row]], list[Any]]:
    return lambda rows: [{name: convert(value) for name, value in row.items()} for row in rows]


def narrow(value: Any) -> Any:
    """Half precision and 32-bit ids: what a stored table holds."""
    x = [narrow(v) for v in value] if isinstance(value, list) else None
    if x is not None and (not value or isinstance(value[0], list)):
        return x
    array = np.asarray(value)
    return array.astype(np.float16 if array.dtype.kind == "f" else np.int32)


def tensors(value: Any) -> Any:
    if isinstance(value, list) and isinstance(value[0], list):
        return [torch.tensor(v) for v in value]
    return torch.tensor(value)


def dataset(kind: str) -> Callable[[list[Row]], list[Any]]:
    def rows_of(rows: list[Row]) -> list[Any]:
        from datasets import Dataset

        data = Dataset.from_list(rows).with_format(kind)
        return [data[i] for i in range(len(rows))]

    return rows_of


def loaded(kind: str) -> Callable[[list[Row]], list[Any]]:
    """What a DataLoader fetches, a batch at once."""

    def rows_of(rows: list[Row]) -> list[Any]:
        from datasets import Dataset

        fetched: list[Any] = Dataset.from_list(rows).with_format(kind).__getitems__([0, 1])
        return fetched

    return rows_of


def arrow_half(rows: list[Row]) -> Any:
    """The columns of probabilities as half precision, the ids as int32."""
    table = pa.Table.from_pylist(rows)
    for i, name in enumerate(table.column_names):
        kind = table.schema.field(name).type
        nested = pa.types.is_list(kind) and pa.types.is_list(kind.value_type)
        if name in ("weak_probs", "weak_ids"):
            number = pa.float16() if name == "weak_probs" else pa.int32()
            values = [row[name] for row in rows]
            as_half = [
                [np.float16(v).tolist() for v in x] if isinstance(x, list) else x
                for row in values
                for x in (row if nested else [row])
            ]
            inner = pa.array(as_half, pa.list_(pa.float32() if name == "weak_probs" else number))
            inner = inner.cast(pa.list_(number))
            if nested:
                offsets = np.cumsum([0, *map(len, values)]).astype(np.int32)
                inner = pa.ListArray.from_arrays(pa.array(offsets), inner)
            table = table.set_column(i, name, inner)
    return table


FORMATS: dict[str, Callable[[list[Row]], Any]] = {
    "numpy": each(ragged),
    "narrow": each(narrow),
    "torch": each(tensors),
    "tuples": each(lambda v: tuple(v) if isinstance(v, list) else v),
    "arrow scalars": each(pa.scalar),
    "arrow arrays": each(lambda v: pa.array(v) if isinstance(v, list) else pa.scalar(v)),
    "arrow table": pa.Table.from_pylist,
    "arrow half": arrow_half,
    "arrow batch": pa.RecordBatch.from_pylist,
    "arrow rows": lambda rows: [pa.Table.from_pylist([row]) for row in rows],
    "arrow structs": pa.array,
    "datasets numpy": dataset("numpy"),
    "datasets torch": dataset("torch"),
    "datasets arrow": dataset("arrow"),
    "datasets pandas": dataset("pandas"),
    "loader numpy": loaded("numpy"),
    "loader torch": loaded("torch"),
    "loader pandas": loaded("pandas"),
}


@pytest.mark.parametrize("rows", [ROWS, LAST, SOFT], ids=["tokens", "last", "soft"])
@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_gives_one_batch(kind: str, rows: list[Row], tokenizer: Any) -> None:
    if kind.split()[0] in ("datasets", "loader"):
        pytest.importorskip("datasets")
    if "pandas" in kind:
        pytest.importorskip("pandas")
    collator = WeakLabelCollator(tokenizer, pad_to_multiple_of=4)
    expected, got = collator(rows), collator(FORMATS[kind](rows))
    assert list(got) == list(expected)
    for name, column in got.items():
        assert column.dtype == expected[name].dtype, name
        assert torch.equal(column, expected[name]), name


def test_the_batch_of_ragged_lists(tokenizer: Any) -> None:
    """The known answer of the lists that every other format is compared with."""
    batch = WeakLabelCollator(tokenizer)(ROWS)
    pad = tokenizer.pad_token_id
    assert batch["input_ids"].tolist() == [[5, 6, 7], [5, 8, pad]]
    assert batch["attention_mask"].tolist() == [[0, 1, 1], [1, 1, 0]]
    assert batch["weak_labels"].tolist() == [[-100, -100, 3], [2, -100, -100]]
    none = [-1, -1]
    assert batch["weak_ids"].tolist() == [[[4, -1], none, [6, 7]], [none, [9, -1], none]]
    assert batch["weak_probs"].tolist() == [
        [[0.5, 0], [0, 0], [0.25, 0.5]],
        [[0, 0], [1, 0], [0, 0]],
    ]
    assert batch["weak_weight"].tolist() == [0.5, 2]


def test_rows_that_list_nothing(tokenizer: Any) -> None:
    """Beside rows that do, and alone: a width of 0 is none that a loss takes."""
    some = {"input_ids": [5], "weak_ids": [6], "weak_probs": [1.0]}
    none: Row = {"input_ids": [5, 6], "weak_ids": [], "weak_probs": []}
    batch = WeakLabelCollator(tokenizer)([none, some])
    assert batch["weak_ids"].tolist() == [[[-1], [-1]], [[6], [-1]]]
    for listed in ([], [[], []]):
        alone = WeakLabelCollator(tokenizer)([none | {"weak_ids": listed, "weak_probs": listed}])
        assert alone["weak_ids"].tolist() == [[[-1], [-1]]]
        assert alone["weak_ids"].dtype == torch.int64


def test_a_weight_for_the_row_beside_weights_for_tokens(tokenizer: Any) -> None:
    rows = [{"input_ids": [5, 6], "weak_weight": 0.5}, {"input_ids": [5], "weak_weight": [2.0]}]
    batch = WeakLabelCollator(tokenizer)(rows)
    assert batch["weak_weight"].tolist() == [[0.5, 0.5], [2, 0]]


def test_progress_columns(tokenizer: Any) -> None:
    rows = [{"input_ids": [5], "weak_weight": 1, "weak_frac": 0.5, "weak_step": 3}] * 2
    batch = WeakLabelCollator(tokenizer)(rows)
    assert batch["weak_frac"].tolist() == [0.5, 0.5] and batch["weak_step"].tolist() == [3, 3]
    assert batch["weak_step"].dtype == torch.int64


def test_numbers_in_unusual_containers(tokenizer: Any) -> None:
    """Scalars of a library inside lists, reversed and byte-swapped arrays, views."""
    ids = np.arange(3)
    expected = [[2, 1, 0]]
    for value in (
        list(ids[::-1]), ids[::-1], ids[::-1].astype(">i4"), list(torch.tensor([2, 1, 0])),
        [np.array(2), 1, torch.tensor(0)], torch.arange(6)[::2].flip(0) // 2, ids[::-1].astype("O"),
        range(2, -1, -1), pa.array([2, 1, 0], pa.uint8()), (pa.scalar(2), pa.scalar(1), 0),
    ):  # fmt: skip
        batch = WeakLabelCollator(tokenizer)([{"input_ids": value, "weak_weight": 1}])
        assert batch["input_ids"].tolist() == expected and batch["input_ids"].dtype == torch.int64
    nested = [[0.5, torch.tensor(0.5)], (np.float16(1), 0)]
    batch = WeakLabelCollator(tokenizer)([{"input_ids": [5, 6], "weak_labels": nested}])
    assert batch["weak_labels"].tolist() == [[[0.5, 0.5], [1, 0]]]


def test_default_dtype_does_not_round(tokenizer: Any) -> None:
    torch.set_default_dtype(torch.float16)
    try:
        rows = [{"input_ids": [5], "weak_ids": [6], "weak_probs": [0.1]}]
        probs = WeakLabelCollator(tokenizer)(rows)["weak_probs"]
    finally:
        torch.set_default_dtype(torch.float32)
    assert probs.item() == np.float32(0.1)


def test_gradients_stay_outside(tokenizer: Any) -> None:
    weak = torch.tensor([[0.5, 0.5]], requires_grad=True)
    batch = WeakLabelCollator(tokenizer)([{"input_ids": [5], "weak_labels": weak}])
    assert not batch["weak_labels"].requires_grad


BAD: list[tuple[list[Any], str]] = [
    ([{"input_ids": torch.tensor([[5, 6]])}], r"input_ids of row 0 has shape \(1, 2\)"),
    ([{"input_ids": 5}], r"input_ids of row 0 has shape \(\)"),
    ([{"input_ids": [5], "weak_labels": 3}], r"weak_labels of row 0 has shape \(\)"),
    ([{"input_ids": [5], "weak_labels": []}], r"weak_labels of row 0 has shape \(0,\)"),
    ([{"input_ids": [5], "weak_labels": [True]}], "weak_labels holds booleans; expected integers"),
    ([{"input_ids": [5], "weak_weight": True}], "weak_weight holds booleans; expected numbers"),
    ([{"input_ids": [5], "weak_ids": [6.0], "weak_probs": [1]}], r"weak_ids holds \[6.0\]; exp"),
    ([{"input_ids": [5], "labels": [None]}], "labels is not a table of numbers .*None"),
    ([{"input_ids": [5, 6], "weak_labels": [[1.0], [0.5, 0.5]]}], "weak_labels is not a table"),
    ([{"input_ids": [5, 6], "weak_ids": [3, [4]], "weak_probs": [0, 1]}], "weak_ids is not a tab"),
    ([{"input_ids": [5], "weak_probs": [1j]}], "weak_probs is not a table of numbers"),
    ([{"input_ids": [5], "weak_weight": [[1.0]]}], r"weak_weight of row 0 has shape \(1, 1\)"),
    ([{"input_ids": [5], "weak_ids": 3, "weak_probs": 1.0}], r"weak_ids of row 0 has shape \(\)"),
    ([{"input_ids": [5], "weak_frac": [0.5]}], r"weak_frac of row 0 has shape \(1,\)"),
    (
        [{"input_ids": [5, 6], "weak_ids": [[1], [2, 3]], "weak_probs": [[0.5, 0.5], [1.0]]}],
        "row 0 lists 1 of weak_ids and 2 of weak_probs at one token",
    ),
    (
        [{"input_ids": [5, 6], "weak_ids": [3, 4], "weak_probs": [[0.5, 0.5], [0.5, 0.5]]}],
        "row 0 lists weak_ids for 1 tokens and weak_probs for 2; expected both for the last",
    ),
    (
        [{"input_ids": [5], "weak_labels": [3]}, {"input_ids": [5], "weak_labels": [[0.5, 0.5]]}],
        "weak_labels are hard in some rows and soft in others",
    ),
    (
        [{"input_ids": [5], "weak_ids": np.ma.array([3, 4], mask=[0, 1]), "weak_probs": [0, 1]}],
        r"weak_ids is not a table of numbers \(it holds masked entries: a value is missing",
    ),
    (
        [{"input_ids": [5], "weak_ids": np.array([3, 2**63 + 5], np.uint64), "weak_probs": [0, 1]}],
        r"weak_ids holds 9223372036854775813; expected integers below 2\*\*63",
    ),
    (
        [{"input_ids": [5], "weak_labels": torch.ones(1, 1).to_sparse()}],
        r"weak_labels is not a table of numbers \(it is a sparse tensor; expected x.to_dense\(\)",
    ),
    (
        [{"input_ids": [5], "weak_ids": torch.nested.nested_tensor([torch.ones(1)])}],
        "weak_ids is not a table of numbers .*it is a nested tensor; expected a list of its parts",
    ),
    (
        [{"input_ids": torch.ones(1).to_sparse()}],
        r"input_ids is not a table of numbers \(it is a sparse",
    ),
    (
        [{"input_ids": [5, 6], "labels": np.array([np.nan, 3])}],
        "labels holds NaN: a value is missing; expected integers",
    ),
    ([[5, 6]], "row 0 of the batch is a list; expected a mapping from column to value"),
    ({"input_ids": [[5]]}, "rows are a dict; expected a list of mappings"),  # type: ignore[list-item]
    ([pa.Table.from_pylist(ROWS)], "row 0 of the batch is a table of 2 rows; expected one"),
]


@pytest.mark.parametrize(("rows", "message"), BAD, ids=[m[:40] for _, m in BAD])
def test_bad_rows(rows: Any, message: str, tokenizer: Any) -> None:
    with pytest.raises(W2SError, match=message):
        WeakLabelCollator(tokenizer)(rows)


def test_padding_options(tokenizer: Any) -> None:
    row = {"input_ids": [5], "weak_weight": 1}
    assert WeakLabelCollator(tokenizer, None)([row])["input_ids"].shape == (1, 1)
    for bad in (0, -8, 2.5, True):
        with pytest.raises(W2SError, match=f"pad_to_multiple_of is {bad}; expected"):
            WeakLabelCollator(tokenizer, bad)  # type: ignore[arg-type]

    class Processor:
        def __init__(self) -> None:
            self.tokenizer = tokenizer

    assert WeakLabelCollator(Processor(), 2)([row])["input_ids"].tolist() == [
        [5, tokenizer.pad_token_id]
    ]
    with pytest.raises(W2SError, match="tokenizer is a object; expected .* pad_token_id"):
        WeakLabelCollator(object())
