"""fp64 is fp64 all the way: ops and losses against other computations, to 1e-13.

A single step in fp32 costs 1e-8 or more. The cells of fp64 in docs/test_support.py ask for the
same of every argument, one at a time and in one chunk; here are the paths that they do not take:
several chunks with and without corrections, sequences, parts of a batch, losses of a head,
preferences.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import preference_cases as preference
from helpers.distillation_cases import ORACLES, make, outcomes
from helpers.linear_cases import CHUNKS, oracle, run, sample, unit_mass
from helpers.loss_cases import case
from torch import Tensor

import w2s_fast
from w2s_fast import W2SError
from w2s_fast.losses import LOSSES, make_loss
from w2s_fast.losses.contrastive import contrastive_distillation
from w2s_fast.losses.distillation import DISTILLATIONS
from w2s_fast.losses.preference import PREFERENCES, Answers
from w2s_fast.ops.fused_linear.logprob import linear_logprob, linear_topk_logprob
from w2s_fast.ops.lazy_logits import Projected
from w2s_fast.ops.logprob.api import topk_logprob_reference
from w2s_fast.ops.pack_topk import pack_topk
from w2s_fast.testing import assert_fp64

FP64 = torch.float64
FEW = 2 * CHUNKS  # the same rows of fp64


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, dtype=FP64, generator=torch.Generator().manual_seed(seed))


def gradients(out: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    return [out.detach(), *torch.autograd.grad(out, leaves)]


def same(ours: Callable[..., Tensor], truth: Callable[..., Tensor], leaves: list[Tensor]) -> None:
    x = [t.requires_grad_() for t in leaves]
    for got, want in zip(gradients(ours(*x), x), gradients(truth(*x), x), strict=True):
        assert_fp64(got, want)


@pytest.mark.parametrize("terms", [{}, {"softcap": 3.0}, {"smoothing": 0.1}, {"z_loss": 0.02}])
@pytest.mark.parametrize("threshold", [None, "median", 0.4])
@pytest.mark.parametrize("kind", ["hard", "unit", "unit fp32", "sparse", "rest", "dense"])
def test_a_head_in_chunks(kind: str, threshold: Any, terms: dict[str, float]) -> None:
    """Hard labels and masses of 1 with a late threshold: rows corrected after their chunk is gone.
    A mass that is 1 in fp32 only is none."""
    call = sample("sparse" if kind.startswith("unit") else kind, dtype=FP64)
    if kind == "unit":
        call["weak"] = call["weak"]._replace(probs=call["weak"].probs.double())
    call = unit_mass(call) if kind.startswith("unit") else call
    call["weight"] = call["weight"].double()
    for reduction in ("mean", "none"):
        kw = {"aux": 0.4, "threshold": threshold, "memory_mib": FEW, "reduction": reduction}
        (loss, stats), grads = run("ref", call | terms | kw, 1.5)
        truth, exact = oracle(call | terms | {"reduction": reduction}, stats, FP64, 1.5)
        assert_fp64(loss, truth, "loss")
        for name, grad in grads.items():
            assert_fp64(grad, exact[name], f"gradient of {name}")


@pytest.mark.parametrize("memory_mib", [64, 2 * 17 * 8 / 2**20])
def test_log_probabilities(memory_mib: float) -> None:
    b, t, d, v = 3, 4, 6, 17
    leaves = [normal(b * t, d, seed=1), normal(v, d, seed=2), normal(v, seed=3)]
    tokens = torch.randint(0, v, (b, t), generator=torch.Generator().manual_seed(4))
    ids = torch.stack([tokens.flatten(), (tokens.flatten() + 3) % v], 1)
    how: dict[str, Any] = {"temperature": 1.7, "softcap": 5.0}

    def logits(h: Tensor, w: Tensor, c: Tensor) -> Tensor:
        return h @ w.t() + c

    def sequences(h: Tensor, w: Tensor, c: Tensor) -> Tensor:
        rows = h.view(b, t, d)
        out = linear_logprob(rows, w, tokens, bias=c, average=True, memory_mib=memory_mib, **how)
        return (out * torch.arange(1.0, b + 1)).sum()

    def by_hand(h: Tensor, w: Tensor, c: Tensor) -> Tensor:
        logp = topk_logprob_reference(logits(h, w, c), tokens.view(-1, 1), **how)[0]
        return (logp.view(b, t).mean(1) * torch.arange(1.0, b + 1)).sum()

    same(sequences, by_hand, leaves)

    def listed(h: Tensor, w: Tensor, c: Tensor) -> Tensor:
        logp, tail = linear_topk_logprob(h, w, ids, bias=c, memory_mib=memory_mib, **how)
        return (logp.sum(1) * tail).sum()

    def reference(h: Tensor, w: Tensor, c: Tensor) -> Tensor:
        logp, tail = topk_logprob_reference(logits(h, w, c), ids, **how)
        return (logp.sum(1) * tail).sum()

    same(listed, reference, leaves)


@pytest.mark.parametrize("name", DISTILLATIONS)
@pytest.mark.parametrize("memory_mib", [64, 2 * 17 * 8 / 2**20])
def test_distillation_from_a_head(name: str, memory_mib: float) -> None:
    n, d, v = 7, 5, 17
    leaves = [normal(n, d, seed=5), normal(v, d, seed=6), normal(v, seed=7)]
    teacher = pack_topk(normal(n, v, seed=8), 4)
    assert teacher.probs.dtype == teacher.rest.dtype == FP64
    loss = make(name, temperature=1.3)

    def ours(h: Tensor, w: Tensor, c: Tensor) -> Tensor:
        return loss.linear(h, w, teacher, bias=c, memory_mib=memory_mib).loss_sum

    def truth(h: Tensor, w: Tensor, c: Tensor) -> Tensor:
        return ORACLES[name](*outcomes(h @ w.t() + c, teacher, 1.3)).sum()

    same(ours, truth, leaves)


@pytest.mark.parametrize("name", PREFERENCES)
def test_preferences_are_the_papers(name: str) -> None:
    first, second = (preference.answers(9, s, FP64) for s in (5, 6))
    q, weight = normal(9, seed=7).sigmoid(), normal(9, seed=8).exp()

    def ours(a: Tensor, b: Tensor) -> Tensor:
        pair = first._replace(logp=a), second._replace(logp=b)
        return preference.run(PREFERENCES[name](), *pair, q, weight=weight).loss_sum

    def paper(a: Tensor, b: Tensor) -> Tensor:
        pair: list[Answers] = [first._replace(logp=a), second._replace(logp=b)]
        return preference.soft(name, *pair, q, weight)

    same(ours, paper, [first.logp, second.logp])


# Of the others, `product` and the window of `logconf_eleuther` want logits.
@pytest.mark.parametrize("name", sorted({*LOSSES} - {"product", "logconf_eleuther"}))
@pytest.mark.parametrize("classes", [2, 7])
def test_losses_of_a_head_are_those_of_its_logits(name: str, classes: int) -> None:
    """Whose values in fp64 are losses/test_losses.py's."""
    logits, weak = case(11, classes, seed=3)
    loss = make_loss(name)
    head = normal(classes, 13, seed=9)
    hidden = logits @ torch.linalg.pinv(head).T

    def through(z: Any) -> Tensor:
        return loss(z, weak, step_frac=0.5, state=loss.init_state()).loss_sum

    same(
        lambda h, w: through(Projected(h, w, memory_mib=3 * classes * 8 / 2**20)),
        lambda h, w: through(h @ w.t()),
        [hidden, head],
    )


