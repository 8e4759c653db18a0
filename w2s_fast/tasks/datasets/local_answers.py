"""Your own prompts and answers: a CSV, TSV, JSONL or Parquet file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from w2s_fast.errors import W2SError, nearest
from w2s_fast.tasks._answer_parsing import CLASSES, PROMPT, READERS, after
from w2s_fast.tasks._base import TaskData
from w2s_fast.tasks._columns import groups, read_columns, split_files, texts
from w2s_fast.tasks._config import TaskConfig
from w2s_fast.tasks._examples import Item


class LocalAnswers:
    """Rows of a prompt and a gold answer; rows with the same prompt are never in two splits."""

    def load(self, cfg: TaskConfig, seed: int) -> TaskData:
        """Return the splits of ``cfg.path`` and, if given, ``cfg.test_path``.

        The columns are ``task.text`` (by default "prompt") and ``task.label`` (by default
        "answer"); ``task.read`` says where a generated text has its answer.

        Raises:
            W2SError: A file, a column or a value is missing or does not fit.
        """
        if cfg.read not in READERS:
            raise W2SError(
                f"task.read={cfg.read!r}: expected one of {', '.join(READERS)}"
                f"{nearest(cfg.read, READERS)}"
            )
        column_cfg = cfg.with_defaults(text="prompt", label="answer")
        return load_answers(cfg, column_cfg, seed, READERS[cfg.read])


def load_answers(
    cfg: TaskConfig, column_cfg: TaskConfig, seed: int, read: Callable[[str], str]
) -> TaskData:
    """Return the splits of files with a column of prompts and one of answers.

    Args:
        cfg: Configuration of the user.
        column_cfg: The same with the default names of the columns.
        seed: Seed of the draw.
        read: Returns the answer in a text.

    Raises:
        W2SError: A value is missing, or ``read`` finds no answer in a gold answer.
    """
    data = split_files(cfg, seed, CLASSES, lambda path: _items(path, column_cfg, read))
    return replace(data, read=read).with_prompt(cfg, PROMPT)


def _items(path: Path, cfg: TaskConfig, read: Callable[[str], str]) -> list[Item]:
    refs = {"text": cfg.text, "label": cfg.label}
    if cfg.group is not None:
        refs["group"] = cfg.group
    columns = read_columns(path, refs, cfg, unpack=_plain)
    prompts, answers = (texts(path, columns[key], key, refs[key]) for key in ("text", "label"))
    if unread := [row for row, answer in enumerate(answers) if not read(answer)]:
        raise W2SError(
            f"{path}: no answer is found in {answers[unread[0]]!r}, row {unread[0] + 1} of column "
            f"{cfg.label!r} (task.label), nor in {len(unread) - 1} other rows; correct them, or "
            "task.read"
        )
    related = groups(columns.get("group"), len(prompts))
    return [
        Item(prompt, 0, group or prompt, answer=after(prompt, answer))
        for prompt, answer, group in zip(prompts, answers, related, strict=True)
    ]


def _plain(value: Any) -> Any:
    """Return the text of a cell {"text": ..., ...}, and other cells unchanged."""
    return value["text"] if isinstance(value, dict) and "text" in value else value
