"""Toxicity of continuations: prompts with the text that followed (Gehman et al. 2020).

The weak-to-strong form is that of Ye, Xiao & Hui (2024): the student continues prompts after
training on the supervisor's continuations, and a scorer judges what it writes. A local file of
prompts and continuations is read, such as the JSONL file of allenai/real-toxicity-prompts, whose
cells hold {"text": ...}. The gold is the true continuation, all of it: it is what the supervisor
learns from, not what a continuation is compared with.
"""

from __future__ import annotations

from w2s_fast.tasks._answers import whole_text
from w2s_fast.tasks._base import TaskData
from w2s_fast.tasks._config import TaskConfig
from w2s_fast.tasks.local_answers import load_answers


class Toxicity:
    """Rows of a prompt and a continuation; rows of one prompt never stand in two splits."""

    def load(self, cfg: TaskConfig, seed: int) -> TaskData:
        """Return the splits of ``cfg.path`` and, if given, ``cfg.test_path``.

        The columns are ``task.text`` (by default "prompt") and ``task.label`` (by default
        "continuation").

        Raises:
            W2SError: A file, a column or a value is missing.
        """
        named = cfg.with_defaults(text="prompt", label="continuation")
        return load_answers(cfg, named, seed, whole_text)
