"""Students of the task `agreement` whose true accuracy is known at every evaluation."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from w2s_fast import make_loss, metrics
from w2s_fast.config import RunConfig
from w2s_fast.models import ModelConfig, build_model
from w2s_fast.tasks import Inputs, TaskConfig, TaskData, get_task
from w2s_fast.tasks.datasets import agreement
from w2s_fast.training import TrainConfig, Watch, encode, predict, train

FOLDS = 5
EVALUATIONS = 20
MAX_LENGTH = 64
FLIPPED = 0.2  # share of wrong labels among random ones
_DEFAULT = RunConfig()


@dataclass(frozen=True)
class Condition:
    """What a student learns, and from where.

    Attributes:
        student: "pretrained", or "scratch" for a small transformer without pretraining.
        labels: "weak model", "random errors" (true labels, a fifth of them flipped) or "true".
        epochs: Passes over the transfer split.
        loss: Spec of the loss.
    """

    student: str
    labels: str
    epochs: int
    loss: str = "xent"


def pretrain(folder: Path) -> None:
    """Pretrain the language model of the task into a folder."""
    from w2s_fast.tasks.datasets import agreement_lm

    agreement_lm.pretrain(folder, TaskConfig(), 0)


def weak_labels(data: TaskData, seed: int) -> tuple[np.ndarray, metrics.Calibrator]:
    """Return the weak model's labels of the transfer split, and its cross-fitted calibrator."""
    part = np.random.default_rng(seed).permutation(len(data.weak)) % FOLDS
    probs = np.empty((len(data.weak), 2), np.float32)
    for i in range(FOLDS):
        model = _weak_model(data, np.flatnonzero(part != i), seed)
        probs[part == i] = predict(model, _encode(data.weak.inputs))[part == i]
    calibrator = metrics.fit_temperature(probs, data.weak.labels)
    model = _weak_model(data, np.arange(len(data.weak)), seed)
    return predict(model, _encode(data.transfer.inputs)), calibrator


def _weak_model(data: TaskData, rows: np.ndarray, seed: int) -> Any:
    model = build_model(_DEFAULT.weak, 2, agreement.tokenizer(), seed)
    labels = np.eye(2, dtype=np.float32)[data.weak.labels[rows]]
    items = _encode(data.weak.inputs.take(rows.tolist()))
    train(model, items, labels, make_loss("xent"), _recipe(_DEFAULT.weak_train), seed)
    return model


def measure(condition: Condition, seed: int, pretrained: Path) -> dict[str, Any]:
    """Train a student, and return its row: true accuracy, agreement, and the alarm."""
    data = get_task("agreement").load(TaskConfig(), seed)
    truth = data.transfer.labels
    weak, expected = _labels(condition, data, seed)
    source = ModelConfig(source=str(pretrained))
    recipe = _DEFAULT.student_train
    if condition.student == "scratch":
        source = ModelConfig(source="scratch", hidden=64, layers=2, heads=4)
        recipe = dataclasses.replace(recipe, lr=2e-3)
    recipe = dataclasses.replace(_recipe(recipe), epochs=condition.epochs)
    model = build_model(source, 2, agreement.tokenizer(), seed)
    every = -(-recipe.steps(len(truth)) // EVALUATIONS)
    watch = Watch(_encode(_joined(data.transfer.inputs, data.test.inputs)), every=every)
    rows = _encode(data.transfer.inputs)
    log = train(model, rows, weak, make_loss(condition.loss), recipe, seed, watch=watch)
    chosen = log["trajectory"].argmax(2)
    agrees = chosen[:, : len(truth)] == weak.argmax(1)
    alarm = metrics.fit_alarm(agrees, expected, len(data.weak))
    wrong = weak.argmax(1) != truth
    return {
        **dataclasses.asdict(condition),
        "seed": seed,
        "weak_accuracy": float(1 - wrong.mean()),
        "expected_accuracy": expected,
        "steps": log["watched"],
        "accuracy": _rounded((chosen[:, len(truth) :] == data.test.labels).mean(1)),
        "agreement": _rounded(agrees.mean(1)),
        "wrong_agreement": _rounded(agrees[:, wrong].mean(1)) if wrong.any() else None,
        "alarm": alarm,
    }


def _labels(condition: Condition, data: TaskData, seed: int) -> tuple[np.ndarray, float]:
    """Return the labels that the student learns (N, 2), and their expected accuracy."""
    truth = data.transfer.labels
    if condition.labels == "weak model":
        weak, calibrator = weak_labels(data, seed)
        return weak, float(calibrator(weak).max(1).mean())
    flipped = np.random.default_rng(seed).random(len(truth)) < FLIPPED
    flipped &= condition.labels == "random errors"
    accuracy = 1 - FLIPPED if condition.labels == "random errors" else 1.0
    return np.eye(2, dtype=np.float32)[np.where(flipped, 1 - truth, truth)], accuracy


def _recipe(train_config: TrainConfig) -> TrainConfig:
    return dataclasses.replace(train_config, checkpoint_every=0)


def _encode(items: Inputs) -> Any:
    return encode(agreement.tokenizer(), items, MAX_LENGTH)


def _joined(a: Inputs, b: Inputs) -> Inputs:
    return Inputs(a.ids + b.ids, a.texts + b.texts, None, a.groups + b.groups)


def _rounded(values: np.ndarray) -> list[float]:
    return [round(float(v), 4) for v in values]
