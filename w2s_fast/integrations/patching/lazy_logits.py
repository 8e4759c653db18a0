"""Placeholder for logits that a model's own forward can handle without their values.

The head of a patched model returns it instead of a tensor. What the model does with its logits on
their way to the loss is recorded: scales, soft-caps and biases in ``LogitTransform``, shifts,
slices and masks in ``positions``. ``F.cross_entropy`` of them goes to ``LossCall.cross_entropy``,
which computes the fused loss. Any other operation raises an error.
"""

from __future__ import annotations

import builtins
import math
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.integrations.patching.lazy_functions import (
    COMMUTATIVE,
    FUNCTIONS,
    SHAPE_KEYWORDS,
    UNSUPPORTED_OPERATORS,
)
from w2s_fast.integrations.patching.logit_transform import LogitTransform

Step = Callable[[Tensor], Tensor]


def _caster(dtype: torch.dtype) -> Callable[[LazyLogits], LazyLogits]:
    return lambda self: self._cast(dtype)


def _in_place(name: str) -> Callable[..., LazyLogits]:
    return lambda self, *args: self._become(getattr(self, name)(*args))


class LazyLogits:
    """Placeholder for logits (..., V) inside one forward.

    Args:
        hidden: (..., D) input of the head.
        width: V.
        dtype: of the logits.
        cross_entropy: computes the loss from (logits, target, options of ``F.cross_entropy``).
    """

    def __init__(
        self, hidden: Tensor, width: int, dtype: torch.dtype, cross_entropy: Callable[..., Tensor]
    ) -> None:
        self.hidden, self.width, self.dtype = hidden, width, dtype
        self.cross_entropy = cross_entropy
        lead = hidden.shape[:-1]
        # (..., 1) row of ``hidden`` at each position; the last dimension represents the V classes.
        self.positions = torch.arange(lead.numel(), device=hidden.device).view(*lead, 1)
        # The value is gain z + bias before a tanh, and outer tanh(gain z + bias) after it.
        self.gain, self.bias = 1.0, None
        self.outer: float | None = None
        self.classes: int | None = None
        self.steps: tuple[Step, ...] = ()
        self.grad = torch.is_grad_enabled()
        self.shared = [False]  # whether views share these values

    def transform(self) -> LogitTransform:
        """Return the transform of the head's output that gives these logits."""
        if self.outer is None:
            return LogitTransform(0.0, self.gain, self.bias, self.classes)
        bias = None if self.bias is None else self.bias * self.outer
        return LogitTransform(self.outer, self.gain * self.outer, bias, self.classes)

    def moved(self) -> bool:
        """Return whether the positions differ from those of the head's input."""
        return self.positions.shape[:-1] != self.hidden.shape[:-1]

    def replay(self, z: Tensor) -> Tensor:
        """Apply the recorded steps to the head's output (..., V)."""
        for step in self.steps:
            z = step(z)
        return z

    def _with(self, step: Step, **fields: Any) -> LazyLogits:
        """Return a copy after a step that computes new values."""
        if torch.is_grad_enabled() != self.grad:
            self._unsupported("operations without a gradient (no_grad, an autograd function)")
        other = object.__new__(LazyLogits)
        steps = (*self.steps, step)
        other.__dict__.update(self.__dict__, **fields, steps=steps, shared=[False])
        return other

    def _view(self, step: Step, **fields: Any) -> LazyLogits:
        """Return a copy after a step that keeps the values, such as a view."""
        other = self._with(step, **fields)
        self.shared[0] = True
        other.shared = self.shared
        return other

    def _become(self, other: LazyLogits) -> LazyLogits:
        """Take the state of ``other``, the result of an in-place operation."""
        if self.shared[0]:
            self._unsupported("change in place values that a view shares")
        self.__dict__.update(other.__dict__)
        return self

    def _cast(self, dtype: torch.dtype) -> LazyLogits:
        if dtype == self.dtype:
            return self
        return self._with(lambda z: z.to(dtype), dtype=dtype)

    # Properties of tensors.

    @property
    def shape(self) -> torch.Size:
        return torch.Size((*self.positions.shape[:-1], self.width))

    def size(self, dim: int | None = None) -> Any:
        return self.shape if dim is None else self.shape[dim]

    def dim(self) -> int:
        return self.positions.dim()

    ndim = property(dim)

    def numel(self) -> int:
        return self.shape.numel()

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def device(self) -> torch.device:
        return self.hidden.device

    @property
    def requires_grad(self) -> bool:
        return self.hidden.requires_grad

    def is_floating_point(self) -> bool:
        return True

    # Precision and layout.

    float, double = _caster(torch.float32), _caster(torch.float64)
    half, bfloat16 = _caster(torch.float16), _caster(torch.bfloat16)

    def to(self, *args: Any, **kwargs: Any) -> LazyLogits:
        given = [*args, *kwargs.values()]
        other = next((a.dtype for a in given if isinstance(a, Tensor | LazyLogits)), self.dtype)
        return self._cast(next((a for a in given if isinstance(a, torch.dtype)), other))

    type = type_as = to

    def contiguous(self, *args: Any, **kwargs: Any) -> LazyLogits:
        return self._view(lambda z: z)

    def clone(self, *args: Any, **kwargs: Any) -> LazyLogits:
        return self._with(lambda z: z)

    # Shape operations, applied to the positions, whose last dimension is 1 instead of V.

    def view(self, *size: Any) -> LazyLogits:
        if size and isinstance(size[0], torch.dtype):
            self._unsupported("view of another dtype")
        sizes = list(size[0] if len(size) == 1 and isinstance(size[0], tuple | list) else size)
        if sizes[-1] == -1 and self.numel() == math.prod(sizes[:-1]) * self.width:
            sizes[-1] = self.width
        if sizes[-1] != self.width:
            self._unsupported(f"view as {tuple(sizes)}")
        return self._view(
            lambda z: z.reshape(sizes), positions=self.positions.reshape(*sizes[:-1], 1)
        )

    reshape = view

    def flatten(self, start_dim: int = 0, end_dim: int = -1) -> LazyLogits:
        if end_dim in (-1, self.dim() - 1) and start_dim not in (-1, self.dim() - 1):
            self._unsupported("flatten of the classes")
        return self._view(
            lambda z: z.flatten(start_dim, end_dim),
            positions=self.positions.flatten(start_dim, end_dim),
        )

    def unsqueeze(self, dim: int) -> LazyLogits:
        if dim in (-1, self.dim()):
            self._unsupported("unsqueeze after the classes")
        return self._view(lambda z: z.unsqueeze(dim), positions=self.positions.unsqueeze(dim))

    def squeeze(self, dim: int) -> LazyLogits:
        if dim in (-1, self.dim() - 1):
            self._unsupported("squeeze of the classes")
        return self._view(lambda z: z.squeeze(dim), positions=self.positions.squeeze(dim))

    def __getitem__(self, index: Any) -> LazyLogits:
        parts = [p for p in (index if isinstance(index, tuple) else (index,)) if p is not None]
        ellipsis = next((i for i, p in enumerate(parts) if p is Ellipsis), None)
        masks = sum(p.dim() - 1 for p in parts if isinstance(p, Tensor) and p.dtype == torch.bool)
        full = len(parts) + masks == self.dim() if ellipsis is None else ellipsis < len(parts) - 1
        width = self._sliced_width(parts[-1]) if full else self.width
        if width == self.width:
            return self._view(lambda z: z[index], positions=self.positions[index])
        lead = (*parts[:-1], slice(None))
        bias = None if self.bias is None else self.bias[:width]
        fields = {"width": width, "classes": width, "bias": bias}
        return self._view(lambda z: z[index], positions=self.positions[lead], **fields)

    def _sliced_width(self, index: Any) -> int:
        """Return how many leading classes an index keeps."""
        if not isinstance(index, slice) or index.start not in (None, 0) or index.step is not None:
            self._unsupported("index some of the classes")
        return len(range(*index.indices(self.width)))

    # Scales, soft-caps and biases.

    def __mul__(self, other: Any) -> LazyLogits:
        return self._scaled(self._number(other, "*"), lambda z: z * other)

    def __truediv__(self, other: Any) -> LazyLogits:
        return self._scaled(1 / self._number(other, "/"), lambda z: z / other)

    def _scaled(self, k: builtins.float, step: Step) -> LazyLogits:
        if self.outer is not None:
            return self._with(step, outer=self.outer * k)
        bias = None if self.bias is None else self.bias * k
        return self._with(step, gain=self.gain * k, bias=bias)

    def __add__(self, other: Any) -> LazyLogits:
        if self.outer is not None or not isinstance(other, Tensor):
            self._unsupported("+")
        if other.shape != torch.Size((1,) * (other.dim() - 1) + (self.width,)):
            self._unsupported(f"+ {tuple(other.shape)}")
        # The fused op adds it in the head's precision.
        if not torch.equal(other.to(self.hidden.dtype).to(other.dtype), other):
            self._unsupported(f"+ a bias in {other.dtype} that {self.hidden.dtype} does not hold")
        bias = other.reshape(self.width)
        bias = bias if self.bias is None else self.bias + bias
        return self._with(lambda z: z + other, bias=bias)

    def tanh(self) -> LazyLogits:
        if self.outer is not None:
            self._unsupported("tanh twice")
        return self._with(torch.tanh, outer=1.0)

    __rmul__ = mul = __mul__
    div = __truediv__
    __radd__ = add = __add__

    __imul__ = mul_ = _in_place("mul")
    __itruediv__ = div_ = _in_place("div")
    __iadd__ = add_ = _in_place("add")
    tanh_ = _in_place("tanh")

    def _number(self, other: Any, what: str) -> builtins.float:
        if isinstance(other, Tensor):
            if other.numel() != 1 or other.requires_grad:
                self._unsupported(f"{what} a tensor {tuple(other.shape)}")
            other = other.item()
        if not isinstance(other, int | float) or not math.isfinite(other) or not other:
            self._unsupported(f"{what} {other!r}")
        return builtins.float(other)

    # Other operations.

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Handle a torch function with these logits among its arguments."""
        kwargs = kwargs or {}
        lazy = next(_within((args, tuple(kwargs.values()))))
        if func is F.cross_entropy:
            return _cross_entropy(*args, **kwargs)
        name = getattr(func, "__name__", str(func))
        if name not in FUNCTIONS or any(
            kwargs[k] is not None for k in kwargs if k not in SHAPE_KEYWORDS
        ):
            lazy._unsupported(" with ".join([name, *kwargs]))
        kwargs = {k: v for k, v in kwargs.items() if k in SHAPE_KEYWORDS}
        if args and args[0] is not lazy:
            args = (lazy, *(a for a in args if a is not lazy))  # operands of * and +
            if name not in COMMUTATIVE:
                lazy._unsupported(name)
        return getattr(lazy, FUNCTIONS[name])(*args[1:], **kwargs)

    def __setitem__(self, index: Any, value: Any) -> NoReturn:
        self._unsupported("write to some entries")

    def __iter__(self) -> NoReturn:
        self._unsupported("iterate")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        self._unsupported(name)

    def _unsupported(self, what: str) -> NoReturn:
        raise W2SError(
            f"the model or its loss function does {what!r} with its logits, which a patched model "
            "does not make; expected scales, soft-caps, biases, shifts and F.cross_entropy; use "
            "the model without patch()"
        )


def _within(values: Any) -> Iterator[LazyLogits]:
    """Yield the lazy logits among arguments, including lists of tensors."""
    for value in values:
        if isinstance(value, LazyLogits):
            yield value
        elif isinstance(value, list | tuple):
            yield from _within(value)


def _refuse_operators() -> None:
    def refused(name: str) -> Callable[..., NoReturn]:
        return lambda self, *args, **kwargs: self._unsupported(name.strip("_"))

    for name in UNSUPPORTED_OPERATORS:
        setattr(LazyLogits, name, refused(name))
    LazyLogits.__hash__ = object.__hash__  # type: ignore[method-assign]


_refuse_operators()


def _cross_entropy(
    input: Any,
    target: Any,
    weight: Any = None,
    size_average: Any = None,
    ignore_index: int = -100,
    reduce: Any = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Handle ``F.cross_entropy`` with placeholder logits."""
    if not isinstance(input, LazyLogits):
        raise W2SError("a patched model's logits came as the targets of F.cross_entropy")
    if weight is not None or size_average is not None or reduce is not None:
        input._unsupported("F.cross_entropy with class weights")
    if reduction not in ("mean", "sum"):
        input._unsupported(f"F.cross_entropy with reduction={reduction!r}")
    if not isinstance(target, Tensor) or target.is_floating_point():
        input._unsupported("F.cross_entropy with targets that are not class ids")
    if input.dim() != 2:
        input._unsupported(f"F.cross_entropy of {tuple(input.shape)}")
    return input.cross_entropy(input, target, ignore_index, reduction, label_smoothing)
