"""Metrics and predictions of rows with targets, whose logits a patched model never makes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.tiny_lms import B, T, V, batch, tiny_lm

import w2s_fast
from w2s_fast.errors import W2SError


def evaluated(folder: Path, metrics: Any, columns: tuple[str, ...] = (), **options: Any) -> Any:
    """A Trainer that has labelled rows and what reads their logits."""
    from datasets import Dataset
    from transformers import Trainer, TrainingArguments

    args = TrainingArguments(
        str(folder), per_device_eval_batch_size=2, report_to=[], use_cpu=True, disable_tqdm=True,
        **options,
    )  # fmt: skip
    rows = {k: v.tolist() for k, v in batch().items() if k not in columns}
    if "labels" in columns:
        rows["weak_labels"] = batch()["labels"].tolist()
    data = Dataset.from_dict(rows)
    lm = w2s_fast.patch(tiny_lm())
    return Trainer(lm, args, eval_dataset=data, compute_metrics=metrics)


def accuracy(predictions: Any) -> dict[str, float]:
    said = np.asarray(predictions.predictions).argmax(-1)
    return {"accuracy": float((said == np.asarray(predictions.label_ids)).mean())}


@pytest.mark.parametrize("by_batch", [True, False])
def test_metrics_of_labelled_rows(by_batch: bool, tmp_path: Path) -> None:
    """One line before the user's function gets no logits."""
    options: dict[str, Any] = {"batch_eval_metrics": by_batch}
    metrics = (lambda p, compute_result: accuracy(p)) if by_batch else accuracy
    trainer = evaluated(tmp_path, metrics, **options)
    for call in (trainer.evaluate, lambda: trainer.predict(trainer.eval_dataset)):
        with pytest.raises(W2SError, match=r"metrics .* logits.*rows with labels; unpatch"):
            call()
    w2s_fast.unpatch(trainer.model)
    assert 0 <= trainer.evaluate()["eval_accuracy"] <= 1


def test_evaluation_that_reads_no_logits(tmp_path: Path) -> None:
    """The loss alone; metrics of losses; predictions of rows without targets."""
    expected = float(w2s_fast.patch(tiny_lm()).eval()(**batch()).loss.detach())
    trainer = evaluated(tmp_path, None, per_device_train_batch_size=3)
    trainer.args.per_device_eval_batch_size = 3
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)
    trainer = evaluated(
        tmp_path, lambda p: {"worst": float(p.losses.max())}, include_for_metrics=["loss"]
    )
    ignored = ["logits", "past_key_values"]
    assert trainer.evaluate(ignore_keys=ignored)["eval_worst"] > 0
    bare = trainer.eval_dataset.remove_columns(["labels"])
    assert trainer.predict(bare).predictions.shape == (B, T, V)


def test_predictions_of_rows_with_weak_columns(tmp_path: Path) -> None:
    trainer = evaluated(tmp_path, None, ("labels",))
    with pytest.raises(W2SError, match=r"predict.* logits.*rows with weak columns"):
        trainer.predict(trainer.eval_dataset)


def test_a_loop_of_ones_own_evaluates(tmp_path: Path) -> None:
    """Whatever it calls its functions."""

    def prediction_step(lm: Any, prediction_loss_only: bool = False) -> Any:
        with torch.no_grad():
            return lm(**batch())

    lm = w2s_fast.patch(tiny_lm()).eval()
    assert prediction_step(lm).logits is None
