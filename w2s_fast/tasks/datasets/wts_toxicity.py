"""Toxicity of continuations: prompts with the text that followed (Gehman et al. 2020).

The weak-to-strong form is that of Ye, Xiao & Hui (2024): the student continues prompts after
training on the supervisor's continuations, and a scorer judges what it writes. A local file of
prompts and continuations is read, such as the JSONL file of allenai/real-toxicity-prompts, whose
cells hold {"text": ...}. The gold is the true continuation, all of it: it is what the supervisor
learns from, not what a continuation is compared with.
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
    """Rows of a prompt and a continuation; rows of one prompt never stand in two splits."""

    def load(self, cfg: TaskConfig, seed: int) -> TaskData:
        """Return the splits of ``cfg.path`` and, if given, ``cfg.test_path``.

        The columns are ``task.text`` (by default "prompt") and ``task.label`` (by default
        "continuation"). What a model writes is right where ``task.scorer`` finds it less than half
        toxic.

        Raises:
            W2SError: A file, a column, a value or the scorer is missing.
        """
        harm_score = _scorer(cfg.scorer)
        named = cfg.with_defaults(text="prompt", label="continuation")
        return replace(load_answers(cfg, named, seed, whole_text), harm_score=harm_score)


def _scorer(name: str | None) -> Callable[[Sequence[str]], Sequence[float]]:
    if name is None:
        raise W2SError(
            "task.scorer is not set: 'wts_toxicity' needs a function that says how toxic texts "
            "are; set task.scorer=package.module:function (N texts in, N numbers in [0, 1] out)"
        )
    module, _, attribute = name.partition(":")
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise W2SError(
            f"task.scorer={name!r} could not be imported ({error}); expected "
            "'package.module:function' on the Python path"
        ) from error
    if not callable(found):
        raise W2SError(f"task.scorer={name!r} is a {type(found).__name__}; expected a function")
    return found
