"""Losses over prefixes: the sum of the loss of each, with a threshold and state of its own."""

from __future__ import annotations

import pytest
import torch
from helpers.loss_cases import case
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.losses import make_loss
from w2s_fast.losses.nested import Nested
from w2s_fast.models.classifier import PrefixHead

N = 9
WEIGHTS = (0.5, 0.0, 2.0)


def _logits() -> Tensor:
    return torch.cat([case(N, 2, seed)[0] for seed in (0, 1, 2)], dim=1)


@pytest.mark.parametrize("spec", ["xent", "logconf:aux_coef=0.7", "logconf_eleuther:window=12"])
def test_every_prefix_is_as_if_alone(spec: str) -> None:
    """Values, gradients, thresholds and states, over two calls."""
    inner, weak = make_loss(spec), case(N, 2, 2)[1]
    weight = torch.linspace(0, 2, N)
    loss, z = Nested(loss=inner, weights=WEIGHTS), _logits().requires_grad_()
    state = loss.init_state()
    alone = [inner.init_state() for _ in WEIGHTS]
    for step in (0, 1):
        ctx = {"weight": weight, "step_frac": 0.5, "step": 400 + step}
        out = loss(z, weak, **ctx, state=state)
        parts = [p.detach().requires_grad_() for p in z.chunk(3, dim=1)]
        outs = [inner(p, weak, **ctx, state=s) for p, s in zip(parts, alone, strict=True)]
        want = sum(a * o.loss_sum for a, o in zip(WEIGHTS, outs, strict=True))
        assert isinstance(want, Tensor)
        torch.testing.assert_close(out.loss_sum, want)
        (grad,) = torch.autograd.grad(out.loss_sum, z)
        grads = torch.autograd.grad(want, parts)
        torch.testing.assert_close(grad, torch.cat(grads, dim=1))
        for name, value in outs[-1].metrics.items():
            assert torch.equal(out.metrics[name], value), name
        threshold = loss.threshold(z.detach(), weak, weight=weight, state=state)
        each = [inner.threshold(p.detach(), weak, weight=weight, state=s)
                for p, s in zip(parts, alone, strict=True)]  # fmt: skip
        known = [t for t in each if t is not None]
        assert (threshold is None) == (not known)
        if threshold is not None:
            assert torch.equal(threshold, torch.stack(known))
            # The threshold of the whole is used for a part of the rows.
            half = loss(z[:4], weak[:4], weight=weight[:4], threshold=threshold, state=state)
            halves = [inner(p[:4], weak[:4], weight=weight[:4], threshold=t, state=s)
                      for p, t, s in zip(parts, known, alone, strict=True)]  # fmt: skip
            total = sum(a * o.loss_sum for a, o in zip(WEIGHTS, halves, strict=True))
            torch.testing.assert_close(half.loss_sum, total)
        advanced = loss.advance(z.detach(), weak, weight=weight, state=state)
        state, alone = out.state, [o.state for o in outs]
        if state is not None:
            assert advanced is not None
            torch.testing.assert_close(advanced, state, rtol=0, atol=0, equal_nan=True)
            each = torch.stack([s for s in alone if s is not None])
            torch.testing.assert_close(state, each, rtol=0, atol=0, equal_nan=True)
    assert loss.count(weak, weight) == inner.count(weak, weight)


def test_what_does_not_fit_is_named() -> None:
    for weights in ((), (1.0, 0.0), (-1.0, 1.0), (float("nan"), 1.0)):
        with pytest.raises(W2SError, match="Nested: weights is"):
            Nested(weights=weights)
    with pytest.raises(W2SError, match=r"logits have shape \(9, 2\); expected \(n, 3 C\)"):
        Nested(weights=WEIGHTS)(case(N, 2, 0)[0], case(N, 2, 2)[1])


def test_a_head_returns_every_prefix_in_training_and_one_otherwise() -> None:
    torch.manual_seed(0)
    head, x = PrefixHead(7, 3, (2, 5, 5, 7), 5), torch.randn(4, 7)
    want = [x[:, :m] @ head.weight[:, :m].T + head.bias for m in (2, 5, 5, 7)]
    torch.testing.assert_close(head.train()(x), torch.cat(want, dim=1))
    torch.testing.assert_close(head.eval()(x), want[1])
    head.cut()
    plain = torch.nn.functional.linear(x, head.weight, head.bias)
    torch.testing.assert_close(plain, want[1])
    assert not head.weight[:, 5:].any() and head.weight[:, :5].all()
