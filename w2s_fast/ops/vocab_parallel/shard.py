"""The classes of one rank, where the vocabulary is split over ranks."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from w2s_fast.errors import W2SError


class Shard(NamedTuple):
    """This rank's classes: ``first`` .. ``first + width - 1`` of ``total``."""

    first: int
    width: int
    total: int
    group: Any

    def local(self, ids: Tensor) -> Tensor:
        """Return class ids within this shard; -1 for those of other shards and for padding."""
        inside = (ids >= self.first) & (ids < self.first + self.width)
        return torch.where(inside, ids - self.first, -1)

    @property
    def classes(self) -> slice:
        """The columns of this rank in a matrix with all classes."""
        return slice(self.first, self.first + self.width)


def check_vocabulary(total: int) -> None:
    """Raise ``W2SError`` for a vocabulary that is too small to be split."""
    if total <= 2:
        raise W2SError(
            f"the vocabulary has {total} classes; a split needs more than two, expected the rows "
            "of a language-model head"
        )
