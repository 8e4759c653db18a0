"""Running an example, and comparing the weights it trains."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers.paths import ROOT
from w2s_fast.integrations.batches import WeakLabelCollator

EXAMPLES = ROOT / "examples"
sys.path.insert(0, str(EXAMPLES))

import tiny  # noqa: E402, F401 - tests import it from here

# Gradients as they are: no optimizer that rescales them, and no clipping.
PLAIN = {
    "learning_rate": 0.05, "optim": "sgd", "max_grad_norm": 0.0, "max_steps": 3,
    "disable_tqdm": True, "use_cpu": True,
}  # fmt: skip


WHOLE = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1}


_LIBRARIES = ("trl", "lightning", "accelerate", "torchtitan", "verl")


def door(name: str) -> Any:
    """An example as a module; the libraries it needs may be missing."""
    library = name.split("_")[0]
    needs = {"nemo": "nemo_automodel"} | {n: n for n in _LIBRARIES}
    pytest.importorskip(needs.get(library, "torch"))
    return importlib.import_module(name)


def same(ours: nn.Module, theirs: nn.Module, atol: float = 2e-6, moved: float = 0.1) -> None:
    """The weights after training, at least one of which has ``moved`` that far."""
    before = dict(type(ours)(ours.config).named_parameters())
    expected = dict(theirs.named_parameters())
    furthest = 0.0
    for name, weight in ours.named_parameters():
        torch.testing.assert_close(weight, expected[name], atol=atol, rtol=0, msg=name)
        furthest += float((weight.detach() - before[name].detach()).abs().max())
    assert furthest > moved


def losses(trainer: Any) -> list[float]:
    return [float(log["loss"]) for log in trainer.state.log_history if "loss" in log]


def hard_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What a trainer without weak labels gets."""
    return [{name: row[name] for name in ("input_ids", "labels")} for row in rows]


def descent(params: Any, lr: float) -> torch.optim.Optimizer:
    """In the place of AdamW, which would hide a loss of the wrong scale."""
    return torch.optim.SGD(params, lr=5 * lr)


def soft_ce(logits: Tensor, probs: Tensor) -> Tensor:
    return -(probs * logits.log_softmax(-1)).sum(-1)


class Reference(nn.Module):
    """Sum of weighted losses of the answers, from logits in full."""

    def __init__(self, lm: Any) -> None:
        super().__init__()
        self.lm, self.config = lm, lm.config

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        logits = self.lm(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        row, at = (batch["labels"] != -100).nonzero(as_tuple=True)
        probs = torch.zeros(len(row), logits.shape[-1])
        probs.scatter_(1, batch["weak_ids"][row, at], batch["weak_probs"][row, at])
        return (batch["weak_weight"][row] * soft_ce(logits[row, at - 1], probs)).sum()


def reference(steps: int, size: int, mean_of_weights: bool) -> Any:
    """A loop over whole batches."""
    model = Reference(tiny.lm())
    optimizer = descent(model.parameters(), lr=1e-2)
    rows = tiny.rows(steps * size)
    for step in range(steps):
        batch = WeakLabelCollator(tiny.tokenizer)(rows[step * size : (step + 1) * size])
        total = batch["weak_weight"].sum() if mean_of_weights else size
        (model(batch) / total).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.lm
