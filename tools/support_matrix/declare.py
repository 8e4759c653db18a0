"""Declare the options of every op and derive what each backend does with them.

``docs/support.md`` is written from this. The part of a backend is read from its code: fp64 always
uses the reference, and a backend that re-exports the reference's function for a phase uses it in
that phase. Tests compare the options with the signatures: an argument without a row is an error, as
are a row that fails, an unsupported option that does not raise its message, and a document that
differs. Nothing in the package imports this module.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from w2s_fast.errors import W2SError
from w2s_fast.ops import dispatch

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
YES, REFERENCE, NO = "yes", "reference", "no"
FP64 = "fp64 is the formula's own check: every backend leaves it to the reference"


class Cell(NamedTuple):
    """What one backend does with one option in one dtype: ``yes``, ``reference`` or ``no``."""

    state: str
    why: str


@dataclass(frozen=True)
class Option:
    """One option of an op.

    Attributes:
        name: the row's title.
        call: arguments that select it; a test adds them to its sample call.
        sample: form of the sample call (kind of weak labels, number of classes).
        phases: functions of the backend it needs beyond those of its entry.
        unsupported: the reason if it is not supported, else empty. Then ``error`` is raised with
            ``message``.
        note: remark for a supported option.
    """

    name: str
    call: Mapping[str, Any] = field(default_factory=dict)
    sample: Mapping[str, Any] = field(default_factory=dict)
    phases: tuple[str, ...] = ()
    unsupported: str = ""
    error: type[Exception] = W2SError
    message: str = ""
    note: str = ""


@dataclass(frozen=True)
class Entry:
    """One public function or group of classes.

    Attributes:
        name: the table's title.
        paths: ``module:function`` whose arguments the options must cover.
        op: the op in ``OPS`` whose backends serve it; empty for plain PyTorch on few numbers.
        phases: functions of the backend that every call goes through.
        data: arguments that are data, or are covered by the sample call itself.
        options: the rows.
    """

    name: str
    paths: tuple[str, ...]
    op: str
    phases: tuple[str, ...]
    data: tuple[str, ...]
    options: tuple[Option, ...]

    def functions(self) -> list[Callable[..., Any]]:
        """Return the functions that ``paths`` names."""
        functions = []
        for function in self.paths:
            module, _, path = function.partition(":")
            target: Any = importlib.import_module(module)
            for name in path.split("."):
                target = getattr(target, name)
            functions.append(target)
        return functions

    def arguments(self) -> set[str]:
        """Return every argument of the functions that is not data."""
        names = {n for f in self.functions() for n in inspect.signature(f).parameters}
        return names - {*self.data, "self"}


def cell(entry: Entry, option: Option, backend: str, dtype: torch.dtype) -> Cell:
    """Return what ``backend`` does with ``option`` in ``dtype``; imports the backend's module."""
    if option.unsupported:
        return Cell(NO, option.unsupported)
    if not entry.op:
        return Cell(YES, option.note)
    modules = dispatch.MODULES[entry.op]
    if backend not in modules:
        return Cell(NO, f"the op has no backend {backend!r}")
    if dtype == torch.float64 and backend != "ref":
        return Cell(REFERENCE, FP64)
    if borrowed := _borrowed(modules, backend, (*entry.phases, *option.phases)):
        names = ", ".join(f"`{name}`" for name in borrowed)
        return Cell(REFERENCE, f"{names} by PyTorch's own operations, on the tensors' device")
    return Cell(YES, option.note)


def _borrowed(modules: Mapping[str, str], backend: str, phases: tuple[str, ...]) -> list[str]:
    """Return the phases for which the backend re-exports the reference's function."""
    if backend == "ref":
        return []
    mine, plain = (importlib.import_module(modules[name]) for name in (backend, "ref"))
    return [p for p in phases if getattr(mine, p) is getattr(plain, p, None)]
