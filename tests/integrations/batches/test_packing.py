"""Packed rows: each sequence learns as if it were alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.tiny_lms import V, tiny_lm
from torch import Tensor

import w2s_fast
from w2s_fast.errors import W2SError
from w2s_fast.integrations.batches import WeakLabelCollator
from w2s_fast.integrations.patching import set_progress

Row = dict[str, Any]


class Tokenizer:
    pad_token_id = 0
    eos_token_id = 2


COLLATOR = WeakLabelCollator(Tokenizer())
LENGTHS = ([3, 4], [5], [2, 1, 3])


def sequence(n: int, seed: int, kind: str) -> Row:
    """A sequence of n tokens whose first label is there to be left out."""
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, V, (n,), generator=g)
    row: Row = {"input_ids": ids.tolist(), "labels": ids.tolist()}
    if kind == "hard":
        row["weak_labels"] = torch.randint(3, V, (n,), generator=g).tolist()
    elif kind == "soft":
        row["weak_labels"] = torch.randn(n, V, generator=g).softmax(-1).tolist()
    else:
        probs, listed = torch.randn(n, V, generator=g).softmax(-1).topk(3)
        row |= {"weak_ids": listed.tolist(), "weak_probs": probs.tolist()}
        row["weak_rest"] = (1 - probs.sum(-1)).tolist()
    row["weak_weight"] = torch.rand(n, generator=g).tolist()
    return row


def rows(kind: str, labels: bool) -> tuple[list[Row], list[Row]]:
    """Packed rows, and their sequences."""
    packed, alone = [], []
    for r, lengths in enumerate(LENGTHS):
        parts = [sequence(n, 10 * r + i, kind) for i, n in enumerate(lengths)]
        alone += parts
        row = {name: [x for part in parts for x in part[name]] for name in parts[0]}
        packed.append(row | {"seq_lengths": lengths})
    for row in packed + alone if not labels else []:
        del row["labels"]
    return packed, alone


def result(lm: Any, batch: dict[str, Any]) -> list[Tensor]:
    """As in a loop of one's own: whether a cache is kept is up to the batch and the model."""
    assert lm.config.use_cache
    lm.zero_grad(set_to_none=True)
    loss = lm(**batch, num_items_in_batch=7).loss
    loss.backward()
    return [loss.detach(), *(p.grad for p in lm.parameters())]


@pytest.mark.parametrize("said", ["seq_lengths", "position_ids"])
@pytest.mark.parametrize("labels", [True, False], ids=["labels", "weak"])
@pytest.mark.parametrize("kind", ["hard", "soft", "sparse"])
def test_packed_sequences_learn_as_if_alone(kind: str, labels: bool, said: str) -> None:
    packed, alone = rows(kind, labels)
    for row in packed if said == "position_ids" else []:
        row["position_ids"] = [i for n in row.pop("seq_lengths") for i in range(n)]
        row["attention_mask"] = [1] * len(row["input_ids"])
    batch = WeakLabelCollator(Tokenizer(), pad_to_multiple_of=4)(packed)
    assert "attention_mask" not in batch and batch["position_ids"].shape == (3, 8)
    assert batch["use_cache"] is False
    lm = w2s_fast.patch(tiny_lm(), loss="logconf:aux_coef=0.5")
    set_progress(lm, 0.5)
    got, expected = result(lm, batch), result(lm, COLLATOR(alone))
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_position_ids_are_kept() -> None:
    """Where nothing is packed they change nothing else."""
    plain: list[Row] = [{"input_ids": [5, 6], "labels": [5, 6], "weak_weight": 1.0}]
    plain.append({"input_ids": [7], "labels": [7], "weak_weight": 1.0})
    placed = [r | {"position_ids": p} for r, p in zip(plain, ([4, 5], [0]), strict=True)]
    batch = COLLATOR(placed)
    assert batch.pop("position_ids").tolist() == [[4, 5], [0, 0]]
    expected = COLLATOR(plain)
    assert batch.keys() == expected.keys()
    assert all(torch.equal(batch[name], column) for name, column in expected.items())
    whole = COLLATOR([plain[0] | {"seq_lengths": torch.tensor([2])}])
    assert whole["position_ids"].tolist() == [[0, 1]] and "attention_mask" in whole


