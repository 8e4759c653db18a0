"""An operation of Triton's language is worked out once for each combination of types.

In the interpreter it takes a hundred times as long as the numpy operation that it comes to: types
are promoted, checked and printed, shapes wrapped, numbers made tensors. All of that depends on the
types of its tensors and on its other arguments alone. So the first call of a combination is made as
ever, and what it asks of the interpreter's builder is written down as a function (a plan), which
later calls apply to their own data. Numbers are the same bit for bit.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

from triton import language as tl
from triton.runtime import interpreter as _triton

# What these do or return depends on more than their arguments.
_NEVER_CONSTANT = ("load", "store", "atomic", "program", "print", "assert", "assume", "barrier")
_MOST_PLANS = 20_000  # numbers are part of a key, and tests draw them at random
_tensor, _handle = tl.core.tensor, _triton.TensorHandle


class _NoPlan(Exception):
    """A call that is made as ever."""


def _key(value: Any) -> Any:
    """What a plan depends on: a tensor's type, the value of anything else."""
    kind = type(value)
    if kind is _tensor:
        fields = value.__dict__
        if "key" not in fields:
            fields["key"] = str(value.type)
        return fields["key"]
    if kind is int or kind is bool or kind is str or value is None:
        return kind, value  # 1 is not True
    if kind is float:
        return kind, value.hex()  # 0.0 is not -0.0, and NaN is NaN
    if kind is tl.constexpr:
        return kind, _key(value.value)
    if kind is list or kind is tuple:
        return kind, tuple([_key(v) for v in value])
    if kind is slice:
        return kind, _key(value.start), _key(value.stop), _key(value.step)
    if isinstance(value, tl.dtype):
        return kind, str(value)
    raise _NoPlan


def _handles(values: Any) -> Iterator[Any]:
    """The handles of the tensors among arguments, in order."""
    for value in values:
        kind = type(value)
        if kind is _tensor:
            yield value.handle
        elif kind is list or kind is tuple:
            yield from _handles(value)


def _like(fields: dict[str, Any], handle: Any) -> Any:
    """A tensor of other data: what takes most of the time of its constructor is shared."""
    made = object.__new__(_tensor)
    made.__dict__ = {**fields, "handle": handle}
    return made


def _apart(value: Any) -> Any:
    """The same with handles of its own: x x must not be taken for the plan of y y."""
    if type(value) is _tensor:
        old = value.handle
        return _like(value.__dict__, _handle(old.data, old.dtype, old.attr))
    if type(value) is list or type(value) is tuple:
        return type(value)(_apart(v) for v in value)
    return value


class _Recorder:
    """Stands for the builder, and writes down what is asked of it."""

    def __init__(self, builder: Any, handles: list[Any]) -> None:
        self._builder = builder
        self._new = (f"v{i}" for i in itertools.count())
        self._names: dict[int, str] = {}  # by id of a value
        self._values: dict[str, Any] = {}  # constants by name
        self._kept: list[Any] = []  # or two values might have one id, one after the other
        self._lines: list[str] = []
        self._inputs = [self._name(h) for h in handles]
        self.complete = True

    def _name(self, value: Any) -> str:
        self._kept.append(value)
        self._names[id(value)] = name = next(self._new)
        return name

    def _constant(self, value: Any) -> str:
        name = self._name(value)
        self._values[name] = value
        return name

    def __getattr__(self, name: str) -> Any:
        member = getattr(self._builder, name)
        if not name.startswith(("create_", "get_", "check_")):
            return member

        def called(*args: Any) -> Any:
            out = member(*args)
            self._note(name, args, out)
            return out

        return called

    def _argument(self, value: Any) -> str:
        if type(value) is _handle:
            return self._names[id(value)]
        if isinstance(value, list | tuple) and any(type(v) is _handle for v in value):
            raise _NoPlan
        return self._constant(value)

    def _note(self, name: str, args: tuple[Any, ...], out: Any) -> None:
        try:
            given = [self._argument(a) for a in args]
        except (_NoPlan, KeyError):  # a handle that was not made by the builder
            self.complete = False
            return
        outs = out if type(out) is tuple else (out,)
        known = all(g in self._values for g in given)
        if known and not any(word in name for word in _NEVER_CONSTANT):
            for o in outs:
                self._constant(o)
        else:
            made = ", ".join([self._name(o) for o in outs])
            self._lines.append(f"{made} = builder.{name}({', '.join(given)})")

    def plan(self, result: Any) -> Callable[..., Any]:
        """The function of the handles of the arguments that does the same."""
        if not self.complete:
            raise _NoPlan
        body = [*self._lines, f"return {self._made(result)}"]
        code = "".join(f"    {line}\n" for line in body)
        space = {"builder": self._builder, "like": _like, **self._values}
        exec(f"def plan({', '.join(self._inputs)}):\n{code}", space)
        return space["plan"]

    def _made(self, result: Any) -> str:
        if type(result) is _tensor:
            if id(result.handle) not in self._names:
                raise _NoPlan
            fields = {k: v for k, v in vars(result).items() if k != "handle"}
            fields["key"] = str(result.type)
            return f"like({self._constant(fields)}, {self._names[id(result.handle)]})"
        if type(result) is tuple:
            return f"({''.join(self._made(r) + ', ' for r in result)})"
        if result is None:
            return "None"
        raise _NoPlan


class Replay:
    """Plans of the operations that a semantic of the interpreter gives meaning to."""

    def __init__(self, semantic: Any) -> None:
        self._semantic, self._builder = semantic, semantic.builder
        self._recording = False
        self._plans: dict[Any, Callable[..., Any] | None] = {}
        self._options: Any = None

    def wrapped(self, member: Callable[..., Any]) -> Callable[..., Any]:
        """An operation of the language that keeps plans of itself."""

        def operation(*args: Any, **kwargs: Any) -> Any:
            kwargs.pop("_semantic", None)
            if self._recording:
                return member(*args, **kwargs, _semantic=self._semantic)
            if self._options is not self._builder.options or len(self._plans) > _MOST_PLANS:
                self._plans, self._options = {}, self._builder.options
            try:
                key = (member, *map(_key, args), (*kwargs, *map(_key, kwargs.values())))
            except _NoPlan:
                return member(*args, **kwargs, _semantic=self._semantic)
            if key not in self._plans:
                return self._first(key, member, args, kwargs)
            plan = self._plans[key]
            if plan is None:
                return member(*args, **kwargs, _semantic=self._semantic)
            return plan(*_handles((*args, *kwargs.values())))

        return operation

    def looked(self, value: Any) -> Any:
        """Return what Python was told of a tensor's data: the operation at work has no plan."""
        if self._recording:
            self._semantic.builder.complete = False
        return value

    def _first(self, key: Any, member: Any, args: Any, kwargs: Any) -> Any:
        args = tuple(map(_apart, args))
        kwargs = {name: _apart(v) for name, v in kwargs.items()}
        recorder = _Recorder(self._builder, list(_handles((*args, *kwargs.values()))))
        self._semantic.builder, self._recording = recorder, True
        try:
            result = member(*args, **kwargs, _semantic=self._semantic)
        finally:
            self._semantic.builder, self._recording = self._builder, False
        try:
            self._plans[key] = recorder.plan(result)
        except _NoPlan:
            self._plans[key] = None
        return result
