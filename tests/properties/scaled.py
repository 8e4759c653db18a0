"""Gradients of a 16-bit loss that is divided by a normaliser and multiplied by a loss scale.

The rule: where eager PyTorch's gradient is finite, ours errs at most twice as much; where eager's
overflows, so does ours, because that is how a loss scaler finds its scale.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from properties.cases import Record, pick, rows
from properties.dense import decided
from properties.heads import Head, head_call, heads
from properties.inputs import capped, kept_rows_of
from w2s_fast.ops import use_backend
from w2s_fast.ops.fused_linear.cross_entropy import linear_cross_entropy
from w2s_fast.ops.reference import Own, cross_entropy_reference, decide, dense_target
from w2s_fast.ops.weak_loss import weak_loss
from w2s_fast.testing import FORWARD, assert_within_budget


@dataclass(frozen=True, repr=False)
class Scaled(Record):
    """A loss, what it is divided by, and the power of two that it is multiplied by."""

    of: Any = None
    power: int = 0
    normaliser: float = 1.0

    def apply(self, loss: Tensor) -> Tensor:
        """The number that backward starts from."""
        return loss.sum() / self.normaliser * 2.0**self.power


def _scaled(of: st.SearchStrategy[Any]) -> st.SearchStrategy[Scaled]:
    return st.builds(Scaled, of=of, power=st.integers(0, 24), normaliser=pick(1.0, 1e3, 1e6, 3.0))


def losses(small: bool = False) -> st.SearchStrategy[Scaled]:
    """Calls of ``weak_loss`` in fp16 and bf16, as a training step makes them."""
    fixed = {
        "dtype": pick("fp16", "bf16"), "offset": 0.0, "marks": (), "upstream": 1.0,
        "regime": pick("plain", "wide", "confident"),
        "weight": pick("none", "random", "zeros", "mixed"),
    }  # fmt: skip
    return _scaled(rows(small, **fixed))


def head_losses(small: bool = False) -> st.SearchStrategy[Scaled]:
    """The same of a head."""
    weight = {"none": "none", "zeros": "zeros"}

    def narrow(c: Head) -> Head:
        kind = {"fp32": "fp16", "fp64": "bf16"}.get(c.rows.dtype, c.rows.dtype)
        narrowed = replace(c.rows, dtype=kind, weight=weight.get(c.rows.weight, "random"))
        # Sums that round once a chunk are asked for: they are not held against one rounding.
        return replace(c, rows=narrowed, fp32_head_gradient=True)

    return _scaled(heads(small).map(narrow))


def dense(backend: str, c: Scaled) -> None:
    """Gradients of logits."""
    call = decided(c.of)
    with use_backend(backend):
        leaf = call["logits"].detach().clone().requires_grad_()
        rest = {k: v for k, v in call.items() if k != "logits"}
        c.apply(weak_loss(leaf, **rest).loss).backward()
    assert leaf.grad is not None
    truth, eager = (_definition(c, call, d) for d in (torch.float64, torch.float32))
    least = c.apply(torch.tensor(2.0**-120, dtype=torch.float64))
    within_eager(leaf.grad, truth, eager.to(leaf.dtype), _alone(call), float(least))


def _definition(c: Scaled, call: dict[str, Any], dtype: torch.dtype) -> Tensor:
    counted = kept_rows_of(call)
    z, rule = capped(call), call["rule"]
    own = decide(z, call["weak"], counted, rule, call["aux"], call.get("threshold"))
    rest = {k: v for k, v in call.items() if k not in ("logits", "weight")}
    leaf = call["logits"].detach().to(dtype, copy=True).requires_grad_()
    weight = call.get("weight")
    weight = None if weight is None else weight.to(dtype)
    c.apply(cross_entropy_reference(leaf, weight=weight, own=own, **rest)).backward()
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad


def within_eager(
    actual: Tensor, truth: Tensor, eager: Tensor, alone: Tensor, least: float = 0.0
) -> None:
    """Twice eager's error; among those ``alone`` small entries count as much as large ones.

    Those below ``least`` come from probabilities that are subnormal numbers.

    Where a probability and its target cancel, what is left has the rounding of the two.
    """
    top = torch.finfo(actual.dtype).max
    ours, theirs = actual.isfinite(), eager.isfinite()
    edge = (truth.abs() / top - 1).abs() < 2.0**-7  # rounds to either side
    at = (ours != theirs) & ~edge
    assert not bool(at.any()), f"overflow: {actual[at][:4]} where eager is {eager[at][:4]}"
    both = ours & theirs
    size = torch.where(alone, truth.abs().log2().div(3).floor().clamp_min(-100), 100.0)
    # Subnormal numbers of bf16 and fp32 have no digits.
    both &= ((size > -40) & (truth.abs() > least)) | (truth == 0)
    for each in size[both].unique():
        of = both & (size == each)
        what = "gradients" if each == 100 else f"gradients of size 8^{float(each):.0f}"
        assert_within_budget(actual[of], truth[of], eager[of], FORWARD, what)


def _alone(call: dict[str, Any]) -> Tensor:
    """(N, V) bool: entries that are a probability times a number, and no difference."""
    z, weak = call["logits"], call["weak"]
    own = call["rule"] == "prior" or (call["rule"] != "none" and z.shape[1] == 2)
    if call["smoothing"] or call["z_loss"] or call["softcap"] or own:
        return torch.zeros(z.shape, dtype=torch.bool)
    alone = dense_target(weak, z, kept_rows_of(call))[0] == 0
    return alone & (torch.arange(z.shape[1]) != capped(call).argmax(1, keepdim=True))


def linear(backend: str, c: Scaled) -> None:
    """Gradients of hidden states, head and bias."""
    head: Head = c.of
    parts, rest = head_call(replace(head, rows=replace(head.rows, upstream=1.0)))
    dtype = parts["hidden"].dtype
    weight = parts.pop("weight", rest.pop("weight", None))
    memory = 64.0 if not head.budget else head.budget * head.rows.v * dtype.itemsize / 2**20
    threshold = None if head.rows.v == 1 else head.threshold
    leaves = {k: t.clone().requires_grad_() for k, t in parts.items()}
    with use_backend(backend):
        loss, s = linear_cross_entropy(
            leaves["hidden"], leaves["head"], bias=leaves.get("bias"), weight=weight,
            memory_mib=memory, aux=head.rows.aux, threshold=threshold, return_stats=True,
            fp32_head_gradient=head.fp32_head_gradient, **rest,
        )  # fmt: skip
        c.apply(loss).backward()
    own = Own(s.coefficient.double().nan_to_num(0.0), s.hard_class, s.max_prob, torch.zeros(()))
    results = []
    for wide in (torch.float64, dtype):
        x = {k: t.to(wide, copy=True).requires_grad_() for k, t in parts.items()}
        z = torch.nn.functional.linear(x["hidden"], x["head"], x.get("bias"))
        z = z.to(torch.promote_types(wide, torch.float32))
        c.apply(cross_entropy_reference(z, weight=weight, own=own, **rest)).backward()
        results.append(x)
    for name, leaf in leaves.items():
        actual, truth, eager = (x[name].grad for x in (leaves, *results))
        assert actual is not None and truth is not None and eager is not None
        if actual.numel() and bool(eager.isfinite().all()):
            # Sums of products: an entry may be a difference of large ones, so all share a budget.
            assert_within_budget(actual, truth, eager, FORWARD, f"gradient of {name}")
        elif not bool(eager.isfinite().all()) and float(truth.abs().max()) > 1.01 * _top(leaf):
            assert not bool(actual.isfinite().all()), f"gradient of {name}: finite, eager is not"


def _top(x: Tensor) -> float:
    return float(torch.finfo(x.dtype).max)
