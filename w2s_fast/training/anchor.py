r"""A penalty on how far a classifier's states drift from those of its initial weights.

    loss <- loss + anchor mean_i w_i |h_i - h_i^0|^2 / mean_j |h_j^0|^2

h_i is what the head reads of row i, of a preference the states of both completions, and h_i^0 is
the same before the first step. The anchor rows are the rows that are trained on, w_i their weights.
Finetuning on weak labels pulls states towards what predicts these labels in these data; states that
stay near the pretrained ones keep what transfers to others.

Source: Le et al. 2026, Representation Anchoring (arXiv 2605.25629), a regularizer of the drift from
the pretrained representations of a reward model. Squared distance, the state of the head, and the
division by the mean squared norm are this package's own.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from w2s_fast.errors import W2SError
from w2s_fast.losses._base import row_mask
from w2s_fast.models.classifier import BagOfWords
from w2s_fast.training.co_teaching import Twins
from w2s_fast.training.completion_pairs import CompletionPairs
from w2s_fast.training.completions import Completions
from w2s_fast.training.engine import forward
from w2s_fast.training.prediction import map_batches


class Anchor:
    """The initial states of all rows, and the penalty of a micro-batch.

    Made after the engine and before the first step or a resumption: a collective call. It reads
    every input of the model's head until ``close``.
    """

    def __init__(self, model: Any, data: Any, strength: float, batch_size: int = 64) -> None:
        """Compute the initial states.

        Args:
            model: classifier at its initial weights, also of a training that is resumed.
            data: N rows of classes or preferences.
            strength: factor of the penalty, above 0.
            batch_size: maximum rows of one forward.

        Raises:
            W2SError: the model has no states, or the rows are completions.
        """
        if isinstance(data, Completions | CompletionPairs) or isinstance(model, BagOfWords | Twins):
            raise W2SError(
                f"anchor is {strength}, and {type(model).__name__} learns {type(data).__name__}; "
                "expected a transformer with a classification head: set anchor=0"
            )
        self.strength, self._states = strength, torch.empty(0)
        self._hook = model.head.register_forward_pre_hook(self._keep)
        try:
            initial = self._read(model, data, batch_size)
        except BaseException:
            self.close()
            raise
        self.initial = torch.from_numpy(initial)
        self.scale = float(self.initial.double().square().sum(1).mean())

    def _keep(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._states = inputs[0]

    @torch.no_grad()  # not inference_mode: DeepSpeed cannot wait for LoRA weights gathered in it
    def _read(self, model: nn.Module, data: Any, batch_size: int) -> np.ndarray:
        """Return (N, W D) float32 states, of W candidates a row."""

        def compute(batch: Any) -> Tensor:
            n = len(forward(model, batch))
            return self._states.reshape(n, -1).float()

        return map_batches(model, data, batch_size, compute)

    def rows(self, rows: np.ndarray, device: torch.device) -> Tensor:
        """Return the initial states (B, W D) of rows on a device."""
        return self.initial[torch.from_numpy(rows)].to(device)

    def penalty(self, initial: Tensor, weak: Tensor, weight: Tensor | None) -> Tensor:
        """Return the 0-d sum over the rows of the last forward; divide by the loss's normaliser.

        Args:
            initial: (B, W D) from ``rows``.
            weak: weak labels of the rows, hard or soft.
            weight: (B,) row weights, or None.
        """
        states = self._states.reshape(len(initial), -1).float()
        drift = (states - initial).square().sum(1) / self.scale
        if weight is not None:
            drift = drift * weight.to(drift)
        return self.strength * torch.where(row_mask(weak, weight), drift, 0.0).sum()

    def close(self) -> None:
        """Stop reading the head's inputs."""
        self._hook.remove()
