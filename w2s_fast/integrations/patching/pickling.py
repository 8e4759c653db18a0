"""Refuse to pickle a patched model; copying one in this process works."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NoReturn

from w2s_fast.errors import W2SError


class NotPicklable:
    """Base of objects on a patched model that raise an error with alternatives when pickled.

    The forward of a patched model is created by ``patch``. A pickle would refer to the model's own
    forward by name and restore a model that takes no weak columns.
    """

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise W2SError(
            "a patched model cannot be pickled (torch.save(model), a copy for another process); "
            "unpatch(model) first, or save its weights: model.save_pretrained(folder), "
            "model.state_dict()"
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """Copy in this process, which needs no pickle."""
        other = object.__new__(type(self))
        memo[id(self)] = other
        other.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return other


class PatchMark(NotPicklable):
    """Marks a module that belongs to a patched model, so that it is not pickled by itself.

    Args:
        replaced: the forward that another library had set on the module, or None.
    """

    def __init__(self, replaced: Callable[..., Any] | None) -> None:
        self.replaced = replaced
