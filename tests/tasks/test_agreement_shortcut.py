"""The shortcut of the embedded task, and its out-of-distribution items."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from w2s_fast.tasks import Examples, OodConfig, ShortcutConfig, TaskConfig, get_task
from w2s_fast.tasks.datasets.agreement import ADVERBS, NOUNS, is_reserved
from w2s_fast.tasks.datasets.agreement_shortcut import CARRIERS, NEUTRAL

SMALL = TaskConfig(n_weak=400, n_transfer=400, n_test=400)
VALUE = {word: value for value, words in enumerate(CARRIERS) for word in words}


def _values(examples: Examples, availability: int) -> np.ndarray:
    """Return the value of every item's shortcut; check its adverbs."""
    values = []
    for text in examples.texts:
        adverbs, prefix = text.split()[:4], text.split()[4:]
        carriers = [word for word in adverbs if word in VALUE]
        assert len(carriers) == availability and len({VALUE[word] for word in carriers}) == 1
        assert all(word in NEUTRAL for word in adverbs if word not in VALUE)
        assert is_reserved(" ".join(prefix)) and not set(prefix) & set(ADVERBS)
        values.append(VALUE[carriers[0]])
    return np.array(values)


@pytest.mark.parametrize(("availability", "predictivity"), [(1, 0.9), (4, 0.5), (2, 1.0)])
def test_predictivity_and_availability_are_as_asked(availability: int, predictivity: float) -> None:
    cfg = replace(SMALL, shortcut=ShortcutConfig(availability, predictivity))
    data = get_task("agreement").load(cfg, 0)
    for examples in (data.weak, data.transfer, data.test):
        agrees = _values(examples, availability) == examples.labels
        assert abs(agrees.mean() - predictivity) < 0.08  # sd at most 0.025
        assert examples.subgroups == tuple(np.where(agrees, "agrees", "conflicts"))
        assert not hasattr(examples.inputs, "subgroups")


def test_without_a_shortcut_the_texts_are_the_same_prefixes() -> None:
    plain = get_task("agreement").load(SMALL, 0)
    assert plain.test.subgroups is None and plain.ood is None
    assert not any(set(text.split()) & set(ADVERBS) for text in plain.test.texts)
    assert {*VALUE, *NEUTRAL} == set(ADVERBS)


def test_shifted_items_reverse_the_shortcut() -> None:
    cfg = replace(SMALL, shortcut=ShortcutConfig(1, 0.9), ood=OodConfig(n=400))
    data = get_task("agreement").load(cfg, 0)
    assert data.ood is not None and len(data.ood) == 400 and data.ood.labels.sum() == 200
    assert abs((_values(data.ood, 1) == data.ood.labels).mean() - 0.1) < 0.06
    assert data.ood.subgroups is not None
    without = get_task("agreement").load(replace(cfg, ood=OodConfig()), 0)
    for name, examples in without.splits.items():
        assert examples.texts == data.splits[name].texts, name
        prefixes = ({t.split(" ", 4)[4] for t in e.texts} for e in (examples, data.ood))
        assert set.isdisjoint(*prefixes)
    drawn = replace(cfg, ood=OodConfig(n=400, predictivity=0.5))
    even = get_task("agreement").load(drawn, 0).ood
    assert even is not None and abs((_values(even, 1) == even.labels).mean() - 0.5) < 0.1


def test_shifted_items_have_a_distance_of_their_own() -> None:
    cfg = replace(SMALL, attractor_frac=1.0, ood=OodConfig(n=100, attractor_distance=5))
    data = get_task("agreement").load(cfg, 0)
    nouns = {form for pair in NOUNS for form in pair}
    assert data.ood is not None and data.ood.subgroups is None
    for examples, expected in ((data.test, {2, 3}), (data.ood, {6, 7})):
        assert {sum(w in nouns for w in text.split()) for text in examples.texts} == expected
