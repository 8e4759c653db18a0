"""The runs: students with and without a conflict, by how weak the weak model is.

Configurations were committed before any result was seen.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from w2s_fast.config import RunConfig
from w2s_fast.models import ModelConfig
from w2s_fast.tasks import TaskConfig
from w2s_fast.training import TrainConfig

SEEDS = (0, 1, 2)
CONFLICTS = ("explicit_conflict", "implicit_conflict")
# Tokens that the weak model of a reward-model experiment reads, the last ones of each dialogue.
WEAK_TOKENS = {"reward, weak reads 8 tokens": 8, "reward, 24 tokens": 24, "reward, 64 tokens": 64}
# Preference loss of the policies of an experiment.
POLICIES = {"policies, SimPO": "simpo", "policies, DPO": "dpo"}
SIZES = ((1000, 800, 1000), (300, 300, 500))  # of reward models and policies
EXPERIMENTS = (*WEAK_TOKENS, *POLICIES)
_STRONGEST = "reward, 64 tokens"  # whose labels are confident enough to be filtered


def with_conflicts(method: str) -> tuple[str, ...]:
    """Return a method without a conflict and with each."""
    plain = "" if method == "naive" else f"{method}|"
    return (method, *(f"{plain}{conflict}" for conflict in CONFLICTS))


def configuration(name: str, files: tuple[Path, Path, Path], student: Path) -> RunConfig:
    """Return the run of an experiment.

    Reward models: a head on a frozen sentence encoder (the recipe of ``python -m bench w2s``); the
    weak model is a bag of words of the last tokens of each dialogue. Policies: language models from
    random weights, of 1 and 2 layers, trained by SimPO or DPO.

    Args:
        name: A name in ``EXPERIMENTS``.
        files: Pool of harmless pairs, test pairs, helpful pairs.
        student: Folder of the encoder.
    """
    pool, test, helpful = (str(file) for file in files)
    n_weak, n_transfer, n_test = SIZES[name in POLICIES]
    sizes = {"n_weak": n_weak, "n_transfer": n_transfer, "n_test": n_test}
    task = TaskConfig("pairs", pool, test, helpful, **sizes)
    if name in POLICIES:
        return _policies(task, POLICIES[name])
    methods = with_conflicts("probe")
    if name == _STRONGEST:
        methods += with_conflicts("probe|confident") + with_conflicts("probe|strong_to_strong")
    return RunConfig(
        task=task,
        weak=ModelConfig("bow"),
        student=ModelConfig(str(student), pooling="mean"),
        weak_train=TrainConfig(epochs=10, lr=0.1, max_length=WEAK_TOKENS[name]),
        student_train=TrainConfig(epochs=100, lr=1e-3, batch_size=128, max_length=64),
        losses=("xent",),
        methods=methods,
        seeds=SEEDS,
        workers=1,
        threads=1,
    )


def _policies(task: TaskConfig, loss: str) -> RunConfig:
    def model(hidden: int, layers: int) -> ModelConfig:
        return ModelConfig("scratch", hidden=hidden, layers=layers, heads=4, preference=loss)

    train = TrainConfig(epochs=2, lr=2e-3, batch_size=32, max_length=512, clip_norm=1.0)
    return RunConfig(
        task=task,
        weak=model(16, 1),
        student=model(96, 2),
        weak_train=train,
        student_train=train,
        losses=("xent",),
        methods=with_conflicts("naive"),
        seeds=SEEDS,
        workers=1,
        threads=1,
    )


def selected(results: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a run's results that is committed."""
    keys = ("seed", "name", "weak", "student", "ceiling", "pgr", "n_test", "weak_label_accuracy")
    return {
        "runs": [{key: run[key] for key in keys} for run in results["runs"]],
        "deception": results["deception"],
        "gold": results["gold"],
    }
