"""items.json is read whole or not at all, and is removed where a run writes none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.run_results import make_items

from w2s_fast.errors import W2SError
from w2s_fast.report.items import load_items, problem_of_items, write_items
from w2s_fast.report.page_config import PageConfig


@pytest.mark.parametrize("texts", [True, False])
def test_items_are_read_as_they_were_written(tmp_path: Path, texts: bool) -> None:
    items = make_items(["xent"], texts=texts)
    write_items(tmp_path, items)
    assert load_items(tmp_path) == items
    write_items(tmp_path, None)
    assert load_items(tmp_path) is None and not list(tmp_path.iterdir())


def test_answers_may_be_texts_or_missing() -> None:
    items = make_items(["xent"])
    items["gold"] = ["4"] * 6
    for model in items["models"]:
        model |= {"chosen": None, "confidence": None}
    assert problem_of_items(items) == ""


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("ids",), [], "it has 0 items"),
        (("ids", 2), 7, "ids are not 6 texts"),
        (("texts",), ["a"], "texts are not 6 texts"),
        (("texts", 0), "x" * 9000, "texts are not 6 texts of at most 8000"),
        (("gold", 1), 2, "gold is neither 6 classes nor 6 texts"),
        (("gold", 1), True, "gold is neither"),
        (("models",), {}, "models is not list"),
        (("models", 0, "role"), "other", "models[0]: role is 'other'"),
        (("models", 1, "name"), None, "models[1]: it has no name"),
        (("models", 1, "right", 3), 2, "models[1]: right is not 6 zeros and ones"),
        (("models", 1, "right"), [1], "models[1]: right is not 6"),
        (("models", 1, "chosen", 0), -1, "models[1]: chosen is neither"),
        (("models", 1, "confidence", 0), 1.5, "models[1]: confidence is not 6 numbers"),
        (("models", 1, "confidence", 0), float("nan"), "models[1]: confidence is not 6 numbers"),
        (("models", 0, "role"), "student", "no model has role 'weak'"),
    ],
)
def test_damage_is_one_line_that_names_the_place(
    tmp_path: Path, place: tuple[Any, ...], value: Any, message: str
) -> None:
    items = make_items(["xent"])
    parent: Any = items
    for key in place[:-1]:
        parent = parent[key]
    parent[place[-1]] = value
    (tmp_path / "items.json").write_text(json.dumps(items))
    with pytest.raises(W2SError, match="run `w2s-fast run` again") as err:
        load_items(tmp_path)
    assert message in str(err.value) and str(tmp_path) in str(err.value)


@pytest.mark.parametrize("text", ["", "{", "[1]", "[" * 100_000])
def test_a_file_that_is_no_json_object_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "items.json").write_text(text)
    with pytest.raises(W2SError, match=r"items\.json cannot be"):
        load_items(tmp_path)


@pytest.mark.parametrize(
    ("name", "value"), [("items", -1), ("items", 20_001), ("text_chars", 0), ("text_chars", 4001)]
)
def test_the_page_has_bounds(name: str, value: int) -> None:
    with pytest.raises(W2SError, match=rf"page\.{name}={value}: expected"):
        PageConfig(**{name: value})
