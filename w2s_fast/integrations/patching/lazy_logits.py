"""Logits that a model's own forward handles although nobody computed them.

A patched model's head gives these instead of a tensor. What the model does with its logits on their
way to the loss is recorded: scales, soft-caps and biases in ``Form``, shifts, slices and masks in
``positions``. ``F.cross_entropy`` of them goes to ``LossCall.cross_entropy``, which computes the
fused loss. Anything else that would need their values raises.
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
from w2s_fast.integrations.patching.form import Form

Step = Callable[[Tensor], Tensor]


class LazyLogits:
    """Stands for logits (..., V) inside one forward.

    Args:
        hidden: (..., D) that the head was called with.
        width: V.
        dtype: that the logits would have.
        cross_entropy: computes the loss: (logits, target, options of ``F.cross_entropy``).
    """

    def __init__(
        self, hidden: Tensor, width: int, dtype: torch.dtype, cross_entropy: Callable[..., Tensor]
    ) -> None:
        self.hidden, self.width, self.dtype = hidden, width, dtype
        self.cross_entropy = cross_entropy
        lead = hidden.shape[:-1]
        # (..., 1): which row of hidden stands where; one column stands for the V classes.
        self.positions = torch.arange(lead.numel(), device=hidden.device).view(*lead, 1)
        # Before tanh the value is gain z + bias, after it outer tanh(gain z + bias).
        self.gain, self.bias = 1.0, None
        self.outer: float | None = None
        self.classes: int | None = None
        self.steps: tuple[Step, ...] = ()
        self.grad = torch.is_grad_enabled()
        self.shared = [False]  # whether views have the same values

    def form(self) -> Form:
        """How these logits come from the head's output."""
        if self.outer is None:
            return Form(0.0, self.gain, self.bias, self.classes)
        bias = None if self.bias is None else self.bias * self.outer
        return Form(self.outer, self.gain * self.outer, bias, self.classes)

    def moved(self) -> bool:
        """Whether they stand elsewhere than where the head was called."""
        return self.positions.shape[:-1] != self.hidden.shape[:-1]

    def replay(self, z: Tensor) -> Tensor:
        """What the model made of its head's output (..., V), step by step."""
        for step in self.steps:
            z = step(z)
        return z

    def _with(self, step: Step, **fields: Any) -> LazyLogits:
        """The same after a step, with values of its own."""
        if torch.is_grad_enabled() != self.grad:
            self._unknown("operations without their gradient (no_grad, an autograd function)")
        other = object.__new__(LazyLogits)
        steps = (*self.steps, step)
        other.__dict__.update(self.__dict__, **fields, steps=steps, shared=[False])
        return other

    def _view(self, step: Step, **fields: Any) -> LazyLogits:
        """The same after a step that leaves the values where they are."""
        other = self._with(step, **fields)
        self.shared[0] = True
        other.shared = self.shared
        return other

    def _become(self, other: LazyLogits) -> LazyLogits:
        """What an operation in place leaves behind."""
        if self.shared[0]:
            self._unknown("change in place of values that a view shares")
        self.__dict__.update(other.__dict__)
        return self

    def _cast(self, dtype: torch.dtype) -> LazyLogits:
        if dtype == self.dtype:
            return self
        return self._with(lambda z: z.to(dtype), dtype=dtype)

    # What tensors tell about themselves.

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

    def float(self) -> LazyLogits:
        return self._cast(torch.float32)

    def double(self) -> LazyLogits:
        return self._cast(torch.float64)

    def half(self) -> LazyLogits:
        return self._cast(torch.float16)

    def bfloat16(self) -> LazyLogits:
        return self._cast(torch.bfloat16)

    def to(self, *args: Any, **kwargs: Any) -> LazyLogits:
        given = [*args, *kwargs.values()]
        other = next((a.dtype for a in given if isinstance(a, Tensor | LazyLogits)), self.dtype)
        return self._cast(next((a for a in given if isinstance(a, torch.dtype)), other))

    type = type_as = to

    def contiguous(self, *args: Any, **kwargs: Any) -> LazyLogits:
        return self._view(lambda z: z)

    def clone(self, *args: Any, **kwargs: Any) -> LazyLogits:
        return self._with(lambda z: z)

    # Shape: replayed on the positions, whose last dimension is 1 instead of V.

    def view(self, *size: Any) -> LazyLogits:
        if size and isinstance(size[0], torch.dtype):
            self._unknown("view of another dtype")
        sizes = list(size[0] if len(size) == 1 and isinstance(size[0], tuple | list) else size)
        if sizes[-1] == -1 and self.numel() == math.prod(sizes[:-1]) * self.width:
            sizes[-1] = self.width
        if sizes[-1] != self.width:
            self._unknown(f"view as {tuple(sizes)}")
        return self._view(
            lambda z: z.reshape(sizes), positions=self.positions.reshape(*sizes[:-1], 1)
        )

    reshape = view

    def flatten(self, start_dim: int = 0, end_dim: int = -1) -> LazyLogits:
        if end_dim in (-1, self.dim() - 1) and start_dim not in (-1, self.dim() - 1):
            self._unknown("flatten of the classes")
        return self._view(
            lambda z: z.flatten(start_dim, end_dim),
            positions=self.positions.flatten(start_dim, end_dim),
        )

    def unsqueeze(self, dim: int) -> LazyLogits:
        if dim in (-1, self.dim()):
            self._unknown("unsqueeze behind the classes")
        return self._view(lambda z: z.unsqueeze(dim), positions=self.positions.unsqueeze(dim))

    def squeeze(self, dim: int) -> LazyLogits:
        if dim in (-1, self.dim() - 1):
            self._unknown("squeeze of the classes")
        return self._view(lambda z: z.squeeze(dim), positions=self.positions.squeeze(dim))

    def __getitem__(self, index: Any) -> LazyLogits:
        parts = [p for p in (index if isinstance(index, tuple) else (index,)) if p is not None]
        dots = next((i for i, p in enumerate(parts) if p is Ellipsis), None)
        masks = sum(p.dim() - 1 for p in parts if isinstance(p, Tensor) and p.dtype == torch.bool)
        full = len(parts) + masks == self.dim() if dots is None else dots < len(parts) - 1
        kept = self._kept(parts[-1]) if full else self.width
        if kept == self.width:
            return self._view(lambda z: z[index], positions=self.positions[index])
        lead = (*parts[:-1], slice(None))
        bias = None if self.bias is None else self.bias[:kept]
        fields = {"width": kept, "classes": kept, "bias": bias}
        return self._view(lambda z: z[index], positions=self.positions[lead], **fields)

    def _kept(self, index: Any) -> int:
        """How many of the first classes an index leaves."""
        if not isinstance(index, slice) or index.start not in (None, 0) or index.step is not None:
            self._unknown("index some of the classes")
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
            self._unknown("+")
        if other.shape != torch.Size((1,) * (other.dim() - 1) + (self.width,)):
            self._unknown(f"+ {tuple(other.shape)}")
        # It is added in the head's precision.
        if not torch.equal(other.to(self.hidden.dtype).to(other.dtype), other):
            self._unknown(f"+ a bias in {other.dtype} that {self.hidden.dtype} does not hold")
        bias = other.reshape(self.width)
        bias = bias if self.bias is None else self.bias + bias
        return self._with(lambda z: z + other, bias=bias)

    def tanh(self) -> LazyLogits:
        if self.outer is not None:
            self._unknown("tanh twice")
        return self._with(torch.tanh, outer=1.0)

    __rmul__ = mul = __mul__
    div = __truediv__
    __radd__ = add = __add__

    def __imul__(self, other: Any) -> LazyLogits:
        return self._become(self * other)

    def __itruediv__(self, other: Any) -> LazyLogits:
        return self._become(self / other)

    def __iadd__(self, other: Any) -> LazyLogits:
        return self._become(self + other)

    def tanh_(self) -> LazyLogits:
        return self._become(self.tanh())

    mul_, div_, add_ = __imul__, __itruediv__, __iadd__

    def _number(self, other: Any, what: str) -> builtins.float:
        if isinstance(other, Tensor):
            if other.numel() != 1 or other.requires_grad:
                self._unknown(f"{what} a tensor {tuple(other.shape)}")
            other = other.item()
        if not isinstance(other, int | float) or not math.isfinite(other) or not other:
            self._unknown(f"{what} {other!r}")
        return builtins.float(other)

    # Everything else.

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Functions of torch with these logits among their arguments."""
        kwargs = kwargs or {}
        lazy = next(_within((args, tuple(kwargs.values()))))
        if func is F.cross_entropy:
            return _cross_entropy(*args, **kwargs)
        name = getattr(func, "__name__", str(func))
        if name not in _FUNCTIONS or any(kwargs[k] is not None for k in kwargs if k not in _SHAPES):
            lazy._unknown(" with ".join([name, *kwargs]))
        kwargs = {k: v for k, v in kwargs.items() if k in _SHAPES}
        if args and args[0] is not lazy:
            args = (lazy, *(a for a in args if a is not lazy))  # of * and +, which commute
            if name not in _COMMUTE:
                lazy._unknown(name)
        return getattr(lazy, _FUNCTIONS[name])(*args[1:], **kwargs)

    def __setitem__(self, index: Any, value: Any) -> NoReturn:
        self._unknown("write into some entries")

    def __iter__(self) -> NoReturn:
        self._unknown("iterate")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        self._unknown(name)

    def _unknown(self, what: str) -> NoReturn:
        raise W2SError(
            f"the model or its loss function does {what!r} with its logits, which a patched model "
            "does not make; expected scales, soft-caps, biases, shifts and F.cross_entropy; use "
            "the model without patch()"
        )


def _within(values: Any) -> Iterator[LazyLogits]:
    """The lazy logits among arguments, in lists of tensors as well."""
    for value in values:
        if isinstance(value, LazyLogits):
            yield value
        elif isinstance(value, list | tuple):
            yield from _within(value)


# Python looks for these in the class: without them an operator would be a TypeError, or False.
_OPERATORS = (
    "__sub__", "__rsub__", "__neg__", "__abs__", "__pow__", "__rpow__", "__rtruediv__",
    "__floordiv__", "__mod__", "__matmul__", "__rmatmul__", "__and__", "__or__", "__invert__",
    "__lt__", "__le__", "__gt__", "__ge__", "__eq__", "__ne__", "__bool__", "__float__", "__int__",
    "__array__", "__contains__",
)  # fmt: skip


def _refuse_operators() -> None:
    def refused(name: str) -> Callable[..., NoReturn]:
        return lambda self, *args, **kwargs: self._unknown(name.strip("_"))

    for name in _OPERATORS:
        setattr(LazyLogits, name, refused(name))
    LazyLogits.__hash__ = object.__hash__  # type: ignore[method-assign]


_refuse_operators()

_SHAPES = {"start_dim", "end_dim", "dim"}  # keywords of functions that are known here
_COMMUTE = {"mul", "multiply", "add", "__mul__", "__rmul__", "__add__", "__radd__"}
_FUNCTIONS = {
    "mul": "mul", "multiply": "mul", "__mul__": "mul", "__rmul__": "mul",
    "add": "add", "__add__": "add", "__radd__": "add",
    "div": "div", "divide": "div", "true_divide": "div", "tanh": "tanh",
    "reshape": "view", "flatten": "flatten", "unsqueeze": "unsqueeze", "squeeze": "squeeze",
    "clone": "clone",
}  # fmt: skip


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
    """``F.cross_entropy`` with logits that were not computed."""
    if not isinstance(input, LazyLogits):
        raise W2SError("a patched model's logits came as the targets of F.cross_entropy")
    if weight is not None or size_average is not None or reduce is not None:
        input._unknown("F.cross_entropy with class weights")
    if reduction not in ("mean", "sum"):
        input._unknown(f"F.cross_entropy with reduction={reduction!r}")
    if not isinstance(target, Tensor) or target.is_floating_point():
        input._unknown("F.cross_entropy with targets that are no class ids")
    if input.dim() != 2:
        input._unknown(f"F.cross_entropy of {tuple(input.shape)}")
    return input.cross_entropy(input, target, ignore_index, reduction, label_smoothing)
