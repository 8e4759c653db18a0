"""The models that a run pretrains itself, each for the one task whose language it knows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from w2s_fast.tasks._config import TaskConfig
from w2s_fast.tasks._language_model_config import LanguageModelConfig


@dataclass(frozen=True)
class EmbeddedModel:
    """A source of models that stage `pretrain` makes.

    Attributes:
        task: Name of its task, and of the module of ``w2s_fast.tasks.datasets`` that has it.
        function: Function that pretrains it, in the module of this name with "_lm" at the end.
        settings: Path of its ``LanguageModelConfig`` in ``TaskConfig``.
        language: Returns the other settings that decide its text, as plain values.
    """

    task: str
    function: str
    settings: tuple[str, ...]
    language: Callable[[TaskConfig], Any]

    def config(self, cfg: TaskConfig) -> LanguageModelConfig:
        """Return its size and pretraining."""
        return cast("LanguageModelConfig", _get(cfg, self.settings))

    def positions(self) -> int:
        """Return the largest number of tokens that it reads."""
        return int(self._module().MAX_LENGTH)

    def tokenizer(self) -> Any:
        """Build the tokenizer of its task."""
        return self._module().tokenizer()

    def with_settings(self, cfg: TaskConfig, **changes: Any) -> TaskConfig:
        """Return a task with other sizes or another pretraining of this model."""
        return cast("TaskConfig", _changed(cfg, self.settings, changes))

    def pretrain(
        self,
        directory: Path,
        cfg: TaskConfig,
        seed: int,
        progress: Callable[[int, int, float], None] | None = None,
    ) -> None:
        """Pretrain it and save it as a transformers folder, see ``agreement_lm.pretrain``."""
        getattr(self._module("_lm"), self.function)(directory, cfg, seed, progress)

    def _module(self, suffix: str = "") -> Any:
        return import_module(f"w2s_fast.tasks.datasets.{self.task}{suffix}")


def _word_problems(cfg: TaskConfig) -> dict[str, Any]:
    models = ("pretrain", "pretrain_small")
    return {k: v for k, v in asdict(cfg.word_problems).items() if k not in models}


EMBEDDED = {
    "agreement-lm": EmbeddedModel(
        "agreement", "pretrain", ("pretrain",), lambda cfg: cfg.language_seed
    ),
    "word-problems-lm": EmbeddedModel(
        "word_problems", "pretrain", ("word_problems", "pretrain"), _word_problems,
    ),
    "word-problems-small-lm": EmbeddedModel(
        "word_problems", "pretrain_small", ("word_problems", "pretrain_small"), _word_problems,
    ),
}  # fmt: skip


def task_tokenizer(task: str) -> Any:
    """Build the tokenizer that a task brings; None for a task without one."""
    model = next((m for m in EMBEDDED.values() if m.task == task), None)
    return None if model is None else model.tokenizer()


def _get(value: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        value = getattr(value, name)
    return value


def _changed(value: Any, path: tuple[str, ...], changes: dict[str, Any]) -> Any:
    if path:
        changes = {path[0]: _changed(getattr(value, path[0]), path[1:], changes)}
    return replace(value, **changes)
