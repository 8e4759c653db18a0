"""A Trainer that would hand logits of rows with targets to metrics: there are none."""

from __future__ import annotations

import sys
from typing import Any

import torch

from w2s_fast.errors import W2SError


def refuse_predictions(labelled: bool) -> None:
    """Raise ``W2SError`` if transformers' Trainer is about to read logits of this forward.

    It asks a model for its loss and its logits in one call, and says nowhere but in the frame of
    its ``prediction_step`` which of them it keeps. Without this, metrics get an empty tuple in the
    place of logits, and fail in the function of whoever wrote them.

    Args:
        labelled: whether the rows have labels, or weak columns alone.
    """
    if torch.compiler.is_compiling():
        return
    step = _prediction_step()
    if step is None or step.get("prediction_loss_only"):
        return
    if "logits" in (step.get("ignore_keys") or ()):
        return
    rows = "rows with labels" if labelled else "rows with weak columns"
    raise W2SError(
        f"metrics and predict() read logits, and a patched model makes none for {rows}; "
        "unpatch(model) before that, leave labels and weak columns out of the rows, or, where "
        "metrics read no logits, evaluate(ignore_keys=['logits', 'past_key_values'])"
    )


def _prediction_step() -> dict[str, Any] | None:
    """The variables of the Trainer's ``prediction_step`` that this call is part of, if any."""
    frame = sys._getframe(1)
    while frame is not None:
        if (
            frame.f_code.co_name == "prediction_step"
            and frame.f_globals.get("__name__") == "transformers.trainer"
        ):
            return frame.f_locals
        frame = frame.f_back  # type: ignore[assignment]
    return None
