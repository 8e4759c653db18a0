"""Your own preferences: a CSV, TSV, JSONL or Parquet file with two answers per row."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random

from w2s_fast.tasks._base import TaskData
from w2s_fast.tasks._columns import groups, read_columns, split_files, texts
from w2s_fast.tasks._config import TaskConfig
from w2s_fast.tasks._examples import Item
from w2s_fast.tasks._pairs import CLASSES, PROMPT, WORDS, joined, pair_up, shared_opening
from w2s_fast.tasks._split import squeeze


class Pairs:
    """Rows of a chosen and a rejected answer, with their prompt in a column or in the answers.

    Dialogues of prompt and answer are compared; the prompt is the column ``task.text`` (default
    "prompt", if there is one). Related pairs are never in two splits: pairs with the same value in
    ``task.group``, or without it with the same prompt, or else with the same opening, as in
    Anthropic's dialogues. Rows with two equal answers are dropped.
    """

    def load(self, cfg: TaskConfig, seed: int) -> TaskData:
        """Return the splits of ``cfg.path`` and, if given, ``cfg.test_path``.

        Raises:
            W2SError: A file, a column or a value is missing or does not fit.
        """
        data = split_files(cfg, seed, CLASSES, lambda path: read_pairs(path, cfg, seed))
        return replace(data, kind="preference").with_prompt(cfg, PROMPT, WORDS)


def read_pairs(path: Path, cfg: TaskConfig, seed: int) -> list[Item]:
    """Return the pairs of a file, without those of two equal answers.

    Raises:
        W2SError: A file, a column or a value is missing or does not fit.
    """
    cfg = cfg.with_defaults(text="prompt")
    refs = {"chosen": cfg.chosen, "rejected": cfg.rejected, "text": cfg.text}
    if cfg.group is not None:
        refs["group"] = cfg.group
    found = read_columns(path, refs, cfg, optional=("text",) if cfg.text == "prompt" else ())
    rows = {k: texts(path, found[k], k, refs[k]) for k in refs if k in found and k != "group"}
    prompts: list[str | None] = [*rows.get("text", ())] or [None] * len(rows["chosen"])
    related = groups(found.get("group"), len(prompts))
    columns = zip(prompts, rows["chosen"], rows["rejected"], related, strict=True)
    items = (_item(*row, seed) for row in columns)
    return [item for item in items if item is not None]


def _item(
    prompt: str | None, chosen: str, rejected: str, group: str | None, seed: int
) -> Item | None:
    rng = Random(f"{seed}/{[prompt, chosen, rejected]!r}")
    if prompt is None:
        return pair_up(chosen, rejected, group or shared_opening(chosen, rejected), rng)
    both = joined(prompt, chosen), joined(prompt, rejected)
    return pair_up(*both, group or squeeze(prompt), rng, prompt)