def test_order_statistics() -> None:
    x = normal(101, seed=10)
    for q in (0.1, 0.37, 0.9):
        assert_fp64(w2s_fast.quantile(x, q), torch.quantile(x, q))
    assert float(w2s_fast.kth_value(x, 30)) == float(x.sort().values[29])


HIDDEN, HEAD = normal(6, 5, seed=1), normal(9, 5, seed=2)
LABELS, IDS = torch.arange(6), torch.arange(12).view(6, 2) % 9
TERMS = [w2s_fast.TeacherHead(0.7, normal(6, 4, seed=3), normal(9, 4, seed=4))]
CALLS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "linear_cross_entropy": lambda h, w: w2s_fast.linear_cross_entropy(h, w, LABELS, bias=w[:, 0]),
    "a teacher": lambda h, w: w2s_fast.linear_cross_entropy(h, w, teacher=TERMS),
    "lazy logits": lambda h, w: make_loss("xent")(Projected(h, w), LABELS).loss_sum,
    "linear_logprob": lambda h, w: linear_logprob(h, w, LABELS),
    "linear_topk_logprob": lambda h, w: linear_topk_logprob(h, w, IDS)[1],
    "linear_topk_ids": lambda h, w: w2s_fast.linear_topk_ids(h, w, 3).double() * h[:, :1],
    "distillation": lambda h, w: (
        DISTILLATIONS["jsd"]().linear(h, w, pack_topk(h @ w.T, 3)).loss_sum
    ),
    "info_nce": lambda h, w: w2s_fast.info_nce(h, w),
    "info_nce normalize": lambda h, w: w2s_fast.info_nce(h, w, normalize=True),
    "contrastive": lambda h, w: contrastive_distillation(h, w, h + 1, w),
    "mixing": lambda h, w: w2s_fast.mix_hard_negatives(h, w[:2].expand(6, 2, 5), rule="list"),
}


@pytest.mark.parametrize("name", CALLS)
def test_autocast_leaves_fp64_alone(name: str) -> None:
    """As it does in torch's own layers."""
    found = []
    for on in (False, True):
        h, w = HIDDEN.clone().requires_grad_(), HEAD.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=on):
            out = CALLS[name](h, w)
        assert out.dtype == FP64
        found.append((out, *torch.autograd.grad(out.sum(), (h, w), allow_unused=True)))
    for plain, cast in zip(*found, strict=True):
        assert (cast is plain is None) or torch.equal(cast, plain)


@pytest.mark.parametrize("name", ["linear_cross_entropy", "linear_logprob", "info_nce"])
def test_fp64_beside_fp32_is_an_error(name: str) -> None:
    """Under autocast too, as it is for ``F.linear``."""
    for h, w in ((HIDDEN, HEAD.float()), (HIDDEN.float(), HEAD)):
        for on in (False, True):
            with (
                torch.autocast("cpu", torch.bfloat16, enabled=on),
                pytest.raises(W2SError, match="bring them to one dtype"),
            ):
                CALLS[name](h, w)
