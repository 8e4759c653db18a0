"""DTensor heads and logits, as tensor parallelism makes them, give what plain tensors give.

Real processes, gloo.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from helpers import ranks
from torch import Tensor, nn

import w2s_fast
from w2s_fast import SparseTargets, W2SError
from w2s_fast.ops.reference import cross_entropy_sample

D, B, T = 8, 2, 6
# Classes: the last rank has fewer; and equal shards.
UNEVEN, EVEN = {2: 17, 4: 18}, {2: 18, 4: 20}
LATE = {"aux": 0.4, "threshold": "median"}
CALLS: tuple[dict[str, Any], ...] = (
    {},
    LATE,
    LATE | {"softcap": 4.0, "reduction": "sum"},
    {"aux": 0.4, "threshold": 0.3, "smoothing": 0.2},
    LATE | {"z_loss": 0.02, "reduction": "none"},
)


@pytest.mark.dist
@pytest.mark.parametrize("size", [2, 4])
def test_ranks_agree_with_plain_tensors(size: int, tmp_path: Path) -> None:
    ranks.run(__file__, size, {"size": size, "folder": str(tmp_path / "llama")})


def sample(kind: str, v: int, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """Hidden states (B, T, D), head, bias, row weights and weak labels of B T rows."""
    call = cross_entropy_sample(B * T, v, torch.float32, "cpu", seed=3, kind=kind)
    g = torch.Generator().manual_seed(v)
    made = {
        "hidden": torch.randn(B, T, D, generator=g).to(dtype),
        "head": torch.randn(v, D, generator=g).to(dtype),
        "bias": torch.randn(v, generator=g).to(dtype),
        "weight": call["weight"],
        "weak": call["weak"],
    }
    return made


def distribute(mesh: Any, x: Tensor, placement: Any) -> Any:
    """A leaf DTensor of a tensor that every rank holds."""
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(x.detach().clone(), mesh, [placement]).requires_grad_()


def full(x: Any) -> Tensor:
    return x.full_tensor() if hasattr(x, "full_tensor") else x


def same(actual: Any, expected: Tensor, what: str) -> None:
    torch.testing.assert_close(
        full(actual), expected, rtol=2e-5, atol=2e-6, msg=lambda m: f"{what}: {m}"
    )


def upstream(loss: Tensor) -> Tensor:
    return torch.linspace(0.5, 2.0, loss.numel()).to(loss.dtype).view_as(loss)


def check(mesh: Any, call: dict[str, Any], sharded: bool, hidden_at: Any, weak: Any) -> None:
    """Loss, statistics and gradients; the latter in the placements of their tensors."""
    from torch.distributed.tensor import Replicate, Shard

    at = Shard(0) if sharded else Replicate()
    placed = {"hidden": hidden_at, "head": at, "bias": at, "weight": Replicate()}
    options = {k: v for k, v in call.items() if k not in placed and k != "weak"}
    plain = {n: call[n].detach().clone().requires_grad_() for n in placed}
    ours = {n: distribute(mesh, call[n], p) for n, p in placed.items()}
    expected, truth = linear(plain, call["weak"], options)
    loss, stats = linear(ours, weak, options)
    assert type(loss) is Tensor
    same(loss, expected, "loss")
    assert torch.equal(stats.argmax, truth.argmax)
    assert torch.equal(stats.coefficient, truth.coefficient)
    for name, placement in placed.items():
        grad = ours[name].grad
        assert tuple(grad.placements) == (placement,), f"{name}: {grad.placements}"
        same(grad, plain[name].grad, f"{options} {name}")


def linear(x: dict[str, Any], weak: Any, options: dict[str, Any]) -> Any:
    loss, stats = w2s_fast.linear_cross_entropy(
        x["hidden"], x["head"], weak, bias=x["bias"], weight=x["weight"], return_stats=True,
        memory_mib=4 * 9 * 4 / 2**20, **options,
    )  # fmt: skip
    loss.backward(upstream(loss))
    return loss, stats


def check_heads(mesh: Any, v: int) -> None:
    from torch.distributed.tensor import Replicate, Shard

    for kind in ("hard", "dense", "rest"):
        call = sample(kind, v)
        weak = call["weak"]
        for extra in CALLS if kind == "rest" else (LATE,):
            check(mesh, call | extra, True, Replicate(), weak)
        check(mesh, call | LATE, False, Replicate(), weak)
    hard = sample("hard", v)
    for hidden_at in (Shard(1), Shard(0), Shard(2)):
        check(mesh, hard | LATE, True, hidden_at, hard["weak"])
    check(mesh, hard | LATE, False, Shard(1), hard["weak"])
    dense = sample("dense", v)
    for at in (Shard(1), Shard(0), Replicate()):
        check(mesh, dense | LATE, True, Shard(1), distribute(mesh, dense["weak"], at).detach())
    rows = torch.tensor([0, 3, 7])
    few = sample("hard", v) | {"positions": rows, "weak": torch.tensor([1, v - 1, 5])}
    check(mesh, few | {"weight": torch.ones(3)}, True, Shard(1), few["weak"])
    topk = sample("rest", v)
    by_sequence = SparseTargets(*(t.unflatten(0, (B, T)) for t in topk["weak"]))
    check(mesh, topk, True, Replicate(), by_sequence)


def check_logits(mesh: Any, v: int) -> None:
    """Dense logits, sharded over the classes or replicated, in fp32 and fp16."""
    from torch.distributed.tensor import Replicate, Shard

    for kind in ("hard", "dense", "rest"):
        call = sample(kind, v)
        z = torch.randn(B * T, v, generator=torch.Generator().manual_seed(1))
        weak = call["weak"]
        for extra in CALLS if kind == "rest" else (LATE,):
            for at, dtype in ((Shard(1), torch.float32), (Replicate(), torch.float32),
                              (Shard(1), torch.float16)):  # fmt: skip
                plain = z.to(dtype, copy=True).requires_grad_()
                ours = distribute(mesh, z.to(dtype), at)
                weight = call["weight"].clone().requires_grad_()
                own = weight.detach().clone().requires_grad_()
                labels = distribute(mesh, weak, Shard(1)).detach() if kind == "dense" else weak
                expected = w2s_fast.cross_entropy(plain, weak, weight=weight, **extra)
                loss = w2s_fast.cross_entropy(ours, labels, weight=own, **extra)
                expected.backward(upstream(expected), retain_graph=True)
                loss.backward(upstream(loss), retain_graph=True)
                assert tuple(ours.grad.placements) == (at,)
                same(loss, expected, f"{kind} {extra} loss")
                same(own.grad, weight.grad, "weight")
                tolerance = 2e-3 if dtype == torch.float16 else 2e-6
                torch.testing.assert_close(full(ours.grad), plain.grad, rtol=0, atol=tolerance)
                loss.backward(upstream(loss))  # a second backward adds as much again
                torch.testing.assert_close(full(ours.grad), 2 * plain.grad, rtol=0, atol=tolerance)
        made, stats = w2s_fast.cross_entropy(
            distribute(mesh, z, Shard(1)), weak, return_stats=True, **LATE
        )
        _, truth = w2s_fast.cross_entropy(z, weak, return_stats=True, **LATE)
        same(stats.entropy, truth.entropy, "entropy")
        assert torch.equal(stats.argmax, truth.argmax)
        assert not made.isnan()


def check_vocab_parallel(mesh: Any, v: int) -> None:
    """The explicit ops take a DTensor head beside plain hidden states; gradients are its shards."""
    from torch.distributed.tensor import Shard

    call = sample("hard", v)
    group = mesh.get_group()
    head = distribute(mesh, call["head"], Shard(0))
    rows = call["hidden"].flatten(0, 1)
    weak = torch.where(call["weak"] < 0, -100, call["weak"])
    logp = w2s_fast.vocab_parallel_logprob(rows, head, weak, group=group)
    plain = call["head"].clone().requires_grad_()
    expected = w2s_fast.linear_logprob(rows, plain, weak)
    same(logp, expected, "log-probabilities")
    logp.sum().backward()
    expected.sum().backward()
    same(head.grad, plain.grad, "head")


def check_main_grad(mesh: Any, v: int) -> None:
    """Each rank adds to the buffer of its own rows, which may be a DTensor or an attribute."""
    from torch.distributed.tensor import Replicate, Shard, zeros

    call = sample("hard", v)
    weak = call["weak"]
    options = {"memory_mib": 4 * 9 * 4 / 2**20}
    plain = call["head"].clone().requires_grad_()
    w2s_fast.linear_cross_entropy(call["hidden"], plain, weak, **options).backward()
    assert plain.grad is not None
    for at in (Shard(0), Replicate()):
        head = distribute(mesh, call["head"], at)
        hidden = distribute(mesh, call["hidden"], Shard(1))
        head.main_grad = zeros(v, D, device_mesh=mesh, placements=[at])
        for times in (1, 2):
            w2s_fast.linear_cross_entropy(hidden, head, weak, main_grad=True, **options).backward()
            assert head.grad is None
            same(head.main_grad, times * plain.grad, f"main_grad, {at}")


class Student(nn.Module):
    """A head of tensor parallelism with its loss, to be wrapped by FSDP."""

    def __init__(self, mesh: Any, head: Tensor) -> None:
        from torch.distributed.tensor import Shard, distribute_tensor

        super().__init__()
        lm_head = nn.Linear(D, head.shape[0], bias=False)
        lm_head.weight = nn.Parameter(distribute_tensor(head, mesh, [Shard(0)]))
        self.mesh, self.loss = mesh, w2s_fast.LMHeadLoss(lm_head)

    def forward(self, hidden: Tensor, weak: Tensor) -> Tensor:
        from torch.distributed.tensor import DTensor, Replicate

        rows = DTensor.from_local(hidden, self.mesh, [Replicate()])
        loss: Tensor = self.loss(rows, weak, reduction="sum")
        return loss


def check_fsdp() -> None:
    """Under FSDP2 over two ranks and tensor parallelism over two: the sum over all rows."""
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import init_device_mesh

    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    call = sample("hard", 20)
    weak = call["weak"].unflatten(0, (B, T))
    student = fully_shard(Student(mesh["tp"], call["head"]), mesh=mesh["dp"])
    mine = mesh["dp"].get_local_rank()
    student(call["hidden"][mine : mine + 1], weak[mine : mine + 1]).backward()
    plain = call["head"].clone().requires_grad_()
    w2s_fast.linear_cross_entropy(call["hidden"], plain, weak, reduction="sum").backward()
    assert plain.grad is not None
    same(student.loss.weight.grad * 2, plain.grad, "FSDP2")  # it averages over its ranks


def check_transformers(folder: str) -> None:
    """A model that transformers itself has sharded: loss and gradients of the whole model."""
    from torch.distributed.tensor import DTensor, Replicate
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    whole = LlamaForCausalLM(LlamaConfig(
        vocab_size=24, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=4,
    ))  # fmt: skip
    if dist.get_rank() == 0:
        whole.save_pretrained(folder)
    dist.barrier()
    sharded = AutoModelForCausalLM.from_pretrained(folder, tp_plan="auto")
    ids = torch.arange(B * T).view(B, T) % 24
    losses = []
    for model in (whole, sharded):
        hidden, head = model.model(ids).last_hidden_state, model.lm_head.weight
        if model is sharded:
            hidden = DTensor.from_local(hidden, head.device_mesh, [Replicate()])
        losses.append(w2s_fast.linear_cross_entropy(hidden, head, ids * 3 % 24, **LATE))
        losses[-1].backward()
    same(losses[1], losses[0], "loss of transformers' tensor parallelism")
    grads = dict(whole.named_parameters())
    for name, weight in sharded.named_parameters():
        if isinstance(weight, DTensor):
            same(weight.grad, grads[name].grad, name)
    assert isinstance(sharded.lm_head.weight, DTensor)


def check_errors(mesh: Any) -> None:
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, init_device_mesh

    call = sample("hard", 20)
    hidden = distribute(mesh, call["hidden"], Replicate())
    head = distribute(mesh, call["head"], Shard(0))
    weak, group = call["weak"], mesh.get_group()
    size = mesh.size()
    flat = init_device_mesh("cpu", (size, 1))
    square = init_device_mesh("cpu", (2, size // 2))
    loss, dense = w2s_fast.linear_cross_entropy, w2s_fast.cross_entropy
    partial = DTensor.from_local(call["head"], mesh, [Partial()])
    sizes = (12, 8) if size == 2 else (8, 4, 4, 4)
    odd = DTensor.from_local(
        call["head"].split(sizes)[mesh.get_local_rank()], mesh, [Shard(0)], run_check=False,
        shape=torch.Size([20, D]), stride=(D, 1),
    )  # fmt: skip
    bad: list[tuple[Callable[[], Any], str]] = [
        (lambda: loss(hidden, distribute(mesh, call["head"], Shard(1)), weak),
         r"head has placement S\(1\).*expected Shard\(0\).*redistribute"),
        (lambda: loss(hidden, odd, weak), "of 20 classes on this rank; expected .*torch.chunk"),
        (lambda: loss(hidden, partial, weak), r"head has placement P.*expected Shard\(0\)"),
        (lambda: loss(call["hidden"], head, weak), "hidden a plain tensor.*from_local"),
        (lambda: loss(hidden, call["head"], weak), "head a plain tensor.*distribute_tensor"),
        (lambda: loss(hidden, head, weak, bias=call["bias"]), "bias is a plain tensor.*distribute"),
        (lambda: loss(hidden, distribute(mesh, call["head"][: size + 1], Shard(0)), weak * 0)
         if size > 2 else loss(hidden, distribute(mesh, call["head"][:2], Shard(0)), weak * 0),
         "leaves the last without any" if size > 2 else "has 2 classes; a split"),
        (lambda: dense(distribute(mesh, torch.ones(12, 20), Shard(0)), weak),
         r"logits has placement S\(0\).*expected Shard\(1\)"),
        (lambda: dense(distribute(mesh, torch.ones(12, 20), Shard(1)), weak, inplace=True),
         "inplace is True.*expected False"),
        (lambda: dense(distribute(mesh, torch.ones(2, 6, 20), Shard(2)), weak), "flatten batch"),
        (lambda: loss(hidden, head, teacher=[(1.0, call["hidden"], call["head"])]),
         "teacher= with a DTensor; expected plain tensors.*vocab_parallel"),
        (lambda: loss(hidden, head), "weak is None"),
        (lambda: loss(call["hidden"], call["head"], teacher=[(1.0, hidden, call["head"])]),
         r"teacher\[0\].hidden is a DTensor"),
        (lambda: w2s_fast.linear_logprob(call["hidden"][0], head, weak[:6]), "does not take"),
        (lambda: w2s_fast.vocab_parallel_cross_entropy(
            call["hidden"], head, weak, group=group, shard=(0, 20)), "expected Shard.0..*group"),
        (lambda: w2s_fast.vocab_parallel_cross_entropy(
            call["hidden"], distribute(mesh, call["head"], Replicate()), weak, group=group),
         "expected Shard.0..*group"),
    ]  # fmt: skip
    if size == 4:
        wide = DTensor.from_local(call["head"], square, [Replicate(), Shard(0)])
        over = DTensor.from_local(call["hidden"], square, [Replicate(), Replicate()])
        bad.append((lambda: loss(over, wide, weak), r"mesh of shape \(2, 2\); expected a mesh of"))
    for run, message in bad:
        with pytest.raises(W2SError, match=message):
            run()
    # A second dimension of one rank is no obstacle.
    sides = {"hidden": call["hidden"], "head": call["head"]}
    parts = {
        n: DTensor.from_local(
            x.chunk(size)[mesh.get_local_rank()] if n == "head" else x,
            flat, [Shard(0) if n == "head" else Replicate(), Replicate()],
        )
        for n, x in sides.items()
    }  # fmt: skip
    same(loss(*parts.values(), weak), loss(*sides.values(), weak), "2-D")


def main(job: dict[str, Any]) -> None:
    from torch.distributed.tensor import Shard, init_device_mesh

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (job["size"],))
    v, even = UNEVEN[job["size"]], EVEN[job["size"]]
    check_heads(mesh, v)
    check_logits(mesh, v)
    check_vocab_parallel(mesh, v)
    check_main_grad(mesh, v)
    call = sample("hard", even)
    check(mesh, call | LATE, True, Shard(1), call["weak"])
    check_errors(mesh)
    check_transformers(job["folder"])
    if job["size"] == 4:
        check_fsdp()
    dist.destroy_process_group()


if __name__ == "__main__":
    os.environ.setdefault("TRITON_INTERPRET", "1")
    main(json.loads(sys.argv[1]))
