"""Connect the registered operators to every mode of autograd.

torch's ``register_autograd`` has two gaps: it silently drops the tangents of forward mode, and it
raises inside ``torch.func`` transforms. ``differentiable`` closes both: a tangent is an error, and
at every level of nested transforms the operator records one node, as torch's built-in operators do.
``vmap`` runs sample by sample.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad

from w2s_fast.ops.dispatch import LIBRARY

_FORWARD = (
    "w2s_fast.{} has no forward-mode derivative (jvp, jacfwd, hessian, linearize, dual numbers): "
    "its operators define only the backward pass; use reverse mode, torch.func.grad, vjp or "
    "jacrev, or torch.autograd.grad"
)

# Bound here: a loss of 32 rows takes microseconds.
_is_active = torch._C._are_functorch_transforms_active
_is_batched = torch._C._functorch.is_batchedtensor
batched_by_backward = torch._C._functorch.is_legacy_batchedtensor  # is_grads_batched=True
_is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor


def active() -> bool:
    """Return whether a call may see tangents or ``torch.func`` tensors and must be functional."""
    return forward_ad._current_level >= 0 or _is_active()


def needs_operators() -> bool:
    """Return whether only the registered operators can serve this call: compiled or ``active``."""
    return torch.compiler.is_compiling() or active()


def batched(x: Tensor) -> bool:
    """Return whether ``vmap`` hides a dimension of ``x``: values differ between samples."""
    return _is_batched(x) or batched_by_backward(x)


def values(x: Tensor) -> Tensor:
    """Return all values of ``x``, of every sample of a ``vmap``, for checks."""
    while _is_wrapped(x):
        x = torch._C._functorch.get_unwrapped(x)
    return x


def constant(name: str, x: Tensor) -> Tensor:
    """Return ``x`` as a plain tensor without derivatives, for statistics of its values.

    Raises:
        RuntimeError: under ``vmap``; ``name`` is the function that cannot be mapped.
    """
    while not torch.compiler.is_compiling() and _is_wrapped(x):
        if _is_batched(x):
            raise RuntimeError(f"w2s_fast.{name} cannot run under torch.func.vmap; write a loop")
        x = torch._C._functorch.get_unwrapped(x)
    return x.detach()


def outside_transforms() -> contextlib.AbstractContextManager[Any]:
    """Return a context in which plain tensors stay plain; a transform would wrap every result."""
    if torch.compiler.is_compiling() or not _is_active():
        return contextlib.nullcontext()
    return temporarily_clear_interpreter_stack()


def refuse_transforms(name: str, *tensors: Tensor | None) -> None:
    """Raise where an op that is eager only is called inside ``torch.func``, or with tangents.

    Raises:
        RuntimeError: it names the op and what to use instead.
    """
    if _is_active():
        raise RuntimeError(
            f"w2s_fast.{name} cannot run inside torch.func transforms (grad, vjp, jvp, vmap, ...); "
            "use torch.autograd.grad or backward()"
        )
    if forward_ad._current_level >= 0:
        refuse_tangents(name, tensors)


def refuse_batched(name: str, upstream: Tensor) -> None:
    """Raise ``RuntimeError`` in a backward that serves one upstream gradient at a time."""
    if batched(upstream):
        raise RuntimeError(
            f"w2s_fast.{name} has no batched backward; use is_grads_batched=False, or vectorize="
            "False, and a loop over the upstream gradients"
        )


def refuse_tangents(name: str, tensors: Any) -> None:
    """Raise ``RuntimeError`` if one of ``tensors`` carries a tangent of forward mode."""
    for t in tensors:
        if isinstance(t, Tensor) and t.is_floating_point() and _has_tangent(t):
            raise RuntimeError(_FORWARD.format(name))


def _has_tangent(t: Tensor) -> bool:
    # Level 0 is the only one: torch nests forward mode only through torch.func.
    return torch._unpack_dual(t, level=0)[1] is not None


def differentiable(
    name: str,
    public: str,
    backward: Callable[..., Any],
    setup_context: Callable[..., None] | None = None,
) -> None:
    """Register the backward of operator ``name``; errors call it ``public``.

    Args:
        backward, setup_context: as ``torch.library.register_autograd`` takes them.
    """
    op = getattr(torch.ops.w2s_fast, name).default

    def below(keys: Any, *args: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return op.redispatch(keys & torch._C._after_autograd_keyset, *args)

    class Node(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, keys: Any, *args: Any) -> Any:
            result = _with_gradients(below, keys, *args)
            if setup_context is not None:
                setup_context(ctx, args, result)
            return result

        @staticmethod
        def backward(ctx: Any, *upstream: Any) -> Any:
            needs = ctx.needs_input_grad
            ctx.needs_input_grad = needs[1:]
            try:
                return None, *backward(ctx, *upstream)
            finally:
                ctx.needs_input_grad = needs

    Node.__name__ = Node.__qualname__ = f"w2s_fast_{name}"

    def kernel(keys: Any, *args: Any) -> Any:
        if active():
            refuse_tangents(public, args)
        if not (torch.is_grad_enabled() and torch._C._any_requires_grad(*args)):
            return below(keys, *args)
        if not _is_active():
            return Node.apply(keys, *args)
        # The dispatcher is at one level of transforms; Function.apply would start over.
        with enable_single_level_autograd_function():
            return super(torch.autograd.Function, Node).apply(keys, *args)

    LIBRARY.impl(name, kernel, "Autograd", with_keyset=True)
    sample_by_sample(name)


def _with_gradients(below: Callable[..., Any], *args: Any) -> Any:
    """Run with gradients on: torch switches them off inside a node, an outer level needs them."""
    if not _is_active():
        return below(*args)
    with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True):
        return below(*args)


def sample_by_sample(name: str) -> None:
    """Register the batching rule of operator ``name``: one call, one statistic, a sample."""
    op = getattr(torch.ops.w2s_fast, name).default

    def rule(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        calls = []
        for i in range(info.batch_size):
            calls.append(op(*(_sample(a, d, i) for a, d in zip(args, in_dims, strict=True))))
        if isinstance(calls[0], Tensor):
            return torch.stack(calls), 0
        return tuple(torch.stack(parts) for parts in zip(*calls, strict=True)), (0,) * len(calls[0])

    torch.library.register_vmap(f"w2s_fast::{name}", rule)


def _sample(argument: Any, dim: Any, i: int) -> Any:
    """Return sample ``i`` of an argument, or of every tensor in a list of them."""
    if isinstance(argument, list | tuple) and isinstance(dim, list | tuple):
        return [_sample(a, d, i) for a, d in zip(argument, dim, strict=True)]
    return argument.select(dim, i) if isinstance(argument, Tensor) and dim is not None else argument
