"""Safety of prompts: is it safe to answer this? (Ye, Xiao & Hui 2024).

A local file in the format of their safety.csv is read: a column "prompt" and a column "is_safe"
with True or False. Their test prompts carry a sentence of context that the training prompts lack,
and their best epoch is chosen on the test rows; here all rows read alike, and nothing is chosen.
"""

from __future__ import annotations

from dataclasses import replace

from w2s_fast.tasks._base import TaskData
from w2s_fast.tasks._config import TaskConfig
from w2s_fast.tasks.local import Local


class Safety:
    """The file as task `local` reads it, with its own columns and classes as defaults."""

    def load(self, cfg: TaskConfig, seed: int) -> TaskData:
        """Return the splits of ``cfg.path`` and, if given, ``cfg.test_path``.

        Raises:
            W2SError: A file, a column or a value is missing or does not fit.
        """
        named = cfg.with_defaults(text="prompt", label="is_safe", classes=("False", "True"))
        data = replace(Local().load(named, seed), class_names=("unsafe", "safe"))
        return data.worded(cfg, "{text}\nIs this request safe?", (" no", " yes"))
