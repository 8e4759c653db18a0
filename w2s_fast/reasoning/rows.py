"""Checked columns of texts, and rows as the tasks `local_answers` and `pairs` read them.

The text of a row follows its prompt with a space between if neither has white space there. Thus a
generated text, which begins with a space, and one from a file differ in no separator, which a
preference loss would learn.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from w2s_fast.errors import W2SError
from w2s_fast.files import write_bytes
from w2s_fast.paths import user_path
from w2s_fast.tasks._answer_parsing import after

Row = dict[str, Any]


def answer_row(item_id: Hashable, prompt: str, text: str) -> Row:
    """Return a row for finetuning: id, prompt, answer."""
    return {"id": item_id, "prompt": prompt, "answer": after(prompt, text)}


def pair_row(item_id: Hashable, prompt: str, chosen: str, rejected: str) -> Row:
    """Return a row for a preference loss: id, prompt, chosen, rejected."""
    sides = {"chosen": after(prompt, chosen), "rejected": after(prompt, rejected)}
    return {"id": item_id, "prompt": prompt, **sides}


def write_rows(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows as JSON lines, whole or not at all: ``task.path`` of a run may name the file.

    Raises:
        W2SError: There are no rows.
    """
    lines = [json.dumps(dict(row), ensure_ascii=False) + "\n" for row in rows]
    if not lines:
        raise W2SError(
            f"no rows for {path}; expected at least one: see the report of the selection"
        )
    write_bytes(user_path(path, "path"), "".join(lines).encode())


def check_columns(ids: Sequence[Hashable], **columns: Sequence[str]) -> None:
    """Check that every column has a text for each id, and that ids are different.

    Raises:
        W2SError: A length, a text or an id does not fit.
    """
    if not len(ids):
        raise W2SError("ids are empty; expected at least one item")
    counts = Counter(ids)
    if len(counts) != len(ids):
        item_id, n = counts.most_common(1)[0]
        raise W2SError(f"id {item_id!r} occurs {n} times; expected one row per item")
    for name, texts in columns.items():
        if isinstance(texts, str) or len(texts) != len(ids):
            n_texts = "one text" if isinstance(texts, str) else f"{len(texts)} texts"
            raise W2SError(f"{name}: {n_texts} for {len(ids)} ids; expected one text per id")
        for row, text in enumerate(texts):
            if not isinstance(text, str):
                raise W2SError(
                    f"{name}[{row}] is {text!r} (id {ids[row]!r}); expected a text, '' if the "
                    "model wrote nothing"
                )
