"""Tasks: where labelled texts come from. To add one, write its file and one line in `TASKS`."""

from __future__ import annotations

from importlib import import_module

from w2s_fast.errors import W2SError, nearest
from w2s_fast.tasks._base import Examples, Inputs, PretrainConfig, Task, TaskConfig, TaskData
from w2s_fast.tasks.agreement import Agreement
from w2s_fast.tasks.amazon_polarity import AMAZON_POLARITY
from w2s_fast.tasks.anthropic_hh import ANTHROPIC_HH
from w2s_fast.tasks.boolq import BOOLQ
from w2s_fast.tasks.cosmos_qa import COSMOS_QA
from w2s_fast.tasks.local import Local
from w2s_fast.tasks.sciq import SCIQ

__all__ = [
    "TASKS",
    "Examples",
    "Inputs",
    "PretrainConfig",
    "Task",
    "TaskConfig",
    "TaskData",
    "get_task",
]

TASKS: dict[str, Task] = {
    "agreement": Agreement(),
    "local": Local(),
    "sciq": SCIQ,
    "boolq": BOOLQ,
    "cosmos_qa": COSMOS_QA,
    "amazon_polarity": AMAZON_POLARITY,
    "anthropic_hh": ANTHROPIC_HH,
}


def get_task(name: str) -> Task:
    """Return a task by its key in ``TASKS``, or import it from "pkg.module:Name".

    Raises:
        W2SError: There is no such task, or what was imported has no ``load``.
    """
    if name in TASKS:
        return TASKS[name]
    module_name, colon, attribute = name.partition(":")
    if not colon:
        raise W2SError(
            f"unknown task {name!r}{nearest(name, TASKS)}; expected one of {', '.join(TASKS)}, or "
            "'pkg.module:Name' for your own"
        )
    try:
        found = getattr(import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise W2SError(
            f"task {name!r} could not be imported ({error}); expected 'pkg.module:Name' on the "
            "Python path"
        ) from error
    task = found() if isinstance(found, type) else found
    if not isinstance(task, Task):
        raise W2SError(f"task {name!r} has no load(cfg, seed); expected a task or its class")
    return task