def test_what_is_not_learned_across_sequences() -> None:
    packed, _ = rows("sparse", True)
    batch = COLLATOR(packed)
    starts = torch.tensor([[3, -1, -1], [-1, -1, -1], [2, 3, -1]])
    for row, at in enumerate(starts.tolist()):
        for t, token in enumerate(packed[row]["input_ids"]):
            assert batch["labels"][row, t] == (-100 if t in at else token)
            assert (batch["weak_ids"][row, t] == -1).all() == (t in at)
            assert (batch["weak_rest"][row, t] == 0) == (t in at)
    assert packed[0]["labels"][3] != -100  # the rows are as they were


def test_trl_packs_rows_for_it() -> None:
    """``pack_dataset`` with weak columns, one for each token."""
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    _, alone = rows("sparse", True)
    data = trl.pack_dataset(datasets.Dataset.from_list(alone), 8, map_kwargs={"batch_size": None})
    assert len(data) < len(alone) and "seq_lengths" in data.column_names
    lm = w2s_fast.patch(tiny_lm())
    got, expected = result(lm, COLLATOR(list(data))), result(lm, COLLATOR(alone))
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_flattened_batches_are_the_models_own() -> None:
    """Collators of transformers without padding, and all they say about sequences."""
    from transformers import DataCollatorWithFlattening

    flatten = DataCollatorWithFlattening(return_flash_attn_kwargs=True, return_seq_idx=True)
    batch = flatten([{"input_ids": [5, 6, 7]}, {"input_ids": [8, 9]}])
    ours, plain = result(w2s_fast.patch(tiny_lm()), batch), result(tiny_lm(), batch)
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


ROW: Row = {"input_ids": [5, 6, 7], "weak_weight": 1}
BAD: list[tuple[Row, str]] = [
    ({"position_ids": [0, 1]}, r"position_ids of row 1 has shape \(2,\); .* its 3 tokens"),
    ({"position_ids": [[0, 1, 2]]}, r"position_ids of row 1 has shape \(1, 3\)"),
    ({"position_ids": [0.0, 1, 2]}, "position_ids holds"),
    ({"seq_lengths": [1, 1]}, r"seq_lengths of row 1 is \[1, 1\]; .* sum to its 3 tokens"),
    ({"seq_lengths": [4, -1]}, r"seq_lengths of row 1 is \[4, -1\]"),
    ({"seq_lengths": 3}, "seq_lengths of row 1 is 3"),
    ({"position_ids": [0, 1, 0], "seq_lengths": [1, 2]},
     r"position_ids of row 1 restart at tokens \[2\], its seq_lengths at \[1\]; expected"),
    ({"position_ids": [0, 1, 2], "seq_lengths": [2, 1]}, r"row 1 .* tokens \[\], its seq_lengths"),
    ({"attention_mask": [1, 2, 2]}, "attention_mask of row 1 holds 2; expected 0 and 1, and pos"),
    ({"position_ids": None}, "row 1 of the batch lacks position_ids"),
    ({"position_ids": [0, 1, 0], "attention_mask": [0, 1, 1]}, "attention_mask of row 1 hides"),
    ({"position_ids": [0, 1, 0], "weak_ids": [5], "weak_probs": [1.0]},
     "weak_ids of row 1 is for its last token, and the row has several packed"),
    ({"position_ids": [0, 1, 0], "weak_rest": 0.5}, "weak_rest of row 1 is for its last token"),
    ({"seq_idx": [0, 0, 1]}, "the rows have seq_idx, which would be ignored; .* position_ids"),
    ({"cu_seq_lens_q": [0, 2, 3]}, "the rows have cu_seq_lens_q"),
]  # fmt: skip


@pytest.mark.parametrize(("columns", "message"), BAD, ids=[m[:30] for _, m in BAD])
def test_bad_packing(columns: Row, message: str) -> None:
    first = ROW | {
        name: {"position_ids": [0, 1, 2], "seq_lengths": [3]}.get(name, value)
        for name, value in columns.items()
    }
    if "attention_mask" in columns:
        first["attention_mask"] = [1, 1, 1]
    with pytest.raises(W2SError, match=message):
        COLLATOR([first, ROW | columns])
