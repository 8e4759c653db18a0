"""Every method has a card whose configuration is accepted; measured rows are committed ones."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml
from helpers.paths import ROOT

from bench.report.method_cards import FAMILIES, PAGE, columns, measured, methods_of
from w2s_fast.methods import METHODS, make_steps

_CARD = re.compile(r"^### `(\w+)`\n\n\| \| \|\n\| --- \| --- \|\n((?:\|.*\|\n)+)", re.MULTILINE)
ROWS = ("what", "when", "equation", "configuration", "published", "measured")


def _cards() -> dict[str, dict[str, str]]:
    cards = {}
    for name, table in _CARD.findall((ROOT / PAGE).read_text()):
        cards[name] = dict(line.strip("| ").split(" | ", 1) for line in table.splitlines())
    return cards


CARDS = _cards()


def test_every_method_has_a_card_in_the_section_of_its_family() -> None:
    assert CARDS.keys() == METHODS.keys()
    text = (ROOT / PAGE).read_text()
    assert sorted(sum(FAMILIES.values(), ())) == sorted(METHODS)
    for family, methods in FAMILIES.items():
        section = text[: text.index(f"<!-- generated:{family} begin -->")].rpartition("\n## ")[2]
        assert re.findall(r"^### `(\w+)`", section, re.MULTILINE) == list(methods), family


@pytest.mark.parametrize("name", METHODS)
def test_a_card_is_complete(name: str) -> None:
    card = CARDS[name]
    assert tuple(card) == ROWS and all(len(cell) > 3 for cell in card.values()), card


def test_a_card_that_points_at_a_table_is_in_it() -> None:
    """And the other cards are not: "not yet" goes when rows come."""
    rows = {method for own in columns().values() for name in own for method in methods_of(name)}
    assert {name for name in METHODS if "#measured-" in CARDS[name]["measured"]} == rows


@pytest.mark.parametrize("name", METHODS)
def test_the_configuration_is_accepted(name: str) -> None:
    line = CARDS[name]["configuration"].strip("`").replace("\\|", "|")
    (spec,) = yaml.safe_load(line)["methods"]
    assert METHODS[name] in {type(step) for step in make_steps(spec.partition("@")[0])}


def _difference(value: float, p: float | None) -> dict[str, Any]:
    return {"difference": value, "p_holm": p}


def test_a_table_of_differences() -> None:
    found = {
        "one": {"knn_filter": _difference(0.0214, 0.02), "knn_filter:k=5": _difference(-0.1, 0.2)},
        "two": {"knn_filter": _difference(0, None), "agree": _difference(0.5, 0.001)},
        "three": {"agree": _difference(0.5, 0.001)},
    }
    assert measured(found, ("knn_filter", "trust")) == (
        "| method | one | two |\n"
        "| --- | ---: | ---: |\n"
        "| `knn_filter` | +0.021\\* | +0.000 |\n"
        "| `knn_filter:k=5` | -0.100 | – |\n"
    )
    assert measured(found, ("trust",)).startswith("No method of this section")


def test_committed_rows_are_found() -> None:
    """Of every kind of column, and without students of other losses."""
    found = columns()
    assert {"embedded task", "SST-2, bag of words", "safety, MiniLM"} <= found.keys()
    assert found["safety, MiniLM"]["agree_prior"]["difference"] < 0
    assert "prototype_head:train=true" in found["SST-2, bag of words"]
    assert not any("probe" in own for own in found.values()), "other losses are no methods"
    assert all(METHODS[re.split("[:|]", name)[0]] for own in found.values() for name in own)


def test_the_readme_counts_the_methods() -> None:
    assert f"{len(METHODS)} weak-to-strong methods" in (ROOT / "README.md").read_text()
