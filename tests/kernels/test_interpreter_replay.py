"""What repeating the plan of an operation must not change in Triton's interpreter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

triton = pytest.importorskip("triton", reason="backend triton is missing")
if not triton.knobs.runtime.interpret:
    pytest.skip("kernels are compiled in this run", allow_module_level=True)

import triton.language as tl  # noqa: E402
from helpers.triton_replay import Replay  # noqa: E402
from triton.runtime import interpreter  # noqa: E402

X, Y = torch.tensor([1.5, -2.0, 0.0, 3.0]), torch.tensor([2.0, 0.5, -1.0, float("nan")])


@triton.jit
def products_kernel(x_ptr, y_ptr, out_ptr):
    at = tl.arange(0, 4)
    x = tl.load(x_ptr + at)
    y = tl.load(y_ptr + at)
    tl.store(out_ptr + at, x * x)
    tl.store(out_ptr + 4 + at, x * y)
    tl.store(out_ptr + 8 + at, y * x)
    tl.store(out_ptr + 12 + at, y * y)
    tl.store(out_ptr + 16 + at, (x == x).to(tl.float32))
    tl.store(out_ptr + 20 + at, (y == y).to(tl.float32))


@triton.jit
def numbers_kernel(x_ptr, out_ptr):
    at = tl.arange(0, 4)
    x = tl.load(x_ptr + at)
    tl.store(out_ptr + at, x * 0.0)
    tl.store(out_ptr + 4 + at, x * True)
    tl.store(out_ptr + 8 + at, x * 2)
    tl.store(out_ptr + 12 + at, x * 2.5)
    tl.store(out_ptr + 16 + at, tl.where(at < 2, x, float("nan")))
    tl.store(out_ptr + 20 + at, tl.where(at < 3, x, float("nan")))


@triton.jit
def memory_kernel(count_ptr, out_ptr):
    for _ in range(3):
        tl.atomic_add(count_ptr, 1)
        seen = tl.load(count_ptr)
        tl.store(out_ptr + seen - 1, tl.program_id(0) + 10 * tl.num_programs(0))


@triton.jit
def dtypes_kernel(x_ptr, out_ptr):
    at = tl.arange(0, 4)
    tl.store(out_ptr + at, tl.load(x_ptr + at).to(tl.float32) / 3)


def run(kernel: Any, *tensors: Tensor, programs: int = 1, size: int = 24) -> Tensor:
    out = torch.full((size,), -7.0)
    kernel[(programs,)](*tensors, out)
    return out


def test_arguments_are_told_apart() -> None:
    """x x and x y have the same types."""
    equal = [X == X, Y == Y]
    wanted = torch.cat([X * X, X * Y, Y * X, Y * Y, *(e.float() for e in equal)])
    for _ in range(2):
        torch.testing.assert_close(
            run(products_kernel, X, Y), wanted, rtol=0, atol=0, equal_nan=True
        )


def test_numbers_are_told_apart() -> None:
    """Of equal hash, and a NaN that equals nothing."""
    nan = torch.tensor(float("nan"))
    at = torch.arange(4)
    parts = [X * 0.0, X * 1, X * 2, X * 2.5]
    parts += [torch.where(at < k, X, nan) for k in (2, 3)]
    for _ in range(2):
        found = run(numbers_kernel, X)
        torch.testing.assert_close(found, torch.cat(parts), rtol=0, atol=0, equal_nan=True)


def test_memory_and_programs_are_looked_at_again() -> None:
    count = torch.zeros(1, dtype=torch.int32)
    found = run(memory_kernel, count, programs=2, size=6)
    assert found.tolist() == [20.0] * 3 + [21.0] * 3 and int(count) == 6


def test_dtypes_are_told_apart() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.int32, torch.int64):
        found = run(dtypes_kernel, X.to(dtype), size=4)
        torch.testing.assert_close(found, X.to(dtype).float() / 3)


class Semantic(interpreter.TritonSemantic):
    """Counts what is worked out."""

    def __init__(self) -> None:
        super().__init__(interpreter.InterpreterBuilder())
        self.calls = 0

    def mul(self, *args: Any) -> Any:
        self.calls += 1
        return super().mul(*args)


def number(value: float) -> Any:
    handle = interpreter.interpreter_builder.get_fp32(value)
    return tl.tensor(handle, tl.float32)


def test_an_operation_is_worked_out_once() -> None:
    semantic = Semantic()
    double = Replay(semantic).wrapped(lambda x, by, _semantic: _semantic.mul(x, by, True))
    assert [float(double(number(x), 2.0).handle.data[0]) for x in (1.0, 3.0, 5.0)] == [2, 6, 10]
    assert semantic.calls == 1
    double(number(1.0), 4.0)
    assert semantic.calls == 2


def test_an_operation_that_looks_at_data_is_made_as_ever() -> None:
    """Its path may differ the next time."""
    replay = Replay(Semantic())

    def halve_or_double(x: Any, _semantic: Any) -> Any:
        large = replay.looked(bool(x.handle.data > 2))
        return _semantic.mul(x, 0.5 if large else 2.0, True)

    halve_or_double = replay.wrapped(halve_or_double)
    assert [float(halve_or_double(number(x)).handle.data[0]) for x in (1.0, 3.0)] == [2.0, 1.5]


def test_tensors_tell_when_they_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(Replay, "looked", lambda self, value: seen.append(value) or value)

    scope = interpreter._LangPatchScope()
    interpreter._patch_lang_tensor(tl.core.tensor, scope)
    try:
        assert bool(number(1.0)) and range(5)[number(3.0)] == 3
    finally:
        scope.restore()
    assert seen == [True, 3]


def test_handles_from_elsewhere_make_no_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """Data that did not pass through the builder would be repeated as it was."""
    seen: list[float] = []

    def create_note(self: Any, handle: Any) -> None:
        seen.append(float(handle.data[0]))

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_note", create_note, raising=False)

    def note_double(x: Any, _semantic: Any) -> None:
        _semantic.builder.create_note(interpreter.TensorHandle(x.handle.data * 2, tl.float32))

    note_double = Replay(Semantic()).wrapped(note_double)
    for x in (1.0, 3.0):
        note_double(number(x))
    assert seen == [2.0, 6.0]


def test_plans_depend_on_the_options_of_the_builder() -> None:
    semantic = Semantic()
    add = Replay(semantic).wrapped(lambda x, y, _semantic: _semantic.add(x, y, True))
    most, one = (tl.tensor(semantic.builder.get_int32(i), tl.int32) for i in (2**31 - 1, 1))
    for checked in (True, False, True):
        semantic.builder.options = interpreter.InterpreterOptions(sanitize_overflow=checked)
        add(one, one)
        if checked:
            with pytest.raises(AssertionError, match="overflow"):
                add(most, one)
        else:
            add(most, one)
