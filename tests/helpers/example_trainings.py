"""Running an example, and comparing the weights it trains."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import pytest
import torch
from torch import nn

from helpers.paths import ROOT

EXAMPLES = ROOT / "examples"
sys.path.insert(0, str(EXAMPLES))

import tiny  # noqa: E402, F401 - tests import it from here

# Gradients as they are: no optimizer that rescales them, and no clipping.
PLAIN = {
    "learning_rate": 0.05, "optim": "sgd", "max_grad_norm": 0.0, "max_steps": 3,
    "disable_tqdm": True, "use_cpu": True,
}  # fmt: skip


WHOLE = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1}


def door(name: str) -> Any:
    """An example as a module; the libraries it needs may be missing."""
    needs = {"trl": "trl", "lightning": "lightning", "accelerate": "accelerate"}
    pytest.importorskip(needs.get(name.split("_")[0], "torch"))
    return importlib.import_module(name)


def same(ours: nn.Module, theirs: nn.Module, atol: float = 2e-6) -> None:
    """The weights after training, which are no longer those before it."""
    before = dict(type(ours)(ours.config).named_parameters())
    expected = dict(theirs.named_parameters())
    moved = 0.0
    for name, weight in ours.named_parameters():
        torch.testing.assert_close(weight, expected[name], atol=atol, rtol=0, msg=name)
        moved += float((weight.detach() - before[name].detach()).abs().max())
    assert moved > 0.1


def losses(trainer: Any) -> list[float]:
    return [float(log["loss"]) for log in trainer.state.log_history if "loss" in log]


def hard_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What a trainer without weak labels gets."""
    return [{name: row[name] for name in ("input_ids", "labels")} for row in rows]
