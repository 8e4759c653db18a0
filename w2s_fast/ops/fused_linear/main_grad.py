"""A buffer that the head's gradient is added to, instead of a gradient of its own.

Megatron-LM and Megatron-FSDP keep an fp32 ``main_grad`` beside each parameter and sum the gradients
of all micro-batches there. A fused head adds every chunk of its product to that buffer directly: no
gradient (V, D) is allocated, and nothing is rounded to 16 bits in between.

The upstream factor is known only in backward, so the product is made there; see
``cross_entropy_autograd``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.ops.dtypes import accumulator
from w2s_fast.ops.transforms import needs_operators

_FLAG = "grad_added_to_main_grad"


class MainGrad(NamedTuple):
    """The buffer (V, D), and the parameter whose attribute it was, if it was one."""

    buffer: Tensor
    parameter: Any = None

    def gradient(self, head: Tensor) -> Tensor | None:
        """Return what autograd gets for the head in place of its gradient, and set the flag.

        Hooks of Megatron's data parallelism skip a gradient whose parameter says
        ``grad_added_to_main_grad``, but need one to run. It is 0, for those that add it all the
        same (``zero_out_wgrad``, embeddings that share the weight).
        """
        if not hasattr(self.parameter, _FLAG):
            return None
        setattr(self.parameter, _FLAG, True)
        return torch.zeros_like(head)


def find_main_grad(argument: Tensor | bool | MainGrad, head: Any) -> MainGrad | None:
    """Return the buffer that ``main_grad=`` names: a tensor, True for that of ``head``, or False.

    Raises:
        W2SError: if the head has no buffer, or under ``torch.compile`` and ``torch.func``.
    """
    if isinstance(argument, bool) and not argument:
        return None
    if needs_operators():
        raise W2SError(
            "main_grad is for eager calls: a compiled or transformed call must not change a "
            "buffer; expected main_grad=False, or a call outside of torch.compile and torch.func"
        )
    if isinstance(argument, MainGrad):
        return argument
    if isinstance(argument, Tensor):
        return MainGrad(argument)
    make = getattr(head, "get_main_grad", None)  # Megatron-FSDP allocates it on demand
    buffer = getattr(head, "main_grad", None) if make is None else make()
    if not isinstance(buffer, Tensor):
        raise W2SError(
            f"main_grad is True but head.main_grad is {buffer!r}; expected a tensor (V, D): set "
            "head.main_grad, or pass the buffer as main_grad="
        )
    return MainGrad(buffer, head)


def local_main_grad(found: MainGrad | None, head: Tensor) -> MainGrad | None:
    """Return the buffer of this rank's ``head`` (V, D), checked.

    Raises:
        W2SError: if shape, dtype or device do not fit the head.
    """
    if found is None:
        return None
    buffer: Any = found.buffer
    if hasattr(buffer, "to_local"):
        buffer = buffer.to_local()
    expected = accumulator(head.dtype)
    fits = tuple(buffer.shape) == tuple(head.shape) and buffer.dtype == expected
    if not fits or buffer.device != head.device or buffer.requires_grad:
        raise W2SError(
            f"main_grad has shape {tuple(buffer.shape)} and dtype {buffer.dtype} on "
            f"{buffer.device}, requires_grad={buffer.requires_grad}; expected {tuple(head.shape)} "
            f"in {expected} on {head.device} without gradients: torch.zeros_like(head, "
            f"dtype={expected})"
        )
    return found._replace(buffer=buffer)
