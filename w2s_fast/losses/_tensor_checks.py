"""Checks of tensors that losses over log-probabilities are called with."""

from __future__ import annotations

from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.ops.transforms import values


def check_values(name: str, x: Tensor | None, low: float, high: float, expected: str) -> None:
    """Raise ``W2SError`` unless all values are in [low, high]; values are read on the CPU only.

    On an accelerator the check would synchronise with the device.

    Args:
        expected: what the values should be, for the message.
    """
    if x is None or x.device.type != "cpu" or x.numel() == 0:
        return
    x = values(x.detach()).flatten()  # of all samples under vmap
    wrong = ~((x >= low) & (x <= high))
    if bool(wrong.any()):
        i = int(wrong.nonzero()[0])
        raise W2SError(f"{name}[{i}] is {float(x[i])}; expected {expected}")
