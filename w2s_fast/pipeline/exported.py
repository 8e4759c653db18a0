"""Read an exported classifier or reward model again, and predict new texts with it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from w2s_fast.errors import W2SError
from w2s_fast.files import read_text
from w2s_fast.models import ModelConfig, build_model, load_tokenizer
from w2s_fast.paths import user_path
from w2s_fast.tasks import Inputs

HEAD, ABOUT = "head.safetensors", "w2s.json"
_REQUIRED = ("pooling", "classes", "kind", "class_names", "max_length", "dtype")


@dataclass(frozen=True, eq=False)
class ExportedModel:
    """A model that ``export`` has written.

    Attributes:
        model: Module with ``forward(input_ids, attention_mask) -> (B, C)``, in eval mode.
        tokenizer: Its tokenizer.
        kind: ``classification`` or ``preference``.
        class_names: Names of the C classes.
        max_length: Tokens to which a text is truncated, as in the training.
    """

    model: Any
    tokenizer: Any
    kind: str
    class_names: tuple[str, ...]
    max_length: int

    def predict(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None, *, batch_size: int = 64
    ) -> np.ndarray:
        """Return class probabilities of new texts.

        Args:
            texts: N texts; of a reward model, the first dialogue of every pair.
            pairs: N second texts, where the model was trained on two; the second dialogues.
            batch_size: Maximum rows of one forward.

        Returns:
            (N, C) float32.

        Raises:
            W2SError: There are no texts, numbers differ, or a reward model gets no pairs.
        """
        from w2s_fast.training import encode, predict

        if pairs is not None and len(pairs) != len(texts):
            raise W2SError(f"{len(texts)} texts and {len(pairs)} pairs; expected as many of both")
        if pairs is None and self.kind == "preference":
            raise W2SError(
                "pairs is missing; a reward model compares two dialogues, give the second as pairs"
            )
        ids = tuple(str(i) for i in range(len(texts)))
        second = None if pairs is None else tuple(pairs)
        rows = encode(
            self.tokenizer, Inputs(ids, tuple(texts), second, ids), self.max_length, self.kind
        )
        return predict(self.model, rows, batch_size)


def load_exported(folder: str | Path, device: str | None = None) -> ExportedModel:
    """Return the model in a folder that ``export`` has written.

    Args:
        folder: The folder.
        device: Device of torch; None: CUDA if there is one, else the CPU.

    Raises:
        W2SError: The folder holds no exported classifier or reward model, or an older export.
    """
    import torch
    from safetensors.torch import load_file

    folder = user_path(folder, "the folder of the exported model")
    about = _about(folder)
    cfg = ModelConfig(
        str(folder.absolute()), pooling=about["pooling"], dtype=about["dtype"], head_init="zero"
    )
    tokenizer = load_tokenizer(cfg, None)
    model: Any = build_model(cfg, about["classes"], tokenizer, 0, about["kind"])
    model.head.load_state_dict(load_file(folder / HEAD))
    model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()
    return ExportedModel(
        model, tokenizer, about["kind"], tuple(about["class_names"]), about["max_length"]
    )


def _about(folder: Path) -> dict[str, Any]:
    """Return what the folder says of its model."""
    missing = [name for name in (ABOUT, HEAD, "config.json") if not (folder / name).is_file()]
    if missing:
        raise W2SError(
            f"{folder} has no {', '.join(missing)}; expected a classifier or reward model written "
            "by `w2s-fast export` (language models: transformers generates with them)"
        )
    try:
        about = json.loads(read_text(folder / ABOUT))
    except ValueError as err:
        raise W2SError(f"{folder / ABOUT} is not JSON: {err}; export the model again") from err
    if not isinstance(about, dict) or (lacks := [k for k in _REQUIRED if k not in about]):
        what = ", ".join(lacks) if isinstance(about, dict) else "a mapping"
        raise W2SError(f"{folder / ABOUT} lacks {what}; export the model again")
    return about
