"""Check types of values and names of keywords before an op reads any number.

``checked`` reads a function's annotations once. A call then costs one set lookup for each value
that was passed; only an unusual type is examined further. Values (ranges, shapes, dtypes) are
checked by each op.
"""

from __future__ import annotations

import functools
import inspect
import numbers
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from w2s_fast.errors import W2SError, W2SKeywordError, nearest

F = TypeVar("F", bound=Callable[..., Any])
_is_compiling = torch.compiler.is_compiling

_NUMBER = frozenset({float, int})
_USUAL: dict[str, frozenset[Any]] = {  # annotation -> exact types that need no further check
    "Tensor": frozenset({Tensor, nn.Parameter}),
    "float": _NUMBER,
    "int": frozenset({int}),
    "bool": frozenset({bool}),
    "str": frozenset({str}),
    "None": frozenset({type(None)}),
}
_WORDS = {"float": "a number", "int": "an integer", "bool": "True or False", "str": "a string"}
_NONE: frozenset[Any] = frozenset()
# Argument names of other libraries -> ours; the first one that the function has is suggested.
_ALIASES = {
    "input": ("logits", "hidden", "scores", "teacher"),
    "inputs": ("logits", "hidden", "scores"),
    "target": ("weak", "tokens", "ids", "teacher"),
    "targets": ("weak", "tokens", "ids", "teacher"),
    "label": ("weak", "tokens", "ids"),
    "labels": ("weak", "tokens", "ids"),
    "weights": ("weight",),
    "sample_weight": ("weight",),
    "label_smoothing": ("smoothing",),
    "lse_square_scale": ("z_loss",),
    "logit_softcapping": ("softcap",),
    "final_logit_softcapping": ("softcap",),
    "size_average": ("reduction",),
    "reduce": ("reduction",),
    "lm_head": ("head",),
    "linear_weight": ("head",),
    "hidden_states": ("hidden",),
    "dim": (),
    "frac": ("step_frac",),
}


class _Parameter(NamedTuple):
    name: str
    kinds: tuple[str, ...]  # parts of the annotation; empty: anything goes
    usual: frozenset[Any]
    more: tuple[type, ...]  # classes accepted beside them


