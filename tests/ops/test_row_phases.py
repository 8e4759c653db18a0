"""The phases of a backend called directly: rows that start anywhere, shards of a vocabulary."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from w2s_fast import SparseTargets
from w2s_fast.ops import dispatch, use_backend
from w2s_fast.ops.loss_call import Index, LossSpec, RowCall, Stat, new_record
from w2s_fast.ops.reference import cross_entropy_sample
from w2s_fast.ops.targets import LossInputs, make_inputs
from w2s_fast.testing import BACKWARD, FORWARD, assert_cross_entropy, assert_within_budget

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
CPU = torch.device("cpu")


def serve(name: str) -> Any:
    with use_backend(name):
        return dispatch.backend("cross_entropy", torch.empty(0))


def rows(backend: str, p: LossInputs, spec: LossSpec, grad: Tensor) -> tuple[Tensor, Tensor]:
    one = torch.ones((), dtype=p.accumulator)
    rule = spec.row_rule(p.logits.shape[1])
    call = RowCall(p, spec, *new_record(p), rule, grad=grad, scale=one)
    serve(backend).rows(call)
    return call.stats, call.index


def placed(x: Tensor, offset: int, stride: int) -> tuple[Tensor, Tensor]:
    """(a copy of ``x`` that starts ``offset`` entries into a buffer, the buffer)."""
    n, v = x.shape
    room = torch.full((offset + n * stride + 9,), -77.0, dtype=x.dtype)
    assert room.data_ptr() % 16 == 0
    view = room.as_strided((n, v), (stride, 1), offset)
    return view.copy_(x), room


# V: no whole vector in some rows, several tiles. Offset and stride put
# the rows of one call on every kind of boundary; labels and gradients are in step or are not.
@pytest.mark.parametrize("v", [5, 43])
@pytest.mark.parametrize("offset, stride", [(0, 43), (1, 48), (7, 45)])
@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
@pytest.mark.parametrize("kind", ["hard", "dense", "rest"])
def test_rows_start_anywhere_triton(
    small_tiles: None, kind: str, dtype: torch.dtype, offset: int, stride: int, v: int
) -> None:
    call = cross_entropy_sample(3, v, dtype, "cpu", seed=v, kind=kind)
    z, room = placed(call["logits"].nan_to_num(0.5), offset, stride)
    weak = call["weak"]
    if kind == "dense":
        # In step with the logits, then not: fp32 beside 16 bits, and one entry further.
        weak = placed(weak.to(dtype), offset, stride)[0] if v == 43 else weak
    p = make_inputs(z, weak)
    spec = LossSpec("argmax", 0.3, smoothing=0.1 if kind != "rest" else 0.0)
    wide = make_inputs(z.double(), weak)
    truth, eager = torch.empty(z.shape).double(), torch.empty(z.shape)
    exact, _ = rows("ref", wide, spec, truth)
    plain, _ = rows("ref", make_inputs(z.float(), weak), spec, eager)
    grads = []
    for into in (torch.empty_like(z), placed(z, offset + 1, stride)[0], z):
        stats, index = rows("triton", p, spec, into)
        assert_within_budget(stats[Stat.LOSS], exact[Stat.LOSS], plain[Stat.LOSS], FORWARD)
        assert index[Index.ARGMAX].tolist() == wide.logits.argmax(1).tolist()
        grads.append(into.clone())
    assert_within_budget(grads[0], truth, eager.to(dtype), BACKWARD)
    assert torch.equal(grads[0], grads[1]) and torch.equal(grads[0], grads[2])
    # In place wrote the rows and nothing else.
    z.fill_(-77.0)
    assert bool((room == -77.0).all())


def test_own_gradients_are_in_step_with_the_logits_triton() -> None:
    pytest.importorskip("triton", reason="backend triton is missing")
    from w2s_fast.ops.cross_entropy import triton as module

    x = torch.randn(3, 43)
    for dtype in (FP32, BF16):
        for offset, stride in ((0, 43), (1, 48), (7, 45)):
            p = make_inputs(placed(x.to(dtype), offset, stride)[0], torch.tensor([1, 2, 3]))
            grad = module.gradient_buffer(p, any_stride=True)
            assert grad.shape == (3, 43) and grad.stride(1) == 1 and grad.dtype == dtype
            for i in range(3):
                assert (grad[i].data_ptr() - p.logits[i].data_ptr()) % 16 == 0
            assert module._steps(p, grad)["G_STEP"]
            # Next to it is out of step, and must not be taken for aligned.
            assert not module._steps(p, placed(x.to(dtype), offset + 1, stride)[0])["G_STEP"]
            assert not module._steps(p, placed(x.to(dtype), offset, stride + 1)[0])["G_STEP"]


@pytest.mark.parametrize("regime", ["plain", "ties"])
def test_softcap_far_above_the_logits_triton(small_tiles: None, regime: str) -> None:
    """c tanh(u / c) is u to the last bits: nothing of it may be lost in 1 - e^(-2u/c)."""
    call = cross_entropy_sample(5, 19, FP32, "cpu", seed=2, kind="dense", regime=regime)
    call |= {"rule": "argmax", "aux": 0.3}
    assert_cross_entropy("triton", call | {"softcap": 2000.0})


@pytest.mark.parametrize("kind", ["dense", "sparse", "rest"])
def test_gradient_of_a_shard_of_the_vocabulary(backend: str, kind: str) -> None:
    """The record of whole rows and the columns of a shard; classes elsewhere are -1 there."""
    n, v, cut = 6, 23, 9
    call = cross_entropy_sample(n, v, FP32, "cpu", seed=3, kind=kind)
    z, weak = call["logits"].nan_to_num(0.5), call["weak"]
    spec = LossSpec("argmax", 0.4, z_loss=0.01, softcap=6.0)
    whole = make_inputs(z, weak)
    expected = torch.empty_like(z)
    stats, index = rows("ref", whole, spec, expected)
    scale = torch.linspace(0.5, 2.0, n)
    for begin, end in ((0, cut), (cut, v)):
        part = make_inputs(z[:, begin:end], shard(weak, begin, end))
        local = torch.where((index >= begin) & (index < end), index - begin, -1)
        grad = torch.empty(n, end - begin)
        serve(backend).gradient(RowCall(part, spec, stats, local, grad=grad, row_scale=scale))
        truth = expected[:, begin:end] * scale[:, None]
        assert_within_budget(grad, truth.double(), truth, BACKWARD)
    assert bool((index[Index.SELF] < cut).any()) and bool((index[Index.SELF] >= cut).any())


def shard(weak: Tensor | SparseTargets, begin: int, end: int) -> Tensor | SparseTargets:
    if isinstance(weak, Tensor):
        return weak[:, begin:end]
    inside = (weak.ids >= begin) & (weak.ids < end)
    return SparseTargets(torch.where(inside, weak.ids - begin, -1), weak.probs, weak.rest)


# V: no whole tile, whole tiles only, and both.
@pytest.mark.parametrize("v", [15, 64, 77])
@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
def test_exponents_in_one_fma_triton(small_tiles: None, dtype: torch.dtype, v: int) -> None:
    """Maxima near 0 and so far that other classes have probability 0, growing along a row."""
    noise = torch.randn(7, v, generator=torch.Generator().manual_seed(v))
    steps, far = torch.linspace(0, 1, v), 2.0**31 if dtype == FP32 else 2.0**21
    z = torch.stack([
        noise[0], noise[1] + 40 * steps, noise[2] - 900, noise[3] + 5000 * steps,
        noise[4] + far * (steps - 0.5), noise[5] * far, noise[6] - far * (1 - steps),
    ]).to(dtype)  # fmt: skip
    z[0, 1::3] = -torch.inf
    p = make_inputs(z, torch.arange(7) * 2)
    found = {}
    for name, wanted in (("double", True), ("ref", True), ("triton", True), ("triton", False)):
        q = p._replace(logits=z.double()) if name == "double" else p
        grad = torch.empty_like(q.logits)
        spec = LossSpec("argmax", 0.3, entropy=wanted)
        found[name, wanted] = (*rows("ref" if name == "double" else name, q, spec, grad), grad)
    (truth, _, grads), (eager, _, eager_grads), ours, without = found.values()
    for s in (Stat.LOSS, Stat.LOGS, Stat.ENTROPY, Stat.SCORE):
        assert_within_budget(ours[0][s], truth[s], eager[s], 4.0)
    assert_within_budget(ours[2], grads, eager_grads, BACKWARD)
    assert ours[1][Index.ARGMAX].equal(z.argmax(1))
    kept = [s for s in Stat if s is not Stat.ENTROPY]
    assert torch.equal(ours[0][kept], without[0][kept]) and torch.equal(ours[2], without[2])
    assert not without[0][Stat.ENTROPY].any()


class Spy:
    """Stands in for the interpreter's memory: notes addresses, touches only what is allocated."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tensors: list[Tensor]) -> None:
        if torch.cuda.is_available():
            pytest.skip("the interpreter is off where there is a GPU")
        from triton.runtime import interpreter

        self.real, self.far = interpreter._interpreter, {"load": set(), "store": set()}
        self.tiles: list[Any] = []
        self.spans = [(x.data_ptr(), x.data_ptr() + x.nbytes) for x in tensors]
        monkeypatch.setattr(interpreter, "_interpreter", self)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def _near(self, what: str, ptrs: Any, mask: Any) -> Any:
        if ptrs.ndim == 3:
            self.tiles.append(ptrs)
        inside = sum(((ptrs >= a) & (ptrs < b)) for a, b in self.spans) > 0
        self.far[what] |= set(ptrs[mask & ~inside].tolist())
        return mask & inside

    def load(self, ptrs: Any, mask: Any, other: Any, dtype: Any) -> Any:
        return self.real.load(ptrs, self._near("load", ptrs, mask), other, dtype)

    def store(self, ptrs: Any, value: Any, mask: Any) -> Any:
        return self.real.store(ptrs, value, self._near("store", ptrs, mask))


