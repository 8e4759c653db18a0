"""Test items and every model's prediction of them, as items.json has them for the page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from w2s_fast.pipeline.predictions import Predictions
from w2s_fast.report.page_config import MOST_CHARS, PageConfig
from w2s_fast.tasks import Examples, TaskData


def page_items(
    cfg: PageConfig, seed: int, data: TaskData, models: Sequence[tuple[str, str, Predictions]]
) -> dict[str, Any]:
    """Return the first test items of a seed, column by column.

    Args:
        cfg: Settings of the page.
        seed: Seed of the run.
        data: Splits of the seed.
        models: Name, role and predictions of every model.
    """
    test, n = data.test, min(cfg.items, len(data.test.ids))
    return {
        "seed": seed,
        "n_test": len(test.ids),
        "classes": list(data.class_names),
        "ids": [key[:MOST_CHARS] for key in test.ids[:n]],
        "texts": _texts(test, n, cfg.text_chars) if cfg.texts else None,
        "text_chars": cfg.text_chars,
        "gold": _answers(models[0][2].gold[:n], cfg),
        "models": [
            {
                "name": name,
                "role": role,
                "right": predictions.right[:n].astype(int).tolist(),
                "chosen": _answers(predictions.chosen[:n], cfg),
                "confidence": _confidence(predictions, n),
            }
            for name, role, predictions in models
        ],
    }


def _texts(test: Examples, n: int, chars: int) -> list[str]:
    """Return the start of every text; of preferences both texts."""
    if test.pairs is None:
        return [_cut(text, chars) for text in test.texts[:n]]
    both = zip(test.texts[:n], test.pairs[:n], strict=True)
    return [f"1: {_cut(a, chars // 2)}\n2: {_cut(b, chars // 2)}" for a, b in both]


def _cut(text: str, chars: int) -> str:
    return text if len(text) <= chars else f"{text[:chars]}…"


def _answers(values: np.ndarray, cfg: PageConfig) -> list[Any] | None:
    """Return class ids, or answers as text; None for answers that are not to be shown."""
    if values.dtype.kind in "iu":
        return values.tolist()
    return [_cut(str(value), cfg.text_chars) for value in values] if cfg.texts else None


def _confidence(predictions: Predictions, n: int) -> list[float] | None:
    """Return the probability of the predicted class, to three digits; None without classes."""
    if predictions.probs is None:
        return None
    return [round(float(p), 3) for p in predictions.probs[:n].max(1)]
