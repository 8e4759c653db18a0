"""What every op can be asked for, and what each backend does with it. ``docs/support.md`` is this.

A backend's part is read off its code: fp64 is always the reference's, and a backend that hands out
the reference's own function for a phase serves that phase with it. What a caller can ask for is
listed here, and tests hold the list against the signatures: an argument without a row is an error,
so is a row that fails, a hole that does not raise what it says, and a document that differs.
Nothing in the package imports this module.
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
    """One thing a caller can ask of an op.

    Attributes:
        name: the row's title.
        call: arguments that ask for it; what a test adds to its sample call.
        sample: form of the sample call (kind of weak labels, number of classes).
        phases: functions of the backend it needs beyond those of its entry.
        refuses: why it cannot be had; empty where it can. Then ``error`` is raised and says
            ``says``.
        note: what a caller must know where it can be had.
    """

    name: str
    call: Mapping[str, Any] = field(default_factory=dict)
    sample: Mapping[str, Any] = field(default_factory=dict)
    phases: tuple[str, ...] = ()
    refuses: str = ""
    error: type[Exception] = W2SError
    says: str = ""
    note: str = ""


@dataclass(frozen=True)
class Entry:
    """One public function or group of classes.

    Attributes:
        name: the table's title.
        homes: ``module:function`` whose arguments the options must cover.
        op: the op in ``OPS`` whose backends serve it; empty for plain PyTorch on few numbers.
        phases: functions of the backend that every call goes through.
        takes: arguments that are its data, or are covered by the sample call itself.
        options: the rows.
    """

    name: str
    homes: tuple[str, ...]
    op: str
    phases: tuple[str, ...]
    takes: tuple[str, ...]
    options: tuple[Option, ...]

    def functions(self) -> list[Callable[..., Any]]:
        """Return the functions that ``homes`` names."""
        functions = []
        for home in self.homes:
            module, _, path = home.partition(":")
            target: Any = importlib.import_module(module)
            for name in path.split("."):
                target = getattr(target, name)
            functions.append(target)
        return functions

    def arguments(self) -> set[str]:
        """Return every argument of the functions that is not data."""
        names = {n for f in self.functions() for n in inspect.signature(f).parameters}
        return names - {*self.takes, "self"}


def cell(entry: Entry, option: Option, backend: str, dtype: torch.dtype) -> Cell:
    """Return what ``backend`` does with ``option`` in ``dtype``; imports the backend's module."""
    if option.refuses:
        return Cell(NO, option.refuses)
    if not entry.op:
        return Cell(YES, option.note)
    homes = dispatch.MODULES[entry.op]
    if backend not in homes:
        return Cell(NO, f"the op has no backend {backend!r}")
    if dtype == torch.float64 and backend != "ref":
        return Cell(REFERENCE, FP64)
    if borrowed := _borrowed(homes, backend, (*entry.phases, *option.phases)):
        names = ", ".join(f"`{name}`" for name in borrowed)
        return Cell(REFERENCE, f"{names} by PyTorch's own operations, on the tensors' device")
    return Cell(YES, option.note)


def _borrowed(homes: Mapping[str, str], backend: str, phases: tuple[str, ...]) -> list[str]:
    """Return the phases for which the backend re-exports the reference's function."""
    if backend == "ref":
        return []
    mine, plain = (importlib.import_module(homes[name]) for name in (backend, "ref"))
    return [p for p in phases if getattr(mine, p) is getattr(plain, p, None)]
