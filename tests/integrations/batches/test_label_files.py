"""Weak labels, prompts and tables as people have them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from helpers.batch_formats import LAST, Row, ragged
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.integrations.batches import WeakLabelCollator, WeakLabels, answer_rows
from w2s_fast.tasks.datasets.agreement import tokenizer as agreement_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return agreement_tokenizer()


PROBS = [[0.25, 0.75], [1.0, 0.0]]


@pytest.mark.parametrize(
    "probs",
    [
        np.array(PROBS, np.float16), torch.tensor(PROBS).bfloat16(), pa.array(PROBS),
        torch.tensor(PROBS, requires_grad=True), [torch.tensor(p) for p in PROBS],
        pa.chunked_array([PROBS[:1], PROBS[1:]]), [pa.array(p) for p in PROBS],
        pa.array(PROBS, pa.list_(pa.float32(), 2)), ragged(PROBS), pa.array(PROBS).to_pandas(),
    ],
    ids=["half", "bf16", "arrow", "grad", "tensors", "chunked", "arrays", "fixed", "object",
         "pandas"],
)  # fmt: skip
def test_labels_of_every_format(probs: Any) -> None:
    for ids in ([7, 8], torch.tensor([7, 8]), np.array([7, 8]), pa.array([7, 8]), ("7", "8")):
        labels = WeakLabels(ids, probs, pa.array([1, 0.5]))
        assert labels.ids == ("7", "8")
        np.testing.assert_array_equal(labels.probs, np.float32(PROBS))
        assert isinstance(labels.weight, np.ndarray) and labels.weight.dtype == np.float32
        np.testing.assert_array_equal(labels.at(torch.tensor([8])).probs, [[1, 0]])


def test_labels_that_are_no_table() -> None:
    for probs, message in (
        ([["a", "b"]], "probabilities are not a table of numbers"),
        ([[0.5, 0.5], [1.0]], "probabilities are not a table of numbers"),
        ([[0.5, None]], "probabilities are not a table of numbers .*None"),
        (None, "probabilities are not a table of numbers"),
    ):
        with pytest.raises(W2SError, match=message):
            WeakLabels("a" if probs is None or len(probs) == 1 else "ab", probs)
    with pytest.raises(W2SError, match="weights are not a table of numbers"):
        WeakLabels("a", [[0.5, 0.5]], ["much"])


def test_prompts_of_every_format(tokenizer: Any) -> None:
    labels, texts = WeakLabels("ab", PROBS), ["the boy", "the red boxes"]
    expected = answer_rows(tokenizer, texts, labels, ("is", "are"))
    for prompts in (np.array(texts), pa.array(texts), np.array(texts, object), tuple(texts)):
        assert answer_rows(tokenizer, prompts, labels, ("is", "are")) == expected
    for words in (np.array(["is", "are"]), pa.array(["is", "are"])):
        assert answer_rows(tokenizer, texts, labels, words) == expected


def test_answers_survive_a_data_set(tokenizer: Any) -> None:
    """``answer_rows`` through Arrow and back, in the formats of a training."""
    datasets = pytest.importorskip("datasets")
    labels = WeakLabels("ab", PROBS, [1, 0.5])
    rows = answer_rows(tokenizer, ["the boy", "the red boxes"], labels, ("is", "are"))
    expected = WeakLabelCollator(tokenizer)(rows)
    for kind in (None, "numpy", "torch"):
        data = datasets.Dataset.from_list(rows).with_format(kind)
        loader = torch.utils.data.DataLoader(data, 2, collate_fn=WeakLabelCollator(tokenizer))
        batch: dict[str, Tensor] = next(iter(loader))
        assert all(torch.equal(batch[name], column) for name, column in expected.items()), kind


def test_missing_values_of_pandas(tokenizer: Any) -> None:
    pd = pytest.importorskip("pandas")
    row: Row = {"input_ids": [5, 6], "weak_weight": 1.0}
    collate = WeakLabelCollator(tokenizer)
    with pytest.raises(W2SError, match="row 1 of the batch lacks weak_weight"):
        collate([row, row | {"weak_weight": pd.NA}])
    for labels in (pd.array([None, 3], dtype="Int64"), [pd.NA, 3]):
        with pytest.raises(W2SError, match="labels .*: a value is missing"):
            collate([row | {"labels": labels}])


def test_a_table_of_pandas_is_taken_apart(tokenizer: Any) -> None:
    pd = pytest.importorskip("pandas")
    collate = WeakLabelCollator(tokenizer)
    batch, expected = collate(pd.DataFrame(LAST)), collate(LAST)
    assert batch.keys() == expected.keys()
    for name, column in expected.items():
        assert torch.equal(batch[name], column)


def test_masked_arrays_of_labels_and_those_without_a_mask(tokenizer: Any) -> None:
    with pytest.raises(W2SError, match="masked entries: a value is missing"):
        WeakLabels(["a"], np.ma.array([[0.5, 0.5]], mask=[[0, 1]]))
    row = {"input_ids": [5], "weak_ids": np.ma.array([3, 4]), "weak_probs": [0.5, 0.5]}
    assert WeakLabelCollator(tokenizer)([row])["weak_ids"].tolist() == [[[3, 4]]]
