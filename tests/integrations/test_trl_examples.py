"""The examples with TRL: rewards, supervised fine-tuning and preferences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.example_trainings import PLAIN, WHOLE, door, hard_rows, losses, same, tiny


def in_order(pairs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The better answer as the chosen one."""
    return [
        row if row["q"] == 1 else row | {"chosen": row["rejected"], "rejected": row["chosen"]}
        for row in pairs
    ]


def test_reward_is_trls_own(tmp_path: Path, certain: None) -> None:
    """q of 1 or 0 is TRL's loss with the answers put in order."""
    from datasets import Dataset
    from trl import RewardTrainer

    example = door("trl_reward")
    ours = example.main(str(tmp_path), **PLAIN)
    data = Dataset.from_list(in_order(tiny.pairs()))
    model = tiny.classifier(num_labels=1)
    theirs = RewardTrainer(model, ours.args, train_dataset=data, processing_class=tiny.tokenizer)
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


def test_sft_is_trls_own(certain: None, tmp_path: Path) -> None:
    """Against the loss that SFTTrainer makes itself."""
    from datasets import Dataset
    from trl import SFTTrainer

    ours = door("trl_sft").main(str(tmp_path), "xent", **PLAIN)
    theirs = SFTTrainer(
        tiny.lm(), ours.args, train_dataset=Dataset.from_list(hard_rows(tiny.rows())),
        data_collator=ours.data_collator, processing_class=tiny.tokenizer,
    )  # fmt: skip
    theirs.train()
    same(ours.model, theirs.model)
    assert losses(ours) == pytest.approx(losses(theirs), abs=1e-5)
    assert ours.train_dataset.column_names == ["input_ids", "labels", "weak_ids", "weak_probs",
                                               "weak_weight"]  # fmt: skip


def test_sft_learns_doubts(tmp_path: Path) -> None:
    """The weights that transformers' Trainer trains on the same soft, weighted labels."""
    ours = door("trl_sft").main(str(tmp_path), "xent", **PLAIN)
    theirs = door("hf_trainer").main(str(tmp_path), "xent", **PLAIN)
    same(ours.model, theirs.model)
    assert losses(ours) == pytest.approx(losses(theirs), abs=1e-5)


def test_dpo_is_trls_own(certain: None, tmp_path: Path) -> None:
    """q of 1 or 0 is TRL's loss with the answers put in order; reference computed by each."""
    from datasets import Dataset
    from trl import DPOTrainer

    ours = door("trl_dpo").main(str(tmp_path), **PLAIN | {"learning_rate": 2.0})
    theirs = DPOTrainer(
        tiny.lm(), args=ours.args, train_dataset=Dataset.from_list(in_order(tiny.pairs())),
        processing_class=tiny.tokenizer,
    )  # fmt: skip
    theirs.train()
    same(ours.model, theirs.model, atol=2e-5)
    assert losses(ours) == pytest.approx(losses(theirs), abs=1e-5)
    (a, b) = (t.state.log_history[-2] for t in (ours, theirs))
    assert a["rewards/accuracy"] == pytest.approx(b["rewards/accuracies"])
    assert abs(a["rewards/margin"]) > 1e-3
    assert a["rewards/margin"] == pytest.approx(b["rewards/margins"], rel=1e-3)


def test_soft_dpo(tmp_path: Path) -> None:
    """q and weights in the formula, from logits in full."""
    example = door("trl_dpo")
    trainer = example.main(str(tmp_path), **PLAIN | WHOLE | {"max_steps": 1, "learning_rate": 2.0})
    inputs = trainer.data_collator([trainer.train_dataset[i] for i in range(8)])
    loss = trainer.compute_loss(trainer.model, inputs)
    mask = inputs["completion_mask"][:, 1:]
    columns = {k: inputs[k] for k in ("input_ids", "attention_mask")}
    logits = trainer.model(**columns).logits[:, :-1].log_softmax(-1)
    logp = logits.gather(-1, inputs["input_ids"][:, 1:, None])[..., 0] * mask
    first, second = logp.sum(1).chunk(2)
    h = 0.1 * (first - inputs["ref_chosen_logps"] - second + inputs["ref_rejected_logps"])
    assert h.abs().max() > 1e-3
    bce = F.binary_cross_entropy_with_logits(h, inputs["q"], inputs["weight"])
    torch.testing.assert_close(loss, bce, rtol=1e-5, atol=1e-6)
