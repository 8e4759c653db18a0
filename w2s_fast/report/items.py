"""Read and write items.json: the test items of the page's explorer, with all predictions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from w2s_fast.errors import W2SError, one_line
from w2s_fast.files import write_json
from w2s_fast.report.page_config import MOST_CHARS, MOST_ITEMS

ITEMS = "items.json"


def load_items(out: Path) -> dict[str, Any] | None:
    """Read items.json of an earlier run; None if the run wrote none.

    Raises:
        W2SError: The file is damaged.
    """
    path = out / ITEMS
    try:
        items = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as err:
        raise W2SError(
            f"{path} cannot be read ({one_line(err)}); run `w2s-fast run` again"
        ) from err
    if reason := problem_of_items(items):
        raise W2SError(f"{path} cannot be shown: {reason}; run `w2s-fast run` again")
    return items


def write_items(out: Path, items: Mapping[str, Any] | None) -> None:
    """Write items.json; without items, remove that of an earlier run."""
    if items is None:
        (out / ITEMS).unlink(missing_ok=True)
    else:
        write_json(out / ITEMS, items)


def problem_of_items(items: Any) -> str:
    """Return the first thing that is wrong with the contents of items.json; empty if nothing.

    Columns have one entry per item; ``gold`` and ``chosen`` are class ids, answers as text, or null
    where answers are not shown.
    """
    if not isinstance(items, dict):
        return "it is no object"
    fields = {"ids": list, "models": list, "classes": list, "n_test": int, "text_chars": int}
    for name, kind in fields.items():
        if not isinstance(items.get(name), kind):
            return f"{name} is not {kind.__name__}"
    n, classes = len(items["ids"]), len(items["classes"])
    if not 0 < n <= MOST_ITEMS:
        return f"it has {n} items; expected 1 to {MOST_ITEMS}"
    texts = items.get("texts")
    for name, column in (("ids", items["ids"]), ("texts", texts)):
        if column is not None and not _are_texts(column, n):
            return f"{name} are not {n} texts of at most {2 * MOST_CHARS} characters"
    if not _are_answers(items.get("gold"), n, classes):
        return f"gold is neither {n} classes nor {n} texts"
    for i, model in enumerate(items["models"]):
        if reason := _problem_of_model(model, n, classes):
            return f"models[{i}]: {reason}"
    roles = [model["role"] for model in items["models"]]
    return "" if "weak" in roles else "no model has role 'weak'"


def _problem_of_model(model: Any, n: int, classes: int) -> str:
    if not isinstance(model, Mapping) or not isinstance(model.get("name"), str):
        return "it has no name"
    if model.get("role") not in ("weak", "student", "ceiling"):
        return f"role is {str(model.get('role'))[:20]!r}; expected weak, student or ceiling"
    right = model.get("right")
    if not isinstance(right, list) or len(right) != n or any(r not in (0, 1) for r in right):
        return f"right is not {n} zeros and ones"
    if not _are_answers(model.get("chosen"), n, classes):
        return f"chosen is neither {n} classes nor {n} texts"
    confidence = model.get("confidence")
    if confidence is not None and not (
        isinstance(confidence, list)
        and len(confidence) == n
        and all(isinstance(c, int | float) and 0 <= c <= 1 for c in confidence)
    ):
        return f"confidence is not {n} numbers from 0 to 1"
    return ""


def _are_texts(column: Any, n: int) -> bool:
    long = 2 * MOST_CHARS
    return (
        isinstance(column, list)
        and len(column) == n
        and all(isinstance(text, str) and len(text) <= long for text in column)
    )


def _are_answers(column: Any, n: int, classes: int) -> bool:
    if column is None or _are_texts(column, n):
        return True
    return (
        isinstance(column, list)
        and len(column) == n
        and all(type(c) is int and 0 <= c < classes for c in column)
    )
