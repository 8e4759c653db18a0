"""Safety of prompts: is it safe to answer this? (Ye, Xiao & Hui 2024).

A local file in the format of their safety.csv is read: a column "prompt" and a column "is_safe"
with True or False; that file has a row without a prompt, and such rows are dropped. Their test
prompts have a sentence of context that the training prompts lack, and they select the best epoch on
the test rows; here all rows have one form, and no epoch is selected.
"""

from __future__ import annotations

from pathlib import Path

from w2s_fast.errors import W2SError
from w2s_fast.tasks._base import TaskData
from w2s_fast.tasks._columns import groups, is_missing, read_columns, split_files
from w2s_fast.tasks._config import TaskConfig
from w2s_fast.tasks._examples import Item
from w2s_fast.tasks._hub import class_index


class Safety:
    """Rows of a prompt and whether it is safe; equal prompts are never in two splits."""

    def load(self, cfg: TaskConfig, seed: int) -> TaskData:
        """Return the splits of ``cfg.path`` and, if given, ``cfg.test_path``.

        The columns are ``task.text`` (by default "prompt") and ``task.label`` (by default
        "is_safe").

        Raises:
            W2SError: A file, a column or a value is missing or does not fit.
        """
        column_cfg = cfg.with_defaults(text="prompt", label="is_safe")
        data = split_files(cfg, seed, ("unsafe", "safe"), lambda path: _items(path, column_cfg))
        return data.with_prompt(cfg, "{text}\nIs this request safe?", (" no", " yes"))


def _items(path: Path, cfg: TaskConfig) -> list[Item]:
    refs = {"text": cfg.text, "label": cfg.label}
    if cfg.group is not None:
        refs["group"] = cfg.group
    columns = read_columns(path, refs, cfg)
    try:
        labels = [class_index(value, cfg.label, 2) for value in columns["label"]]
    except W2SError as error:
        raise W2SError(f"{path}: {error}") from error
    related = groups(columns.get("group"), len(labels))
    rows = zip(columns["text"], labels, related, strict=True)
    return [Item(str(text), label, group) for text, label, group in rows if not is_missing(text)]
