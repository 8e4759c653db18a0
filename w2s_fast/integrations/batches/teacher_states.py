"""Weak labels as the hidden states of a teacher and one head, stored for training.

N positions of width D and V classes take N D + V D numbers; logits would take N V. A stored teacher
is a stage of a ``Store``: two safetensors files in a folder, published whole or not at all, whose
checksums are verified when it is opened. States are memory-mapped: a batch reads its own rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.ops.fused_linear.teacher.checks import make_teacher
from w2s_fast.ops.fused_linear.teacher.heads import TeacherHead
from w2s_fast.store import Artifact, Store

STAGE = "teacher_states"
STATES, HEAD = "states.safetensors", "head.safetensors"


@dataclass(frozen=True, eq=False)
class TeacherStates:
    """The stored hidden states of a teacher, and its head.

    Attributes:
        states: (N, D), memory-mapped.
        head: (V, D) of the same dtype.
        bias: (V,), or None.
        softcap: soft-cap of the teacher's logits; 0 for none.
        digest: SHA-256 of the stored files.
    """

    states: Tensor
    head: Tensor
    bias: Tensor | None
    softcap: float
    digest: str

    def __len__(self) -> int:
        return len(self.states)

    def term(
        self, rows: Tensor | slice, scale: float | Tensor = 1.0, device: torch.device | str = "cpu"
    ) -> TeacherHead:
        """Return a term of ``linear_cross_entropy(teacher=[...])`` for some positions.

        Args:
            rows: (M,) integer positions, or a slice; only these are read from disk.
            scale: the coefficient of the term.
            device: where the batch is. Move ``head`` and ``bias`` there once, with ``to``.
        """
        return TeacherHead(
            scale, self.states[rows].to(device), self.head.to(device),
            None if self.bias is None else self.bias.to(device), self.softcap,
        )  # fmt: skip

    def to(self, device: torch.device | str) -> TeacherStates:
        """Return it with head and bias on ``device``; states stay on disk."""
        bias = None if self.bias is None else self.bias.to(device)
        head = self.head.to(device)
        return TeacherStates(self.states, head, bias, self.softcap, self.digest)


def store_teacher_states(
    store: Store,
    config: Mapping[str, Any],
    states: Tensor,
    head: Tensor,
    *,
    bias: Tensor | None = None,
    softcap: float = 0.0,
) -> TeacherStates:
    """Store a teacher, or open it where it is stored.

    Args:
        store: its folder must exist.
        config: what identifies the teacher, as plain values: its checkpoint and its texts.
        states: (N, D) last hidden states of the positions to be labelled, fp32, bf16, fp16 or fp64.
        head: (V, D) weight of its language-model head, same dtype.
        bias: (V,) of the head, or None.
        softcap: soft-cap of its logits; 0 for none.

    Raises:
        W2SError: for shapes or dtypes that do not fit, values that are not finite, a folder that
            cannot be written, or another teacher stored under the same ``config``.
    """
    _check(states, head, bias, softcap)
    tensors = {"head": head} if bias is None else {"head": head, "bias": bias}
    about = {"softcap": repr(float(softcap)), "content": _content(states, *tensors.values())}
    with store.building(STAGE, config, {}) as build:
        if build.artifact is None:
            _save({"states": states}, build.path / STATES, about)
            _save(tensors, build.path / HEAD, about)
    assert build.artifact is not None
    stored, saved = _open(build.artifact)
    for key, value in about.items():
        if saved.get(key) != value:
            raise W2SError(
                f"{build.artifact.path} holds a teacher of other {key}, stored with the same "
                "config; expected a config that identifies one teacher, add what differs to it"
            )
    return stored


def open_teacher_states(store: Store, config: Mapping[str, Any]) -> TeacherStates:
    """Open a stored teacher; its checksums are verified.

    Raises:
        W2SError: if nothing is stored under ``config``, or what is stored is damaged.
    """
    artifact = store.find(STAGE, store.key(STAGE, config, {}))
    if artifact is None:
        raise W2SError(
            f"{store.root} holds no states of the teacher {dict(config)!r}; expected those that "
            "store_teacher_states has stored with the same config"
        )
    return _open(artifact)[0]


def _check(states: Tensor, head: Tensor, bias: Tensor | None, softcap: float) -> None:
    if not isinstance(states, Tensor) or states.dim() != 2 or not len(states):
        shown = tuple(states.shape) if isinstance(states, Tensor) else type(states).__name__
        raise W2SError(f"states are {shown}; expected a tensor (N, D) with at least one row")
    classes = head.shape[0] if isinstance(head, Tensor) and head.dim() else 0
    # The checks of a call, in which states are one term.
    make_teacher([TeacherHead(1.0, states, head, bias, softcap)], len(states), classes, states)
    if not bool(torch.isfinite(states).all()):
        row = int((~torch.isfinite(states).all(1)).nonzero()[0])
        raise W2SError(f"states[{row}] holds NaN or infinity; expected finite hidden states")


def _content(*tensors: Tensor) -> str:
    digest = hashlib.sha256()
    for t in tensors:
        digest.update(f"{t.dtype} {tuple(t.shape)}".encode())
        digest.update(t.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _save(tensors: Mapping[str, Tensor], path: Path, about: dict[str, str]) -> None:
    from safetensors.torch import save_file

    plain = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    save_file(plain, path, metadata=about)


def _open(artifact: Artifact) -> tuple[TeacherStates, dict[str, str]]:
    from safetensors import safe_open

    with safe_open(artifact.path / STATES, framework="pt") as f:
        states, saved = f.get_tensor("states"), f.metadata()
    with safe_open(artifact.path / HEAD, framework="pt") as f:
        head = f.get_tensor("head")
        bias = f.get_tensor("bias") if "bias" in f.keys() else None  # noqa: SIM118 - no mapping
    softcap = float(saved["softcap"])
    return TeacherStates(states, head, bias, softcap, artifact.digest), saved
