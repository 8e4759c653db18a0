"""The examples: each runs, and trains what the trainer's own loss, or the formula, trains."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

EXAMPLES = Path(__file__).parents[1] / "examples"
sys.path.insert(0, str(EXAMPLES))

import tiny  # noqa: E402

from w2s_fast.data import WeakLabelCollator, WeakLabels  # noqa: E402

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


@pytest.fixture
def certain(monkeypatch: pytest.MonkeyPatch) -> None:
    """A judge without doubts and weights: the trainers' own losses know no other."""
    judged = tiny.judged

    def hard(n: int) -> tuple[list[str], WeakLabels]:
        texts, labels = judged(n)
        return texts, WeakLabels(
            labels.ids, np.eye(2, dtype=np.float32)[labels.probs.argmax(1)], np.ones(n, np.float32)
        )

    monkeypatch.setattr(tiny, "judged", hard)


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


def soft_ce(logits: Tensor, probs: Tensor) -> Tensor:
    return -(probs * logits.log_softmax(-1)).sum(-1)


def test_compute_loss_func_is_the_trainers_own(certain: None, tmp_path: Path) -> None:
    """Hard labels: the model's own cross-entropy.

    Accumulated, the Trainer's own loss of a classifier is too large by the number of micro-batches
    (transformers 5.23), so it gets whole batches.
    """
    from transformers import DataCollatorWithPadding, Trainer

    ours = door("hf_compute_loss_func").main(str(tmp_path), "xent", **PLAIN | WHOLE)
    data = [
        {"input_ids": row["input_ids"], "labels": int(np.argmax(row["labels"]))}
        for row in ours.train_dataset
    ]
    collator = DataCollatorWithPadding(tiny.tokenizer)
    theirs = Trainer(tiny.classifier(), ours.args, train_dataset=data, data_collator=collator)
    theirs.train()
    same(ours.model, theirs.model)
    assert losses(ours) == pytest.approx(losses(theirs), abs=1e-5) and len(losses(ours)) == 3


def test_compute_loss_func_accumulates_and_ramps(tmp_path: Path) -> None:
    run = door("hf_compute_loss_func").main
    parts, whole = (run(str(tmp_path), "xent", **PLAIN | size) for size in ({}, WHOLE))
    same(parts.model, whole.model)
    ramped = losses(run(str(tmp_path), "logconf:aux=0.5,warmup_frac=0.5", **PLAIN))
    assert ramped[0] == pytest.approx(losses(parts)[0])
    assert abs(ramped[1] - losses(parts)[1]) > 1e-3


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


def reference(steps: int, size: int, mean_of_weights: bool, first: int = 0) -> Any:
    """A loop over whole batches, AdamW as in the examples."""
    model = Reference(tiny.lm())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    rows = tiny.rows(48 if steps * size <= 48 else steps * size)
    for step in range(steps):
        batch = WeakLabelCollator(tiny.tokenizer)(rows[step * size : (step + 1) * size])
        total = batch["weak_weight"].sum() if mean_of_weights else size
        (model(batch) / total).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.lm


def test_bare_loop() -> None:
    same(door("bare_loop").main(aux=0.0).lm, reference(6, 8, True), atol=1e-4)


def test_reward_is_trls_own(tmp_path: Path, certain: None) -> None:
    """q of 1 or 0 is TRL's loss with the answers put in order."""
    from datasets import Dataset
    from trl import RewardTrainer

    example = door("trl_reward")
    ours = example.main(str(tmp_path), **PLAIN)
    ordered = [
        row if row["q"] == 1 else row | {"chosen": row["rejected"], "rejected": row["chosen"]}
        for row in tiny.pairs()
    ]
    theirs = RewardTrainer(
        tiny.classifier(num_labels=1), ours.args, train_dataset=Dataset.from_list(ordered),
        processing_class=tiny.tokenizer,
    )  # fmt: skip
    theirs.train()
    same(ours.model, theirs.model)
    assert losses(ours) == pytest.approx(losses(theirs), abs=1e-5)
    assert "accuracy" in ours.state.log_history[0]


def test_soft_rewards_accumulate(tmp_path: Path) -> None:
    example = door("trl_reward")
    parts, whole = (example.main(str(tmp_path), **PLAIN | size) for size in ({}, WHOLE))
    same(parts.model, whole.model)
    inputs = whole.data_collator([whole.train_dataset[i] for i in range(8)])
    q, weight = inputs["q"], inputs["weight"]
    assert 0 < float(q.min()) < float(q.max()) < 1
    loss = whole.compute_loss(whole.model, dict(inputs))
    model_inputs = {k: inputs[k] for k in ("input_ids", "attention_mask")}
    chosen, rejected = whole.model(**model_inputs).logits[:, 0].chunk(2)
    bce = F.binary_cross_entropy_with_logits(chosen - rejected, q, weight)
    torch.testing.assert_close(loss, bce)
