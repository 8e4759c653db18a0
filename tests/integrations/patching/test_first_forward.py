"""A patched model whose weights come later, and targets that it cannot take."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from helpers.patched import result
from helpers.patched_classes import SERVED, Penalised, assert_equal
from helpers.tiny_lms import batch, tiny_lm

import w2s_fast
from w2s_fast.errors import W2SError

# Weights that are not there yet.


@pytest.mark.parametrize("kind", ["logits_bias", "router", "recurrent_gemma"])
def test_meta_weights(kind: str) -> None:
    ready = SERVED[kind]()
    plain = result(copy.deepcopy(ready), **batch())
    with torch.device("meta"):
        lm = SERVED[kind]()
    w2s_fast.patch(lm)
    lm.to_empty(device="cpu")
    buffers = dict(ready.named_buffers())
    for name, buffer in lm.named_buffers():
        buffer.copy_(buffers[name])
    lm.load_state_dict(ready.state_dict())
    lm.tie_weights()
    assert_equal(result(lm, **batch()), plain, torch.float32)


def test_meta_weights_are_compared_at_the_first_forward() -> None:
    with torch.device("meta"):
        lm = Penalised(tiny_lm().config)
    w2s_fast.patch(lm)
    assert not lm._w2s_fast.compared
    lm.to_empty(device="cpu").load_state_dict(tiny_lm().state_dict(), strict=False)
    lm.model.rotary_emb = tiny_lm().model.rotary_emb
    with pytest.raises(W2SError, match="does 'logsumexp' with its logits"):
        lm(**batch())


# Values that are no tensors, labels that are no ids.


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"weak_weight": 0.5}, "weak_weight is the float 0.5; expected a tensor"),
        (
            {"labels": batch()["labels"].float()},
            "labels have dtype torch.float32; expected class ids",
        ),
        ({"labels": batch()["labels"].tolist()}, "labels is a list; expected a tensor"),
    ],
    ids=["number", "float", "list"],
)
def test_targets_that_are_none(given: dict[str, Any], message: str) -> None:
    lm = w2s_fast.patch(tiny_lm(num_hidden_layers=1))
    with pytest.raises(W2SError, match=message):
        lm(**{**batch(), **given})


def test_a_forward_without_num_items() -> None:
    class Strict(type(tiny_lm())):  # type: ignore[misc]
        def forward(self, input_ids: Any = None, attention_mask: Any = None, labels: Any = None,
                    use_cache: Any = None) -> Any:  # fmt: skip
            return super().forward(input_ids, attention_mask, labels=labels, use_cache=use_cache)

    lm = w2s_fast.patch(Strict(tiny_lm().config))
    with pytest.raises(W2SError, match="takes no num_items_in_batch: its loss is a mean"):
        lm(**batch(), num_items_in_batch=3)