@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
def test_whole_vectors_start_on_16_bytes_triton(
    small_tiles: None, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    """The interpreter forgives what a GPU answers with a fault: a wide access off its grid."""
    v, size = 43, dtype.itemsize
    for offset in (0, 1, 3, 7):
        z, room = placed(torch.randn(2, v).to(dtype), offset, v + 2)
        p = make_inputs(z, torch.tensor([3, 42]))
        with monkeypatch.context() as patch:
            spy = Spy(patch, [room])
            spy.spans = [(0, 2**63 - 1)]
            rows("triton", p, LossSpec("argmax", 0.3), z)
            serve("triton").scale_(z, torch.tensor(2.0))
        assert len(spy.tiles) >= 8
        for at in spy.tiles:
            assert (at[..., 0] % 16 == 0).all() and (at[..., 1] - at[..., 0] == size).all()


@pytest.mark.parametrize("kernel", ["rows", "gradient", "scale"])
def test_offsets_of_rows_are_64_bit_triton(
    small_tiles: None, monkeypatch: pytest.MonkeyPatch, kernel: str
) -> None:
    """N V > 2^31 entries, by the addresses of the last of two rows that lie that far apart."""
    from w2s_fast.kernels import _tile
    from w2s_fast.kernels import cross_entropy as kernels

    v, stride = 21, 2**31 + 3
    z, g, q = (torch.zeros(v, dtype=BF16) for _ in range(3))
    f, i = torch.zeros(64), torch.zeros(64, dtype=torch.int64)
    spy = Spy(monkeypatch, [z, g, q, f, i])
    tile = _tile.tile(v, 2)
    common = {"KIND": kernels.KINDS["dense"], "CAP": False, "G_STEP": True, "Q_STEP": True}
    common |= {"SMOOTH": False, "KBLOCK": 1, **tile}
    if kernel == "rows":
        kernels.rows_kernel[(2,)](
            z, stride, g, stride, None, q, stride, None, None, f, None, f, f, i, None, 2, v, 0, 0,
            0.0, 0.0, 0.0, 0.0, 0.0, RULE=0, FOCAL=False, WINDOW=False, ENTROPY=True, **common,
        )  # fmt: skip
    elif kernel == "gradient":
        f[8 * 2 + 4 :] = 1.0  # a row with factor 0 is not read
        f[10 * 2 : 11 * 2] = 1.0
        kernels.gradient_kernel[(2,)](
            z, stride, g, stride, None, q, stride, None, f[60:], 0, f, i, 2, v, 0, 0,
            0.0, 0.0, 0.0, **common,
        )  # fmt: skip
    else:
        f[0] = 2.0
        kernels.scale_kernel[(2, 2)](g, stride, f, v, **tile)

    def row(x: Tensor) -> set[int]:
        return {x.data_ptr() + 2 * (stride + c) for c in range(v)}

    read = row(g) if kernel == "scale" else row(z) | row(q)
    assert spy.far == {"load": read, "store": row(g)}
