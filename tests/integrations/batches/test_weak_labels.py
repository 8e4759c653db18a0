"""Weak labels from a file to a batch: known answers, and one clear line for each mistake."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from w2s_fast import ModelConfig, RunConfig, TaskConfig, TrainConfig
from w2s_fast.errors import W2SError
from w2s_fast.integrations.batches import (
    WeakLabelCollator,
    WeakLabels,
    answer_rows,
    label_tokens,
    read_labels,
)
from w2s_fast.tasks.datasets.agreement import tokenizer as agreement_tokenizer

ROWS = [
    {"id": "a", "probs": [0.25, 0.75], "no": 0.25, "yes": 0.75, "weight": 1.0},
    {"id": "b", "probs": [1.0, 0.0], "no": 1.0, "yes": 0.0, "weight": 0.0},
    {"id": "c", "probs": [0.5, 0.5], "no": 0.5, "yes": 0.5, "weight": 2.5},
]
WORDS = ("is", "are")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return agreement_tokenizer()


def written(folder: Path, rows: list[dict[str, Any]] = ROWS, kind: str = "jsonl") -> Path:
    path = folder / f"labels.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_file_of_probabilities(kind: str, tmp_path: Path) -> None:
    labels = read_labels(written(tmp_path, kind=kind), ["c", "a"])
    assert labels.ids == ("c", "a")
    np.testing.assert_array_equal(labels.probs, np.float32([[0.5, 0.5], [0.25, 0.75]]))
    np.testing.assert_array_equal(labels.weight, np.float32([2.5, 1]))


def test_a_column_for_each_class_and_numbers_as_ids(tmp_path: Path) -> None:
    rows = [{"n": i, "p0": p, "p1": 1 - p} for i, p in enumerate((0.0, 0.25))]
    labels = read_labels(written(tmp_path, rows), [1, 0], probs=("p1", "p0"), id="n", n_classes=2)
    np.testing.assert_array_equal(labels.probs, np.float32([[0.75, 0.25], [1, 0]]))
    assert labels.weight is None


@pytest.mark.slow
def test_weak_labels_of_a_run(tmp_path: Path) -> None:
    """The folder that `w2s-fast label` prints, in parts."""
    from w2s_fast.pipeline import label
    from w2s_fast.tasks import get_task

    task = TaskConfig(n_weak=30, n_transfer=25, n_test=20)
    bow = ModelConfig(source="bow")
    train = TrainConfig(epochs=1, lr=0.1)
    config = RunConfig(
        task=task, weak=bow, student=bow, weak_train=train, student_train=train,
        seeds=(0,), losses=("xent",), output_dir=str(tmp_path / "out"),
    )  # fmt: skip
    folder = label(config, quiet=True)[0]
    ids = get_task(task.name).load(task, 0).transfer.ids
    labels = read_labels(folder, ids, n_classes=2)
    assert labels.ids == ids and labels.probs.shape == (25, 2)
    assert read_labels(folder).ids == ids


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"probs": [0.5, float("nan")]}, r"1 of 3 items have NaN .* \('a'"),
        ({"probs": [0.5, None]}, r"1 of 3 items have NaN"),
        ({"probs": [0.9, 0.2]}, r"do not sum to 1; .* \('a': 1.1\)"),
        ({"probs": [1.5, -0.5]}, r"negative probability \('a': -0.5\)"),
        ({"probs": [0.2, 0.3, 0.5]}, r"item 'b' has probs \[1.0, 0.0\]; expected a list of 3"),
        ({"weight": -1.0}, r"weight that is not a number of at least 0: \('a': -1\)"),
        ({"id": "b"}, r"id 'b' is repeated"),
    ],
)
def test_bad_rows(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = written(tmp_path, [ROWS[0] | change, *ROWS[1:]])
    with pytest.raises(W2SError, match=message):
        read_labels(path)


def test_bad_requests(tmp_path: Path) -> None:
    path = written(tmp_path)
    with pytest.raises(W2SError, match="no label for 1 of 2 items, first id 'd'"):
        read_labels(path, ["a", "d"])
    with pytest.raises(W2SError, match="has 2 classes, expected 3"):
        read_labels(path, n_classes=3)
    with pytest.raises(W2SError, match=r"no column 'prob'; did you mean 'probs'\?.*probs="):
        read_labels(path, probs="prob")
    with pytest.raises(W2SError, match="no such file"):
        read_labels(tmp_path / "labels.parquet")
    (tmp_path / "empty").mkdir()
    with pytest.raises(W2SError, match="holds no Parquet files"):
        read_labels(tmp_path / "empty")
    with pytest.raises(W2SError, match="item 'a' has probs 0.5; expected a list of C"):
        read_labels(written(tmp_path, [{"id": "a", "probs": 0.5}]))
    with pytest.raises(W2SError, match="column 'weight' holds a value that is not a number"):
        read_labels(written(tmp_path, [row | {"weight": "much"} for row in ROWS]))


def test_sums_may_be_rounded() -> None:
    bf16 = torch.softmax(torch.randn(50, 7), -1).bfloat16().float().numpy()
    assert abs(bf16.sum(1) - 1).max() > 1e-4
    assert len(WeakLabels(tuple(map(str, range(50))), bf16)) == 50


def test_answers_are_the_last_token(tokenizer: Any) -> None:
    labels = WeakLabels(("x", "y"), np.float32([[0.25, 0.75], [1, 0]]), np.float32([1, 0.5]))
    prompts = ["the key near the old boy", "the red cats"]
    rows = answer_rows(tokenizer, prompts, labels, WORDS)
    no, yes = (tokenizer.convert_tokens_to_ids(w) for w in WORDS)
    prompt = tokenizer(prompts[1])["input_ids"]
    assert rows[1]["input_ids"] == [*prompt, no]
    assert rows[1]["labels"] == [-100] * len(prompt) + [no]
    assert rows[0]["input_ids"][-1] == yes
    assert (rows[0]["weak_ids"], rows[0]["weak_probs"]) == ([no, yes], [0.25, 0.75])
    assert rows[1]["weak_weight"] == 0.5
    short = answer_rows(tokenizer, prompts, labels, WORDS, max_length=4)
    assert short[0]["input_ids"] == [*tokenizer(prompts[0])["input_ids"][-3:], yes]


def test_an_end_token_behind_a_prompt_is_taken_off(tokenizer: Any) -> None:
    from tokenizers.processors import TemplateProcessing

    end = tokenizer.eos_token
    ending = agreement_tokenizer()
    ending.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"$A {end}", special_tokens=[(end, tokenizer.eos_token_id)]
    )
    labels = WeakLabels(("x",), np.float32([[1, 0]]))
    row = answer_rows(ending, ["the key"], labels, WORDS)[0]
    words = ending.convert_ids_to_tokens(row["input_ids"])
    assert words == ["the", "key", "is"]


def test_bad_words(tokenizer: Any) -> None:
    for words, message in (
        (("is", "the key"), r"label word 'the key' is 2 tokens \('the', 'key'\)"),
        (("is", "Zebra!"), "label word 'Zebra!' is unknown"),
        (("is", " is"), "is the same token as another"),
        (("is",), "expected one for each class"),
    ):
        with pytest.raises(W2SError, match=message):
            label_tokens(tokenizer, words)
    labels = WeakLabels(("x",), np.float32([[1, 0]]))
    with pytest.raises(W2SError, match="2 prompts and 2 label words for labels of 1 items"):
        answer_rows(tokenizer, ["a", "b"], labels, WORDS)
    with pytest.raises(W2SError, match="1 prompts and 3 label words .* 2 classes"):
        answer_rows(tokenizer, ["a"], labels, (*WORDS, "was"))


def test_a_batch(tokenizer: Any) -> None:
    rows = [
        {"input_ids": [5, 6], "labels": [-100, 6], "weak_ids": [6, 7], "weak_probs": [0.4, 0.6],
         "weak_weight": 2, "text": "left out"},
        {"input_ids": [5, 8, 9], "labels": [-100, 8, 9], "weak_ids": [[-1], [8], [9]],
         "weak_probs": [[0], [1], [1]], "weak_weight": 1},
    ]  # fmt: skip
    batch = WeakLabelCollator(tokenizer, pad_to_multiple_of=4)(rows)
    pad = tokenizer.pad_token_id
    assert batch["input_ids"].tolist() == [[5, 6, pad, pad], [5, 8, 9, pad]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 0]]
    assert batch["labels"].tolist() == [[-100, 6, -100, -100], [-100, 8, 9, -100]]
    assert batch["weak_ids"][0].tolist() == [[-1, -1], [6, 7], [-1, -1], [-1, -1]]
    assert batch["weak_ids"][1].tolist() == [[-1, -1], [8, -1], [9, -1], [-1, -1]]
    torch.testing.assert_close(batch["weak_probs"][0, 1], torch.tensor([0.4, 0.6]))
    assert batch["weak_probs"].sum() == 3
    assert batch["weak_weight"].tolist() == [2, 1] and "text" not in batch
    assert batch["weak_ids"].dtype == torch.int64 and batch["weak_probs"].dtype == torch.float32


def test_other_columns_of_a_batch(tokenizer: Any) -> None:
    rows = [
        {"input_ids": [5, 6], "attention_mask": [0, 1], "weak_labels": [[0.5, 0.5], [1, 0]],
         "weak_rest": 0.25, "weak_weight": [0, 1]},
        {"input_ids": [5], "attention_mask": [1], "weak_labels": [[0, 1]],
         "weak_rest": [0.5], "weak_weight": [3]},
    ]  # fmt: skip
    batch = WeakLabelCollator(tokenizer)(rows)
    assert batch["attention_mask"].tolist() == [[0, 1], [1, 0]]
    assert batch["weak_labels"].tolist() == [[[0.5, 0.5], [1, 0]], [[0, 1], [0, 0]]]
    assert batch["weak_rest"].tolist() == [[0, 0.25], [0.5, 0]]
    assert batch["weak_weight"].tolist() == [[0, 1], [3, 0]]
    hard = WeakLabelCollator(tokenizer)([{"input_ids": [5, 6], "weak_labels": [-100, 3]}])
    assert hard["weak_labels"].tolist() == [[-100, 3]]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "a batch of no rows"),
        ([{"input_ids": []}], "row 0 has no tokens"),
        ([{"text": "x"}], "row 0 of the batch lacks input_ids"),
        ([{"input_ids": [1], "labels": [1]}, {"input_ids": [1]}], "row 1 of the batch lacks lab"),
        ([{"input_ids": [1, 2], "labels": [1]}], r"labels of row 0 has shape \(1,\); .* 2 tokens"),
        ([{"input_ids": [1], "weak_probs": [float("nan")]}], "weak_probs holds NaN"),
        ([{"input_ids": [1], "weak_labels": [0.5]}], r"weak_labels holds \[0.5\]; expected integ"),
        ([{"input_ids": [1], "weak_weights": 1}], "no weak column is called 'weak_weights'"),
        ([{"input_ids": [1], "weak_ids": [["a"]]}], "weak_ids is not a table of numbers"),
        ([{"input_ids": [1, 2], "weak_ids": [[1], [2], [3]]}], "weak_ids of row 0 has shape"),
        (
            [{"input_ids": [1], "weak_labels": [[0.5, 0.5]]},
             {"input_ids": [1], "weak_labels": [[1.0]]}],
            "row 1 is 1 wide, row 0 2",
        ),
    ],
)  # fmt: skip
def test_bad_batches(rows: list[dict[str, Any]], message: str, tokenizer: Any) -> None:
    with pytest.raises(W2SError, match=message):
        WeakLabelCollator(tokenizer)(rows)


def test_rows_without_a_weak_column_bring_a_warning(tokenizer: Any) -> None:
    with pytest.warns(UserWarning, match="no weak column.*remove_unused_columns=False"):
        WeakLabelCollator(tokenizer)([{"input_ids": [5], "labels": [5]}])


def test_labels_in_memory(tokenizer: Any) -> None:
    labels = WeakLabels([7, 8], torch.tensor([[0.25, 0.75], [1, 0]]), [1, 0.5])
    assert labels.ids == ("7", "8") and labels.probs.dtype == labels.weight.dtype == np.float32
    assert labels.at([8]).probs.tolist() == [[1, 0]]
    with pytest.raises(W2SError, match=r"weights of shape \(1,\) for 2 items"):
        WeakLabels("ab", [[0.5, 0.5]] * 2, [1])
    with pytest.raises(W2SError, match=r"labels are Tensor; expected WeakLabels\(ids, probs\)"):
        answer_rows(tokenizer, ["the boy"], torch.ones(1, 2), ("is", "are"))


def test_a_tokenizer_that_cannot_pad(tokenizer: Any) -> None:
    class Bare:
        pad_token_id = eos_token_id = None

    with pytest.raises(W2SError, match="neither pad_token nor eos_token"):
        WeakLabelCollator(Bare())

    class Ends(Bare):
        eos_token_id = 7

    rows = [{"input_ids": [1]}, {"input_ids": [1, 2]}]
    assert WeakLabelCollator(Ends())(rows)["input_ids"].tolist() == [[1, 7], [1, 2]]
