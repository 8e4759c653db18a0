"""The vocabulary split over ranks gives what the whole head gives. Real processes, gloo."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.distributed as dist
from helpers import ranks
from torch import Tensor

import w2s_fast
from w2s_fast import SparseTargets, TeacherHead
from w2s_fast.ops import dispatch, use_backend
from w2s_fast.ops.fused_linear.cross_entropy import linear_cross_entropy
from w2s_fast.ops.reference import KINDS, cross_entropy_sample
from w2s_fast.ops.vocab_parallel.api import vocab_parallel_cross_entropy, vocab_parallel_logprob
from w2s_fast.testing import BACKWARD, FORWARD, assert_within_budget

D = 8
# Classes of every rank: equal for two, uneven for four.
WIDTHS = {2: (9, 9), 4: (5, 5, 4, 5)}
LATE = {"aux": 0.4, "threshold": "median"}


@pytest.mark.slow
@pytest.mark.dist
def test_ranks_agree_with_one() -> None:
    ranks.run(__file__, 4, [b for b in ("ref", "cpp") if not dispatch.missing(b)])


def sample(kind: str, v: int) -> dict[str, Any]:
    base = "dense" if kind == "teacher" else kind.removesuffix("1")
    call = cross_entropy_sample(9, v, torch.float32, "cpu", seed=3, kind=base)
    g = torch.Generator().manual_seed(1)
    head = torch.randn(v, D, generator=g)
    call["hidden"] = call.pop("logits").nan_to_num(0.0) @ torch.linalg.pinv(head).T
    call["head"], call["bias"] = head, torch.randn(v, generator=g)
    if kind == "teacher":
        del call["weak"]
        call["teacher"] = [
            TeacherHead(a, *(torch.randn(s, generator=g) for s in ((9, d), (v, d), (v,))), cap)
            for a, d, cap in ((1.5, 6, 0.0), (-0.5, 11, 4.0))
        ]
        call["temperature"] = 1.5
    if kind == "sparse1":  # mass 1, as a rank-1 fix-up needs
        w = call["weak"]
        probs = torch.where(w.ids >= 0, w.probs, 0.0)
        mass = probs.sum(1, keepdim=True)
        call["weak"] = SparseTargets(w.ids, probs / mass.clamp_min(1e-6))
        call["weight"] = torch.where(mass[:, 0] > 0, call["weight"], 0.0)
    return call


def run(op: Any, call: dict[str, Any], **kw: Any) -> tuple[Tensor, Any, list[Tensor]]:
    call = dict(call)
    names = ("hidden", "head", "bias", "weight")
    leaves = {n: call.pop(n).detach().clone().requires_grad_() for n in names}
    inputs = (leaves.pop("hidden"), leaves.pop("head"))
    loss, stats = op(*inputs, call.pop("weak", None), **leaves, **call, **kw, return_stats=True)
    loss.backward(torch.linspace(0.5, 2.0, loss.numel()).to(loss.dtype).view_as(loss))
    return loss, stats, [t.grad for t in (*inputs, *leaves.values())]


def check(kind: str, world: int, rank: int, group: Any, extra: dict[str, Any]) -> None:
    widths = WIDTHS[world]
    first, v = sum(widths[:rank]), sum(widths)
    own_classes = slice(first, first + widths[rank])
    call = sample(kind, v) | extra
    loss, stats, grads = run(linear_cross_entropy, call)
    double = {k: _double(t) for k, t in call.items()}
    truth, _, exact = run(linear_cross_entropy, double)
    mine = call | {"head": call["head"][own_classes], "bias": call["bias"][own_classes]}
    if kind == "dense":
        mine["weak"] = call["weak"][:, own_classes]
    if kind == "teacher":
        mine["teacher"] = [
            t._replace(head=t.head[own_classes], bias=t.bias[own_classes]) for t in call["teacher"]
        ]
    shard = (first, v) if len(set(widths)) > 1 else None
    mine["memory_mib"] = 4 * 5 * 4 / 2**20  # a few rows of a shard
    actual, actual_stats, parts = run(vocab_parallel_cross_entropy, mine, group=group, shard=shard)
    assert_within_budget(actual, truth, loss, FORWARD, "loss")
    for name, part, whole, one in zip(
        ("hidden", "head", "bias", "weight"), parts, exact, grads, strict=True
    ):
        own = slice(None) if name in ("hidden", "weight") else own_classes
        assert_within_budget(part, whole[own], one[own], BACKWARD, f"{kind} {extra} {name}")
    counted = stats.loss != 0
    for name in ("argmax", "agreement", "coefficient", "hard_class"):
        a, b = getattr(actual_stats, name), getattr(stats, name)
        assert torch.equal(a[counted], b[counted]), f"{kind} {name}"
    for name in ("lse", "max_prob", "chosen_prob", "entropy", "loss"):
        a, b = getattr(actual_stats, name), getattr(stats, name)
        assert torch.allclose(a[counted], b[counted], rtol=1e-5, atol=1e-6), f"{kind} {name}"


def _double(t: Any) -> Any:
    if isinstance(t, SparseTargets):
        return SparseTargets(*(_double(x) for x in t))
    if isinstance(t, list):
        return [TeacherHead(*(_double(x) for x in term)) for term in t]
    return t.double() if isinstance(t, Tensor) and t.is_floating_point() else t


EVERY_TERM = (
    {},
    LATE,
    {"aux": 0.4, "threshold": 0.3},
    LATE | {"reduction": "none", "z_loss": 0.02},
    LATE | {"softcap": 3.0, "reduction": "sum"},
    LATE | {"smoothing": 0.2, "softcap": 4.0},
)


def check_all(world: int, rank: int, group: Any, terms: Sequence[dict[str, Any]]) -> None:
    for kind in (*KINDS, "sparse1", "teacher"):
        for extra in terms:
            check(kind, world, rank, group, extra)


def check_logprob(world: int, rank: int, group: Any) -> None:
    widths = WIDTHS[world]
    first, v = sum(widths[:rank]), sum(widths)
    call = sample("hard", v)
    tokens = call["weak"]
    head = call["head"][first : first + widths[rank]]
    actual = vocab_parallel_logprob(call["hidden"], head, tokens, group=group, shard=(first, v))
    logp = (call["hidden"] @ call["head"].T).log_softmax(1)
    expected = torch.where(
        tokens >= 0, logp.gather(1, tokens.clamp_min(0)[:, None])[:, 0], torch.zeros(9)
    )
    assert torch.allclose(actual, expected, atol=1e-5)


def check_errors(rank: int, group: Any) -> None:
    call = sample("hard", 18)
    x, w, y = call["hidden"], call["head"][:9], call["weak"]
    for kw, message in (
        ({"group": None}, "expected a torch.distributed process group"),
        ({"group": group, "shard": (12, 18)}, r"shard is \(12, 18\) for 9 rows"),
        ({"group": group, "threshold": "prior", "aux": 0.5}, "prior"),
        ({"group": group, "teacher": [(1.0, x, w)]}, "weak and teacher: both given"),
        ({"group": group, "temperature": 2.0}, "temperature 2.0 and .* are of a teacher"),
    ):
        with pytest.raises(w2s_fast.W2SError, match=message):
            vocab_parallel_cross_entropy(x, w, y, **kw)
    learned = [(torch.tensor(1.0, requires_grad=True), x, w)]
    for teacher, message in (
        (None, "weak and teacher: neither given"),
        (learned, r"teacher\[0\].scale requires grad; expected a number"),
        ([(1.0, x, call["head"])], r"teacher\[0\].head has 18 classes, the student's head 9"),
    ):
        with pytest.raises(w2s_fast.W2SError, match=message):
            vocab_parallel_cross_entropy(x, w, teacher=teacher, group=group)


def main(backends: list[str]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    pair = dist.new_group([0, 1])
    groups = {4: dist.group.WORLD} | ({2: pair} if rank < 2 else {})
    for world, group in groups.items():
        for backend in backends:
            # Neither uneven shards nor what exchanges sums sees the terms of the loss.
            every = world == 2 and backend == backends[-1]
            with use_backend(backend):
                check_all(world, rank, group, EVERY_TERM if every else EVERY_TERM[3:5])
        check_logprob(world, rank, group)
    if rank < 2:
        check_errors(rank, pair)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
