"""The teacher of ``SelfTargets``: a moving average of the student's weights, or a copy of them.

Each process keeps an equal share of every weight in fp32. For a prediction the teacher's weights
take the place of the student's, which are restored bit for bit; no second model is held.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from w2s_fast.distributed.world import World
from w2s_fast.models.weights import gathered, module_tensors, share_of, whole_of
from w2s_fast.training.engine import Engine, ReadTensor, read_required
from w2s_fast.training.self_targets import SelfTargets


class Teacher:
    """The teacher of one training; every method is a collective call.

    Made before the first step or a resumption. Without weights of its own it is the student.
    """

    def __init__(self, targets: SelfTargets, engine: Engine, model: nn.Module, world: World):
        self._targets, self._engine = targets, engine
        self._model, self._world = model, world
        self._shares: dict[str, Tensor] = {}  # (1, n / processes) by name
        if targets.has_teacher:
            self._shares = {n: share_of(w, world) for n, w in engine.masters()}

    @property
    def is_final(self) -> bool:
        """Whether the training ends with the teacher's weights."""
        return self._targets.final == "teacher"

    def update(self, done: int) -> None:
        """Follow the student's weights after ``done`` steps, if an update is due."""
        n, rest = divmod(done, self._targets.refresh)
        if rest or not self._shares:
            return
        kept = self._targets.kept_at_update(n)
        for name, weight in self._engine.masters():
            self._shares[name].lerp_(share_of(weight, self._world), 1 - kept)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the model compute with the teacher's weights inside the block."""
        if not self._shares:
            yield
            return
        student = {name: self._read(weight) for name, weight in self._weights()}
        self.write()
        try:
            yield
        finally:
            self._write(student)

    def write(self) -> None:
        """Replace the model's weights by the teacher's, in their dtype."""
        self._write(self._shares)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the teacher's weights, whole and by name."""
        for name, weight in self._weights():
            yield f"teacher.{name}", whole_of(self._shares[name], weight, self._world)

    def load(self, read: ReadTensor) -> None:
        """Restore ``tensors`` of a checkpoint."""
        for name, share in self._shares.items():
            whole = read_required(read, f"teacher.{name}").to(share.device)
            self._shares[name] = share_of(whole, self._world).clone()

    def _weights(self) -> Iterator[tuple[str, Tensor]]:
        for name, weight in module_tensors(self._model).items():
            if name in self._shares:
                yield name, weight

    def _read(self, weight: Tensor) -> Tensor:
        with gathered([weight]):
            return share_of(weight, self._world).clone()

    @torch.no_grad()
    def _write(self, shares: dict[str, Tensor]) -> None:
        for name, weight in self._weights():
            whole = whole_of(shares[name], weight, self._world)
            with gathered([weight], change=True):
                weight.copy_(whole)
