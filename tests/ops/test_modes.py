"""Every way to differentiate: the right numbers or an error, never a silent zero.

The table ``CALLS`` has one differentiable input of one public call in each row. A new public name
fails ``test_every_public_name_is_in_the_table`` until it has rows, or is listed as constant.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.differentiable_calls import (
    CALLS,
    POSITIVE,
    TEACHER_ROWS,
    TWO,
    Call,
    D,
    H,
    N,
    Q,
    V,
    W,
    Y,
    Z,
)  # fmt: skip
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.utils.checkpoint import checkpoint

import w2s_fast
from w2s_fast.ops import use_backend
from w2s_fast.ops.lazy_logits import Projected
from w2s_fast.ops.weak_loss import batch_threshold, weak_loss

REFUSAL = "has no forward-mode derivative|not differentiable twice"

# Constants by contract: no derivative flows through them in any mode.
CONSTANT = {
    "balanced_bias", "kth_value", "linear_topk_ids", "pack_topk", "quantile", "top_fraction_mask",
}  # fmt: skip
# Neither takes nor gives tensors.
NO_TENSORS = {
    "ModelConfig", "RunConfig", "SparseTargets", "SupervisorsConfig", "SweepConfig", "TaskConfig",
    "TeacherHead", "TrainConfig",
    "W2SError", "__version__", "make_loss", "patch", "run", "sweep", "to_dataframe", "unpatch",
}  # fmt: skip


def total(f: Call) -> Call:
    return lambda x: f(x).sum()


def gradient(f: Call, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    f(x).sum().backward()
    assert x.grad is not None
    return x.grad


def truth(name: str) -> Tensor:
    f, x, plain = CALLS[name]
    return gradient(plain or f, x)


def same(actual: Any, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=2e-5, atol=2e-6)


def test_every_public_name_is_in_the_table() -> None:
    covered = {name.split()[0] for name in CALLS} | CONSTANT | NO_TENSORS
    covered |= {"vocab_parallel_cross_entropy", "vocab_parallel_logprob"}  # below, with a group
    assert set(w2s_fast.__all__) <= covered


def _checkpointed(reentrant: bool) -> Callable[[Call, Tensor], Tensor]:
    return lambda f, x: gradient(lambda a: checkpoint(f, a, use_reentrant=reentrant), x)


def _vjp(f: Call, x: Tensor) -> Tensor:
    out, back = vjp(f, x)
    return back(torch.ones_like(out))[0]


def _batched(f: Call, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    out = f(x)
    up = torch.stack([torch.ones_like(out), 2 * torch.ones_like(out)])
    one, two = torch.autograd.grad(out, x, up, is_grads_batched=True)[0]
    same(two, 2 * one)
    return one


def _under(context: Callable[[], Any]) -> Callable[[Call, Tensor], Tensor]:
    def run(f: Call, x: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        with context():
            out = f(x).sum()
        return torch.autograd.grad(out, x)[0]

    return run


def _per_sample(f: Call, x: Tensor) -> Tensor:
    one, two = vmap(grad(total(f)))(torch.stack([x, x * 0.5]))
    same(two, gradient(f, x * 0.5))
    return one


def _jacobian_rows(f: Call, x: Tensor) -> Tensor:
    j = jacrev(f)(x)
    return j.sum(0) if j.dim() > x.dim() else j


REVERSE: dict[str, Callable[[Call, Tensor], Any]] = {
    "grad": lambda f, x: grad(total(f))(x),
    "vjp": _vjp,
    "jacrev": _jacobian_rows,
    "vmap(grad)": _per_sample,
    "is_grads_batched": _batched,
    "functional.vjp": lambda f, x: torch.autograd.functional.vjp(total(f), x)[1],
    "checkpoint reentrant": _checkpointed(True),
    "checkpoint": _checkpointed(False),
    "anomaly": _under(lambda: torch.autograd.set_detect_anomaly(True)),
    "save_on_cpu": _under(torch.autograd.graph.save_on_cpu),
}


@pytest.mark.parametrize("name", CALLS)
def test_reverse_modes_are_right(name: str) -> None:
    f, x, _ = CALLS[name]
    expected = truth(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "Anomaly Detection has been enabled")
        for mode, run in REVERSE.items():
            try:
                same(run(f, x), expected)
            except Exception as e:
                raise AssertionError(f"{mode} of {name}: {e}") from e


@pytest.mark.parametrize("name", TEACHER_ROWS)
def test_rows_of_a_teacher(name: str) -> None:
    """Every mode but a batched upstream, which is refused."""
    f, x, plain = TEACHER_ROWS[name]
    assert plain is not None
    expected = gradient(plain, x)
    for mode, run in REVERSE.items():
        if mode == "is_grads_batched":
            with pytest.raises(RuntimeError, match="with a teacher has no batched backward"):
                run(f, x)
            continue
        try:
            same(run(f, x), expected)
        except Exception as e:
            raise AssertionError(f"{mode} of {name}: {e}") from e
    for run in (*FORWARD.values(), _twice):
        with pytest.raises(RuntimeError, match=REFUSAL):
            run(f, x)


def _dual(f: Call, x: Tensor) -> Tensor | None:
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(f(forward_ad.make_dual(x, x.cos()))).tangent


def _along(matrix: Tensor, x: Tensor) -> Tensor:
    return (matrix * x.cos()).flatten(-x.dim()).sum(-1)


FORWARD: dict[str, Callable[[Call, Tensor], Any]] = {
    "jvp": lambda f, x: jvp(f, (x,), (x.cos(),))[1],
    "dual": _dual,
    "jacfwd": lambda f, x: _along(jacfwd(f)(x), x),
    "vmap(jvp)": lambda f, x: vmap(lambda t: jvp(f, (x,), (t,))[1])(x.cos()[None])[0],
    "vectorized": lambda f, x: _along(
        torch.autograd.functional.jacobian(f, x, vectorize=True, strategy="forward-mode"), x
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_forward_mode_is_right_or_refused(name: str) -> None:
    f, x, _ = CALLS[name]
    expected = (truth(name) * x.cos()).sum()
    for mode, run in FORWARD.items():
        try:
            actual = run(f, x)
        except RuntimeError as e:
            assert "has no forward-mode derivative" in str(e), f"{mode} of {name}: {e}"
        else:
            assert actual is not None, f"{mode} of {name}: no tangent"
            same(actual.sum(), expected)


def _twice(f: Call, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(f(x).sum(), x, create_graph=True)
    along = (g * x.detach().cos()).sum() + 0 * x.sum()  # linear losses have no second graph
    return torch.autograd.grad(along, x)[0]


SECOND: dict[str, Callable[[Call, Tensor], Any]] = {
    "create_graph": _twice,
    "grad(grad)": lambda f, x: grad(lambda a: (grad(total(f))(a) * x.cos()).sum())(x),
    "jvp(grad)": lambda f, x: jvp(grad(total(f)), (x,), (x.cos(),))[1],
    "grad(jvp)": lambda f, x: grad(lambda a: jvp(total(f), (a,), (x.cos(),))[1])(x),
    "hessian": lambda f, x: _along(hessian(total(f))(x), x),
    "jacrev(jacrev)": lambda f, x: _along(jacrev(jacrev(total(f)))(x), x),
    "functional.hvp": lambda f, x: torch.autograd.functional.hvp(total(f), x, x.cos())[1],
    "functional.vhp": lambda f, x: torch.autograd.functional.vhp(total(f), x, x.cos())[1],
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_second_derivatives_are_right_or_refused(name: str) -> None:
    f, x, plain = CALLS[name]
    f64 = plain or f
    eps = 1e-2
    near = (gradient(f64, x + eps * x.cos()) - gradient(f64, x - eps * x.cos())) / (2 * eps)
    for mode, run in SECOND.items():
        try:
            actual = run(f, x)
        except RuntimeError as e:
            known = "has no forward-mode derivative", "not differentiable twice", "second derivat"
            assert any(k in str(e) for k in known), f"{mode} of {name}: {e}"
        else:
            torch.testing.assert_close(actual, near, rtol=2e-2, atol=2e-3, msg=f"{mode} of {name}")


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_vmap_is_a_loop(reduction: str) -> None:
    """With a threshold each sample has its own, as in a loop; weights and labels may be mapped."""
    z, y = torch.stack([Z, 2 * Z, Z.flip(0)]), torch.stack([Y, Y.flip(0), Y])
    w = torch.stack([POSITIVE, POSITIVE.flip(0), 3 * POSITIVE])

    def f(z: Tensor, y: Tensor, w: Tensor) -> Tensor:
        loss = w2s_fast.cross_entropy(
            z, y, weight=w, aux=0.5, threshold="median", reduction=reduction
        )
        assert isinstance(loss, Tensor)
        return loss

    same(vmap(f)(z, y, w), torch.stack([f(*one) for one in zip(z, y, w, strict=True)]))
    tokens = vmap(lambda h, y: w2s_fast.linear_logprob(h, W, y))(H.expand(3, N, D), y)
    same(tokens, torch.stack([w2s_fast.linear_logprob(H, W, one) for one in y]))
    with pytest.raises(w2s_fast.W2SError, match="expected a number >= 0"):
        vmap(f)(z, y, -w)
    with pytest.raises(w2s_fast.W2SError, match="outside the classes"):
        vmap(lambda y: w2s_fast.topk_logprob(Z, y[:, None])[0])(y + 3)


def test_nested_transforms_on_every_backend(backend: str) -> None:
    z, y = Z[:2], Y[:2]

    def f(z: Tensor, r: str = "mean") -> Tensor:
        loss = w2s_fast.cross_entropy(z, y, reduction=r)
        assert isinstance(loss, Tensor)
        return loss

    with use_backend(backend):
        actual = vmap(vmap(grad(f)))(torch.stack([z, z / 2])[None])
        same(actual, torch.stack([gradient(f, z), gradient(f, z / 2)])[None])
        for reduction in ("mean", "none"):
            with pytest.raises(RuntimeError, match=REFUSAL):
                jvp(lambda z, r=reduction: f(z, r), (z,), (z,))


def test_per_sample_gradients_of_a_model() -> None:
    """``functional_call`` with ``grad`` and ``vmap``, against backward one sample at a time."""
    model = torch.nn.Sequential(torch.nn.Linear(D, D), torch.nn.Tanh())
    loss = w2s_fast.LMHeadLoss(torch.nn.Linear(D, V))
    whole = torch.nn.ModuleDict({"body": model, "loss": loss})
    whole.forward = lambda h, y: loss(model(h), y)  # type: ignore[method-assign]
    parameters = {k: p.detach() for k, p in whole.named_parameters()}

    def one(parameters: dict[str, Tensor], h: Tensor, y: Tensor) -> Tensor:
        out = functional_call(whole, parameters, (h[None], y[None]))
        assert isinstance(out, Tensor)
        return out

    actual = vmap(grad(one), in_dims=(None, 0, 0))(parameters, H, Y)
    for i in range(N):
        whole.zero_grad()
        whole(H[i : i + 1], Y[i : i + 1]).backward()
        for k, p in whole.named_parameters():
            same(actual[k][i], p.grad if p.grad is not None else torch.zeros_like(p))


def test_lm_head_loss_refuses_tangents() -> None:
    loss = w2s_fast.LMHeadLoss(torch.nn.Linear(D, V))
    with pytest.raises(RuntimeError, match=REFUSAL):
        jvp(lambda h: loss(h, Y), (H,), (H,))
    with pytest.raises(RuntimeError, match=REFUSAL):
        _dual(lambda w: functional_call(loss, {"weight": w}, (H, Y)), loss.weight.detach())


def test_values_computed_from_constants() -> None:
    """No derivative by contract, also where the transforms would follow them."""

    def with_threshold(z: Tensor) -> Tensor:
        at = batch_threshold(z, TWO[1], "prior")
        return weak_loss(z, TWO[1], aux=0.5, rule="prior", threshold=at).loss

    same(grad(with_threshold)(TWO[0]), gradient(with_threshold, TWO[0]))
    projected = grad(lambda h: batch_threshold(Projected(h, W[:2]), TWO[1], "prior") + h.sum())(H)
    same(projected, torch.ones_like(H))
    packed = grad(lambda z: w2s_fast.pack_topk(z, 2).probs.sum() + z.sum())(Z)
    same(packed, torch.ones_like(Z))
    beside = grad(lambda z: z.sum() + w2s_fast.cross_entropy(Z, Y) + CALLS["LMHeadLoss"][0](H))(Z)
    same(beside, torch.ones_like(Z))
    with pytest.raises(RuntimeError, match="batch_threshold cannot run under torch.func.vmap"):
        vmap(lambda z: batch_threshold(z, TWO[1], "prior"))(TWO[0][None])
    both = torch.stack([Z, 2 * Z])
    same(vmap(lambda z: w2s_fast.quantile(z, 0.3))(both), torch.stack(
        [w2s_fast.quantile(z, 0.3) for z in both]))  # fmt: skip
    bias = vmap(lambda z: w2s_fast.balanced_bias(z, Q[0]).bias)(both)
    same(bias, torch.stack([w2s_fast.balanced_bias(z, Q[0]).bias for z in both]))


def test_vocab_parallel(one_rank: Any) -> None:
    for r in ("mean", "sum", "none"):
        calls: dict[str, tuple[Call, Tensor]] = {
            "hidden": (lambda h, r=r: w2s_fast.vocab_parallel_cross_entropy(
                h, W, Y, group=one_rank, reduction=r), H),
            "head": (lambda w, r=r: w2s_fast.vocab_parallel_cross_entropy(
                H, w, Y, group=one_rank, reduction=r), W),
            "logprob": (lambda h: w2s_fast.vocab_parallel_logprob(h, W, Y, group=one_rank), H),
        }  # fmt: skip
        for f, x in calls.values():
            for run in FORWARD.values():
                with pytest.raises(RuntimeError, match=REFUSAL + "|inside torch.func transforms"):
                    run(f, x)
            for run in (REVERSE["grad"], REVERSE["vmap(grad)"], REVERSE["jacrev"]):
                with pytest.raises(RuntimeError, match="cannot run inside torch.func transforms"):
                    run(f, x)
        for name, (f, x) in calls.items():
            if r == "none" or name == "logprob":
                with pytest.raises(RuntimeError, match="no batched backward"):
                    _batched(f, x)
            else:
                same(_batched(f, x), gradient(f, x))


@pytest.mark.skipif(
    torch.__version__ < "2.11", reason="torch 2.10 cannot compile a tensor made in a transform"
)
def test_compiled_transforms() -> None:
    f = CALLS["cross_entropy none logits"][0]
    step = torch.compile(
        lambda x: vmap(grad(total(f)))(x), fullgraph=True, backend="aot_eager"
    )  # fmt: skip
    same(step(torch.stack([Z, -Z])), torch.stack([gradient(f, Z), gradient(f, -Z)]))
    for run in (FORWARD["jvp"], FORWARD["dual"]):
        with pytest.raises(Exception, match=REFUSAL):
            torch.compile(lambda x, run=run: run(f, x), fullgraph=True, backend="aot_eager")(Z)
    torch.compiler.reset()
