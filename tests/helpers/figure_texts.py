"""Check where a figure draws its texts."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text


def check_texts(monkeypatch: pytest.MonkeyPatch, draw: Callable[[], object]) -> None:
    """Check that ``draw`` saves one figure, without warnings, whose texts are whole and apart."""
    figures: list[tuple[Figure, list[str], np.ndarray]] = []
    save = Figure.savefig

    def spy(figure: Figure, *args: Any, **kwargs: Any) -> None:
        save(figure, *args, **kwargs)
        hidden = {label for ax in figure.axes for label in _hidden_ticks(ax)}
        texts = [t for t in figure.findobj(Text) if t.get_text().strip() and t not in hidden]
        boxes = np.array([t.get_window_extent().extents for t in texts])
        figures.append((figure, [t.get_text() for t in texts], boxes))

    monkeypatch.setattr(Figure, "savefig", spy)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw()
    ((figure, names, boxes),) = figures
    assert len(names) > 10
    low, high = boxes[:, :2], boxes[:, 2:]
    inside = (low >= 0).all(1) & (high <= figure.bbox.max).all(1)
    assert [name for name, fits in zip(names, inside, strict=True) if not fits] == []
    apart = ((low[:, None] + 1 >= high[None] - 1) | (high[:, None] - 1 <= low[None] + 1)).any(2)
    assert [(names[i], names[k]) for i, k in np.argwhere(~apart) if i < k] == []


def _hidden_ticks(ax: Axes) -> list[Text]:
    """Return labels of ticks beyond the ends of an axis, which are not drawn."""
    axes = ((ax.get_xticklabels(), ax.get_xlim(), 0), (ax.get_yticklabels(), ax.get_ylim(), 1))
    return [
        label
        for labels, (low, high), i in axes
        for label in labels
        if not low <= label.get_position()[i] <= high
    ]
