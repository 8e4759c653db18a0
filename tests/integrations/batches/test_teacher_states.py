"""Stored teachers: what is read is what was written, lazily, and damage is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.damage import damaged
from torch import Tensor

from w2s_fast import TeacherHead, W2SError, linear_cross_entropy
from w2s_fast.integrations.batches import open_teacher_states, store_teacher_states
from w2s_fast.store import Store, StoreWarning

N, D, V = 12, 5, 17
WHO = {"model": "weak", "texts": "train"}


def sample(dtype: torch.dtype = torch.bfloat16) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randn(N, D, generator=g).to(dtype), torch.randn(V, D, generator=g).to(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_round_trip(tmp_path: Path, dtype: torch.dtype) -> None:
    states, head = sample(dtype)
    bias = torch.arange(V).to(dtype)
    store = Store(tmp_path)
    made = store_teacher_states(store, WHO, states, head, bias=bias, softcap=30.0)
    for teacher in (made, open_teacher_states(store, WHO)):
        assert torch.equal(teacher.states, states) and torch.equal(teacher.head, head)
        assert teacher.bias is not None and torch.equal(teacher.bias, bias)
        assert (teacher.softcap, len(teacher)) == (30.0, N)
        assert teacher.states.dtype == dtype
        assert teacher.digest == made.digest
    assert sorted(p.name for p in tmp_path.glob("teacher_states-*/*")) == [
        "head.safetensors", "stage.json", "states.safetensors"
    ]  # fmt: skip


def test_a_loss_from_stored_states_is_that_of_the_states(tmp_path: Path) -> None:
    states, head = sample(torch.float32)
    teacher = store_teacher_states(Store(tmp_path), WHO, states, head, softcap=9.0)
    hidden, lm_head = torch.randn(4, 6), torch.randn(V, 6)
    for rows in (torch.tensor([3, 0, 11, 3]), slice(2, 6)):
        term = teacher.term(rows, 1.5)
        assert term.scale == 1.5 and term.softcap == 9.0
        stored = linear_cross_entropy(hidden, lm_head, teacher=[term])
        direct = TeacherHead(1.5, states[rows], head, None, 9.0)
        assert torch.equal(stored, linear_cross_entropy(hidden, lm_head, teacher=[direct]))


def test_states_are_mapped_not_read(tmp_path: Path) -> None:
    """The pages of a large file are read when a batch asks for them."""
    store = Store(tmp_path)
    states = torch.ones(1 << 14, 1 << 10)  # 64 MiB
    store_teacher_states(store, WHO, states, torch.ones(V, 1 << 10))
    del states
    before = _resident()
    teacher = open_teacher_states(store, WHO)
    assert teacher.states.shape == (1 << 14, 1 << 10)
    assert _resident() - before < 32 << 20
    assert float(teacher.term(slice(5, 7)).hidden.sum()) == 2 << 10


def _resident() -> int:
    import resource

    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def test_stored_once(tmp_path: Path) -> None:
    states, head = sample()
    store = Store(tmp_path)
    first = store_teacher_states(store, WHO, states, head)
    file = next(tmp_path.glob("teacher_states-*")) / "states.safetensors"
    written = file.stat().st_mtime_ns
    assert store_teacher_states(store, WHO, states, head).digest == first.digest
    assert file.stat().st_mtime_ns == written
    store_teacher_states(store, {**WHO, "texts": "test"}, states + 1, head)
    assert len(list(tmp_path.glob("teacher_states-*"))) == 2


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"states": sample()[0] + 1}, "content"),
        ({"head": sample()[1] + 1}, "content"),
        ({"bias": torch.zeros(V).bfloat16()}, "content"),
        ({"softcap": 30.0}, "softcap"),
    ],
    ids=["states", "head", "bias", "softcap"],
)
def test_another_teacher_under_the_same_name(
    tmp_path: Path, change: dict[str, Any], what: str
) -> None:
    states, head = sample()
    store = Store(tmp_path)
    store_teacher_states(store, WHO, states, head)
    with pytest.raises(W2SError, match=f"holds a teacher of other {what}.*add what differs"):
        store_teacher_states(store, WHO, **({"states": states, "head": head} | change))


@pytest.mark.parametrize("name", ["states.safetensors", "head.safetensors"])
def test_damage_is_refused(tmp_path: Path, name: str) -> None:
    states, head = sample()
    store = Store(tmp_path)
    store_teacher_states(store, WHO, states, head)
    file = next(tmp_path.glob("teacher_states-*")) / name
    file.write_bytes(next(damaged(file.read_bytes(), 1)))
    with (
        pytest.warns(StoreWarning, match=f"{name} differs from its checksum"),
        pytest.raises(W2SError, match="holds no states of the teacher"),
    ):
        open_teacher_states(store, WHO)
    assert torch.equal(store_teacher_states(store, WHO, states, head).states, states)


def test_nothing_stored(tmp_path: Path) -> None:
    with pytest.raises(W2SError, match="holds no states of the teacher .*same config"):
        open_teacher_states(Store(tmp_path), WHO)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"states": torch.zeros(3)}, r"states are \(3,\); expected a tensor \(N, D\)"),
        ({"states": torch.zeros(0, D)}, "expected a tensor .* with at least one row"),
        ({"states": [0.5]}, "states are list"),
        ({"states": torch.full((2, D), torch.nan).bfloat16()}, r"states\[0\] holds NaN"),
        ({"head": torch.zeros(V, D)}, "head is torch.float32, its hidden states torch.bfloat16"),
        ({"head": torch.zeros(V, 3).bfloat16()}, r"expected \(V, D\) with D = 5"),
        ({"head": 3}, "head is int; expected a tensor"),
        ({"bias": torch.zeros(3).bfloat16()}, r"bias has shape \(3,\); expected \(17,\)"),
        ({"softcap": -1.0}, "softcap is -1.0"),
    ],
    ids=str,
)
def test_bad_input(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    states, head = sample()
    with pytest.raises(W2SError, match=message):
        store_teacher_states(Store(tmp_path), WHO, **({"states": states, "head": head} | change))
    assert not list(tmp_path.iterdir())
