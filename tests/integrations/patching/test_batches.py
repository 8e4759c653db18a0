"""What a batch of a patched model may hold, and sparse targets of sequences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers.tiny_lms import B, T, V, batch, tiny_lm
from torch import Tensor

import w2s_fast
from w2s_fast import LMHeadLoss, SparseTargets
from w2s_fast.errors import W2SError


def sparse(k: int = 3) -> SparseTargets:
    g = torch.Generator().manual_seed(2)
    probs, ids = torch.randn(B, T, V, generator=g).softmax(-1).topk(k)
    return SparseTargets(ids, probs, 1 - probs.sum(-1))


LABELS = batch()["labels"]
IDS, PROBS, REST = sparse()
BAD: list[tuple[dict[str, Any], str]] = [
    ({"weak_weight": 0.5}, r"weak_weight is the float 0.5; expected a tensor \(3,\) or \(3, 9\)"),
    ({"weak_weight": [1.0] * B}, "weak_weight is a list; expected a tensor"),
    ({"weak_weight": np.ones(B)}, r"weak_weight is a ndarray; .* torch.as_tensor\(weak_weight\)"),
    ({"weak_weight": torch.ones(B, dtype=torch.bool)}, "weak_weight has dtype torch.bool"),
    ({"weak_weight": torch.ones(B, dtype=torch.complex64)}, "weak_weight has dtype torch.complex"),
    ({"labels": LABELS.float()}, "labels have dtype torch.float32; expected class ids .*long"),
    ({"labels": LABELS > 0}, "labels have dtype torch.bool; expected class ids"),
    ({"labels": LABELS.tolist()}, "labels is a list; expected a tensor"),
    ({"labels": LABELS.numpy()}, "labels is a ndarray"),
    ({"shift_labels": LABELS.double()}, "shift_labels have dtype torch.float64; expected class"),
    ({"weak_labels": LABELS.tolist()}, "weak_labels is a list; expected a tensor"),
    ({"weak_labels": LABELS > 0}, "weak_labels have dtype torch.bool; expected class ids"),
    ({"weak_labels": LABELS.to(torch.complex64)}, "weak_labels have dtype torch.complex64"),
    ({"weak_ids": IDS > 0, "weak_probs": PROBS}, "weak_ids .* torch.bool; expected integers"),
    ({"weak_ids": IDS.tolist(), "weak_probs": PROBS}, "weak_ids is a list; expected a tensor"),
    ({"weak_ids": IDS, "weak_probs": PROBS > 0}, "weak_probs has dtype torch.bool; expected num"),
    ({"weak_ids": IDS, "weak_probs": PROBS, "weak_rest": 0.1}, "weak_rest is the float 0.1"),
    ({"weak_labels": SparseTargets(IDS, PROBS), "weak_ids": IDS}, "SparseTargets came with weak_"),
    ({"weak_labels": SparseTargets(IDS[0], PROBS[0])}, r"weak_ids has shape \(9, 3\)"),
]  # fmt: skip


@pytest.mark.parametrize(("columns", "message"), BAD, ids=[m[:35] for _, m in BAD])
def test_columns_of_another_type(columns: dict[str, Any], message: str) -> None:
    lm = w2s_fast.patch(tiny_lm(num_hidden_layers=1))
    with pytest.raises(W2SError, match=message):
        lm(**{**batch(), **columns})


@pytest.mark.parametrize("labels", [LABELS.tolist(), LABELS.float(), LABELS > 0, 3])
def test_log_probabilities_of_labels_of_another_type(labels: Any) -> None:
    lm = w2s_fast.patch(tiny_lm(num_hidden_layers=1))
    with pytest.raises(W2SError, match="labels (is|have dtype) .*; expected"):
        lm(**{**batch(), "labels": labels}, return_logprob=True)
    narrow = {**batch(), "labels": LABELS.to(torch.int8)}
    assert torch.equal(lm(**narrow, return_logprob=True), lm(**batch(), return_logprob=True))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.int8, torch.uint8])
def test_narrow_integers(dtype: torch.dtype) -> None:
    """Class 156 in eight bits is not what -100 wraps around to."""
    lm = w2s_fast.patch(tiny_lm(vocab_size=200))
    labels = LABELS.clamp_min(5)
    labels[0, 5] = 156 if dtype == torch.uint8 else 100
    for columns in ({"labels": labels}, {"weak_labels": labels}):
        inputs = {**batch(), **columns}
        expected = lm(**inputs).loss
        narrow = {name: column.to(dtype) for name, column in columns.items()}
        assert torch.equal(lm(**{**inputs, **narrow}).loss, expected)
    ids = IDS.clamp_max(100)
    ids[..., 1:] = torch.tensor([101, 102])
    expected = lm(**batch(), weak_ids=ids, weak_probs=PROBS).loss
    assert torch.equal(lm(**batch(), weak_ids=ids.to(dtype), weak_probs=PROBS).loss, expected)


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("rest", [True, False])
def test_sparse_targets_of_sequences(labels: bool, rest: bool) -> None:
    """(B, T, K) as one column."""
    lm, inputs = w2s_fast.patch(tiny_lm()), batch()
    if not labels:
        del inputs["labels"]
    columns: dict[str, Tensor] = {"weak_ids": IDS, "weak_probs": PROBS}
    if rest:
        columns["weak_rest"] = REST
    expected = lm(**inputs, **columns).loss
    given = SparseTargets(IDS, PROBS, REST if rest else None)
    assert torch.equal(lm(**inputs, weak_labels=given).loss, expected)


@pytest.mark.parametrize("rest", [True, False])
def test_sparse_targets_of_a_head(rest: bool) -> None:
    """``LMHeadLoss`` of hidden states (B, T, D), weights (B, T)."""
    loss = LMHeadLoss(tiny_lm().lm_head)
    hidden = torch.randn(B, T, 16, generator=torch.Generator().manual_seed(1))
    weight = torch.rand(B, T)
    flat = SparseTargets(IDS.flatten(0, 1), PROBS.flatten(0, 1), REST.flatten() if rest else None)
    expected = loss(hidden.flatten(0, 1), flat, weight=weight.flatten())
    given = SparseTargets(IDS, PROBS, REST if rest else None)
    assert torch.equal(loss(hidden, given, weight=weight), expected)
    assert torch.equal(loss(hidden, flat, weight=weight), expected)
    with pytest.raises(W2SError, match=r"SparseTargets.ids has shape \(3, 8, 3\)"):
        loss(hidden, SparseTargets(IDS[:, 1:], PROBS[:, 1:]))
    with pytest.raises(W2SError, match=r"SparseTargets.ids has shape \(3, 9, 3\)"):
        loss(hidden.flatten(0, 1), given)
