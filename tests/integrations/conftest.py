"""Fixtures of the tests of examples."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.example_trainings import tiny

from w2s_fast.integrations.batches import WeakLabels


@pytest.fixture
def certain(monkeypatch: pytest.MonkeyPatch) -> None:
    """A judge without doubts and weights: the trainers' own losses know no other."""
    weakly_labelled = tiny.weakly_labelled

    def hard(n: int) -> tuple[list[str], WeakLabels]:
        texts, labels = weakly_labelled(n)
        return texts, WeakLabels(
            labels.ids, np.eye(2, dtype=np.float32)[labels.probs.argmax(1)], np.ones(n, np.float32)
        )

    monkeypatch.setattr(tiny, "weakly_labelled", hard)
