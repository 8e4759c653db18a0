"""Toxicity of continuations: prompts with the text that followed (Gehman et al. 2020).

The weak-to-strong form is that of Ye, Xiao & Hui (2024): the student is trained on the weak model's
continuations, and a scorer rates its own. A local file of prompts and continuations is read, such
as the JSONL file of allenai/real-toxicity-prompts, whose cells hold {"text": ...}. The gold answer
is the whole true continuation; the weak model learns from it, but continuations are not compared
with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import import_module

from w2s_fast.errors import W2SError
from w2s_fast.tasks._answer_parsing import whole_text
from w2s_fast.tasks._base import TaskData
from w2s_fast.tasks._config import TaskConfig
from w2s_fast.tasks.datasets.local_answers import load_answers


class Toxicity:
    """Rows of a prompt and a continuation; rows with the same prompt are never in two splits."""

    def load(self, cfg: TaskConfig, seed: int) -> TaskData:
        """Return the splits of ``cfg.path`` and, if given, ``cfg.test_path``.

        The columns are ``task.text`` (by default "prompt") and ``task.label`` (by default
        "continuation"). A completion is right if its score by ``task.scorer`` is below 1/2.

        Raises:
            W2SError: A file, a column, a value or the scorer is missing.
        """
        harm_score = _scorer(cfg.scorer)
        column_cfg = cfg.with_defaults(text="prompt", label="continuation")
        return replace(load_answers(cfg, column_cfg, seed, whole_text), harm_score=harm_score)


def _scorer(name: str | None) -> Callable[[Sequence[str]], Sequence[float]]:
    if name is None:
        raise W2SError(
            "task.scorer is not set: 'wts_toxicity' needs a function that scores the toxicity of "
            "texts; set task.scorer=package.module:function (N texts in, N numbers in [0, 1] out)"
        )
    module, _, attribute = name.partition(":")
    try:
        scorer = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise W2SError(
            f"task.scorer={name!r} could not be imported ({error}); expected "
            "'package.module:function' on the Python path"
        ) from error
    if not callable(scorer):
        raise W2SError(f"task.scorer={name!r} is a {type(scorer).__name__}; expected a function")
    return scorer
