"""Loss and gradients of a model before and after it is patched."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from w2s_fast.testing import BACKWARD, FORWARD, assert_within_budget

Result = dict[str, Tensor]


def result(lm: Any, **inputs: Any) -> Result:
    """Loss and the gradients of all trained parameters."""
    lm.zero_grad(set_to_none=True)
    loss = lm(**inputs).loss
    loss.backward()
    grads = {n: p.grad for n, p in lm.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **grads}


def assert_same(ours: Result, truth: Result, baseline: Result) -> None:
    assert ours.keys() == truth.keys() == baseline.keys()
    for name, value in ours.items():
        c = FORWARD if name == "loss" else BACKWARD
        assert_within_budget(value, truth[name], baseline[name], c, name)


def expected(lm: Any, inputs: dict[str, Tensor]) -> Tensor:
    labels = inputs["labels"][:, 1:]
    logits = lm(**{k: v for k, v in inputs.items() if k != "labels"}).logits
    logp = logits[:, :-1].to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    taken = logp.gather(-1, labels.clamp_min(0)[..., None])[..., 0]
    return torch.where(labels != -100, taken, 0).sum(1)
