"""Check of the layer whose hidden states a method reads."""

from __future__ import annotations

from typing import Any

from w2s_fast.errors import W2SError


def check_layer(method: Any) -> None:
    """Raise ``W2SError`` unless ``method.layer`` is "half", "last" or a number of at least 0."""
    layer = method.layer
    if layer not in ("half", "last") and not (layer.isascii() and layer.isdigit()):
        raise W2SError(
            f"{type(method).__name__}: layer is {layer!r}; expected half, last, or a number, 0 "
            "for the embeddings"
        )
