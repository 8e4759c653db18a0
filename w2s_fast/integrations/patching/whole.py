"""Pickling a patched model in whole, which cannot work, and copying it, which does."""

from __future__ import annotations

import copy
from typing import Any, NoReturn

from w2s_fast.errors import W2SError


class Unpickled:
    """Part of a patched model that says what to do instead when something pickles it.

    The forward of a patched model is made for it when it is patched; a pickle would hold the name
    of the model's own, and give back a model whose forward no longer takes weak columns.
    """

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise W2SError(
            "a patched model cannot be pickled (torch.save(model), a copy for another process); "
            "unpatch(model) first, or save its weights: model.save_pretrained(folder), "
            "model.state_dict()"
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """A copy in this process, which needs no pickle."""
        twin = object.__new__(type(self))
        memo[id(self)] = twin
        twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return twin


class Mark(Unpickled):
    """Stands on a module that takes part in a patch, so that it is not pickled by itself."""