def checked(f: F, accept: dict[str, tuple[type, ...]] | None = None) -> F:
    """Check the types of what ``f`` is called with by its annotations; ``accept`` adds classes.

    Raises:
        W2SError: for a value of the wrong type; ``W2SKeywordError`` for a keyword that ``f`` does
            not have, or too many positional arguments.
    """
    parameters = [
        _parameter(p, (accept or {}).get(p.name, ()))
        for p in inspect.signature(f).parameters.values()
    ]
    kinds = [p.kind for p in inspect.signature(f).parameters.values()]
    by_position = [
        p
        for p, kind in zip(parameters, kinds, strict=True)
        if kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    ]
    by_name = {p.name: p for p in parameters}
    usual_at = tuple(p.usual for p in by_position)
    usual = {p.name: p.usual for p in parameters}
    most, open_ = len(by_position), inspect.Parameter.VAR_KEYWORD in kinds

    def complain(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if len(args) > most:
            raise W2SKeywordError(_too_many(f, by_position, args, list(by_name)))
        positional = {p.name: value for p, value in zip(by_position, args, strict=False)}
        for name, value in [*positional.items(), *kwargs.items()]:
            if name not in by_name:
                if open_:
                    continue
                raise W2SKeywordError(_unknown(f, name, list(by_name)))
            _check(by_name[name], value)

    @functools.wraps(f)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not _is_compiling():
            odd = len(args) > most
            for value, types in zip(args, usual_at):  # noqa: B905 - fewer of them is fine
                if type(value) not in types:
                    odd = True
            for name, value in kwargs.items():
                kind = type(value)
                if kind not in usual.get(name, _NONE) or (kind is float and value != value):
                    odd = True
            if odd:
                complain(args, kwargs)
        return f(*args, **kwargs)

    return call  # type: ignore[return-value]


def check_methods(cls: type, names: tuple[str, ...], **accept: tuple[type, ...]) -> None:
    """Apply ``checked`` to the methods that ``cls`` itself defines."""
    for name in names:
        if name in cls.__dict__:
            setattr(cls, name, checked(cls.__dict__[name], accept))


def check_number(name: str, value: Any) -> None:
    """Raise ``W2SError`` unless ``value`` is a number that is not NaN; bool is not one."""
    if type(value) not in _NUMBER and not _is_number(value):
        raise W2SError(f"{name} is {_shown(value)}; expected a number{_fix('float', name, value)}")
    if value != value:
        raise W2SError(f"{name} is nan; expected a number")


def _parameter(p: inspect.Parameter, more: tuple[type, ...]) -> _Parameter:
    kinds = tuple(part.strip() for part in str(p.annotation).split("|"))
    known = all(k in _USUAL or k in ("SparseTargets", "Answers", "Projected") for k in kinds)
    if not known or p.name == "self":
        return _Parameter(p.name, (), _Anything(), more)
    return _Parameter(
        p.name, kinds, frozenset().union(*(_USUAL.get(k, _NONE) for k in kinds)), more
    )


class _Anything(frozenset[Any]):
    """The accepted types of a parameter whose annotation is unknown to this file."""

    def __contains__(self, _: object) -> bool:
        return True


def _check(p: _Parameter, value: Any) -> None:
    if "float" in p.kinds and _is_number(value):
        check_number(p.name, value)
    if not p.kinds or type(value) in p.usual or (p.more and isinstance(value, p.more)):
        return
    if not any(_fits(kind, value) for kind in p.kinds):
        raise W2SError(
            f"{p.name} is {_shown(value)}; expected {_expected(p.kinds)}"
            f"{_fix(p.kinds[0], p.name, value)}"
        )
    if type(value).__name__ in ("SparseTargets", "Answers"):
        for field, part in value._asdict().items():
            optional = field not in ("ids", "probs", "logp")
            if not (isinstance(part, Tensor) or (part is None and optional)):
                name = f"{p.name}.{field}"
                raise W2SError(
                    f"{name} is {_shown(part)}; expected a tensor{_fix('Tensor', name, part)}"
                )


def _fits(kind: str, value: Any) -> bool:
    if kind == "Tensor":
        return isinstance(value, Tensor)
    if kind == "float":
        return _is_number(value)
    if kind == "int":
        return isinstance(value, numbers.Integral | torch.SymInt) and not isinstance(value, bool)
    if kind in ("bool", "str", "None"):
        return isinstance(value, tuple(_USUAL[kind]))
    return any(c.__name__ == kind for c in type(value).__mro__)  # subclasses fit as well


def _is_number(value: Any) -> bool:
    number = isinstance(value, numbers.Real | torch.SymFloat | torch.SymInt)
    return number and not isinstance(value, bool)


def _expected(kinds: tuple[str, ...]) -> str:
    words = [_WORDS.get(k, "a tensor" if k == "Tensor" else k) for k in kinds]
    return " or ".join(words)


def _shown(value: Any) -> str:
    """Show a value in one short line."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    kind = type(value).__name__
    if isinstance(value, nn.Module) or hasattr(value, "__array__") or value is None:
        return "None" if value is None else f"a {type(value).__module__.split('.')[0]} {kind}"
    text = " ".join(repr(value).split())
    return f"the {kind} {text if len(text) <= 40 else text[:37] + '...'}"


def _fix(kind: str, name: str, value: Any) -> str:
    """Return a hint what to write instead."""
    if kind == "SparseTargets" and name == "teacher":
        return "; w2s_fast.pack_topk makes them from logits or probabilities"
    if isinstance(value, Tensor):
        return f"; pass float({name}) or a Python constant" if kind in ("float", "str") else ""
    if kind not in ("Tensor", "SparseTargets"):
        return ""
    if isinstance(value, nn.Module) and hasattr(value, "weight"):
        return "; pass its .weight, and its .bias as bias="
    if hasattr(value, "__array__"):
        return f"; pass torch.as_tensor({name})"
    if isinstance(value, list | tuple):
        return f"; pass torch.tensor({name})"
    if _is_number(value):
        return f"; pass a tensor with one number a row, torch.full((n,), {value})"
    return ""


def _unknown(f: Any, name: str, names: list[str]) -> str:
    names = [n for n in names if n != "self"]
    ours = next((n for n in _ALIASES.get(name, ()) if n in names), None)
    hint = f"; it is called {ours!r} here" if ours else nearest(name, names)
    if ours == "reduction":
        hint = "; pass reduction='mean', 'sum' or 'none'"
    return f"{_called(f)} has no argument {name!r}; expected one of {', '.join(names)}{hint}"


def _too_many(f: Any, allowed: list[_Parameter], args: tuple[Any, ...], names: list[str]) -> str:
    plain = [p.name for p in allowed if p.name != "self"]
    given = len(args) - (len(allowed) - len(plain))
    rest = [n for n in names if n not in plain and n != "self"]
    return (
        f"{_called(f)} takes {', '.join(plain)} by position but {given} values were given; pass "
        f"the others by name: {', '.join(rest)}"
    )


def _called(f: Any) -> str:
    return str(f.__qualname__).removesuffix(".__call__").removesuffix(".forward")
