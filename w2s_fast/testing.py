"""Tools for tests of ops, here or in another package: available backends and the error budget.

The budget is the only tolerance of the project. Truth is the reference in fp64; the baseline is
plain eager PyTorch in the tested dtype. The error of a result may be ``c`` times that of the
baseline (2 forward, 3 backward), plus 8 roundings of the largest true value, because a baseline can
be exact by chance. fp64 results have no wider reference: two computations may differ by 1e-13 of
the largest value, thousands of times less than a single step in fp32 would cause.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from w2s_fast.ops.reference import Own
    from w2s_fast.ops.results import Stats, WeakLossOut

FORWARD = 2.0
BACKWARD = 3.0
FP64_ROOM = 1e-13
_MAKERS = frozenset((
    torch.tensor, torch.as_tensor, torch.empty, torch.zeros, torch.ones, torch.full, torch.eye,
    torch.arange, torch.linspace, torch.rand, torch.randn, torch.randint, torch.randperm,
))  # fmt: skip


def device() -> str:
    """Return the device of the tests' tensors: ``W2S_TEST_DEVICE``, or cpu."""
    return os.environ.get("W2S_TEST_DEVICE", "cpu")


class OnDevice(TorchFunctionMode):
    """Create a test's tensors without an explicit device on this one, with the same values.

    Random numbers of a CPU generator are drawn on the CPU and moved. Calls from within ``w2s_fast``
    do not change: if the package forgets a device, the test must fail.
    """

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = torch.device(device)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Add the device to functions that create tensors."""
        given = dict(kwargs or {})
        caller = sys._getframe(1).f_globals.get("__name__", "")
        if func not in _MAKERS or given.get("device") is not None or caller.startswith("w2s_fast"):
            return func(*args, **given)
        source = given.get("generator")
        if source is not None and source.device.type != self.device.type:
            requires_grad = given.pop("requires_grad", False)
            return func(*args, **given).to(self.device).requires_grad_(requires_grad)
        return func(*args, **given, device=self.device)


def available_backends() -> tuple[str, ...]:
    """Return the names of the backends that work on this machine."""
    from w2s_fast.ops import backends_info

    return tuple(name for name, state in backends_info().items() if state == "ok")


def assert_within_budget(
    actual: Tensor, truth: Tensor, baseline: Tensor, c: float, what: str = "result"
) -> None:
    """Require max|actual - truth| <= c max|baseline - truth| + 8 eps max|truth|.

    Infinities and NaN must be at the same places as in ``truth``; all other values are compared.

    Args:
        actual: the result; ``eps`` is that of its dtype.
        truth: the result in fp64.
        baseline: result of eager PyTorch, in any dtype.
        c: ``FORWARD`` or ``BACKWARD``.
        what: name of the result in messages.

    Raises:
        AssertionError: With the error, its position and the budget.
    """
    shapes = [tuple(x.shape) for x in (actual, truth, baseline)]
    assert shapes[0] == shapes[1] == shapes[2], f"{what}: shapes {shapes} differ"
    eps = torch.finfo(actual.dtype).eps
    y, t, b = (x.detach().double().cpu() for x in (actual, truth, baseline))
    finite = t.isfinite()
    same = torch.equal(y.isfinite(), finite) and torch.equal(
        y[~finite].nan_to_num(nan=7.0), t[~finite].nan_to_num(nan=7.0)
    )
    assert same, f"{what}: infinities or NaN differ: {y[~(y == t)][:8]} for {t[~(y == t)][:8]}"
    if not bool(finite.any()):
        return
    zero = torch.zeros_like(t)
    error = torch.where(finite, (y - t).abs(), zero)
    eager = torch.where(finite & b.isfinite(), (b - t).abs(), zero).max()
    budget = float(c * eager + 8 * eps * torch.where(finite, t.abs(), zero).max())
    at = int(error.argmax())
    assert float(error.max()) <= budget, (
        f"{what}: error {float(error.max()):.3e} exceeds {budget:.3e} (eager {eager:.3e}) at "
        f"flat index {at}: is {y.flatten()[at]:.9g}, should be {t.flatten()[at]:.9g}"
    )


def assert_fp64(actual: Tensor, truth: Tensor, what: str = "result") -> None:
    """Require max|actual - truth| <= 1e-13 max|truth|, which a single step in fp32 would exceed.

    Args:
        actual: the result in fp64.
        truth: an independent computation of it in fp64.
        what: name of the result in messages.

    Raises:
        AssertionError: For another dtype, or with the error, its position and the tolerance.
    """
    assert actual.dtype == torch.float64, f"{what} is {actual.dtype}, expected float64"
    finite = truth.detach().double()
    finite = finite[finite.isfinite()]
    room = FP64_ROOM * float(finite.abs().max()) if finite.numel() else 0.0
    assert_within_budget(actual, truth, truth.detach() + room, 1.0, what)


def run_cross_entropy(
    backend: str, call: dict[str, Any], upstream: float | Tensor = 1.0
) -> tuple[WeakLossOut, Tensor, Tensor | None]:
    """Return output with statistics, gradient of the logits and of the weights of ``weak_loss``."""
    from w2s_fast.ops import use_backend
    from w2s_fast.ops.weak_loss import weak_loss

    call = dict(call)
    z = call.pop("logits").detach().requires_grad_()
    # In-place calls need logits that are not a leaf; the copy has the caller's strides.
    x = _same_layout(z) if call.get("inplace") else z
    weight = call.pop("weight", None)
    w = None if weight is None else weight.detach().clone().requires_grad_()
    with use_backend(backend):
        out = weak_loss(x, call.pop("weak"), weight=w, return_stats=True, **call)
        up = torch.as_tensor(upstream, dtype=out.loss.dtype, device=out.loss.device)
        out.loss.backward(up.expand_as(out.loss))
    assert z.grad is not None
    return out, z.grad, None if w is None else w.grad


def _same_layout(z: Tensor) -> Tensor:
    size = z.untyped_storage().size() // z.element_size()
    room = torch.empty(size, dtype=z.dtype, device=z.device)
    return room.as_strided(z.shape, z.stride(), z.storage_offset()).copy_(z)


def assert_cross_entropy(
    backend: str, call: dict[str, Any], upstream: float | Tensor = 1.0
) -> WeakLossOut:
    """Call ``weak_loss`` on ``backend`` and require loss, gradients and gate within budget.

    Truth is fp64. The baseline is eager PyTorch in fp32 on the same logits, as under autocast,
    which is stricter than eager 16-bit arithmetic. Both use the backend's gate, which must equal
    that of fp64 wherever the score is not a near tie.

    Returns:
        The output of the call, for further checks.
    """
    out, grad, grad_weight = run_cross_entropy(backend, call, upstream)
    assert out.stats is not None
    own = _decision(call, out.stats)
    truth = _oracle(call, upstream, own, torch.float64)
    if call["logits"].dtype == torch.float64:
        assert_fp64(out.loss, truth[0], "loss")
        assert_fp64(grad, truth[1], "gradient")
    else:
        eager = _oracle(call, upstream, own, torch.float32)
        assert_within_budget(out.loss, truth[0], eager[0], FORWARD, "loss")
        assert_within_budget(grad, truth[1], eager[1].to(grad.dtype), BACKWARD, "gradient")
    if grad_weight is not None:
        eager = _oracle(call, upstream, own, torch.float32)
        assert_within_budget(grad_weight, truth[2], eager[2], BACKWARD, "weight gradient")
    dropped = ~_kept(call)
    assert bool((grad[dropped] == 0).all()), "rows that do not count must have gradient exactly 0"
    assert bool((out.stats.loss[dropped] == 0).all()), "rows that do not count must have loss 0"
    return out


def _kept(call: dict[str, Any]) -> Tensor:
    from w2s_fast.ops.reference import kept_rows

    ignore = call.get("ignore_index", -100)
    return kept_rows(call["logits"], call["weak"], call.get("weight"), ignore)


def _decision(call: dict[str, Any], stats: Stats) -> Own:
    """Return the backend's gate, after checking it against that of fp64."""
    from w2s_fast.ops.reference import decide

    kept = _kept(call)
    z = torch.where(kept[:, None], call["logits"].double(), 0.0)
    if softcap := call.get("softcap"):
        z = softcap * torch.tanh(z / softcap)
    rule, aux = call.get("rule", "none"), call.get("aux", 0.0)
    own = decide(z, call["weak"], kept, rule, aux, call.get("threshold"))
    near = (own.score - own.threshold).abs() <= 1e-5 * own.threshold.abs().clamp(1e-3, 1e9)
    sure = kept & ~near if rule in ("prior", "median", "fixed") else kept
    assert torch.equal(stats.coefficient[sure], own.coefficient[sure].to(stats.loss.dtype)), "gate"
    if softcap:
        # A soft cap causes near ties, which fp32 and fp64 may break differently.
        chosen = z.gather(1, stats.hard_class[:, None])[:, 0]
        sure &= (z.amax(1) - chosen).abs() > 1e-5 * softcap
    # Logits that tie in fp32 tie in fp64: they are the same numbers.
    assert torch.equal(stats.hard_class[sure], own.hard_class[sure]), "class of the self-target"
    return own._replace(
        coefficient=stats.coefficient.double().nan_to_num(0.0), hard_class=stats.hard_class
    )


def _oracle(
    call: dict[str, Any], upstream: float | Tensor, own: Own, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    from w2s_fast.ops.reference import cross_entropy_reference

    call = {k: v for k, v in call.items() if k != "inplace"}
    z = call.pop("logits").detach().to(dtype).requires_grad_()
    weight = call.pop("weight", None)
    w = torch.ones(z.shape[0], device=z.device) if weight is None else weight
    w = w.to(dtype, copy=True).requires_grad_()
    loss = cross_entropy_reference(z, weight=None if weight is None else w, own=own, **call)
    up = torch.as_tensor(upstream, dtype=dtype, device=loss.device).expand_as(loss)
    loss.backward(up)
    assert z.grad is not None
    return loss, z.grad, torch.zeros_like(w) if w.grad is None else w.grad
