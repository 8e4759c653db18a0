"""What models and loss functions do with logits: recorded and applied, or refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.patched import result
from helpers.patched_classes import assert_equal
from helpers.tiny_lms import V, batch, tiny_lm

import w2s_fast
from w2s_fast.errors import W2SError

IDS = torch.zeros(27, dtype=torch.int64)


class Halved(torch.autograd.Function):
    """Logits as they are, and half of their gradient."""

    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        return grad / 2


def no_grad(z: Any) -> Any:
    with torch.no_grad():
        return z * 2


MORE: dict[str, Callable[[Any], Any]] = {
    "sub": lambda z: (z - 1).mean(), "neg": lambda z: -z, "pow": lambda z: z**2,
    "gt": lambda z: z > 0, "eq": lambda z: z == 0, "bool": lambda z: 1 if z else 0,
    "softmax": lambda z: z.softmax(-1),
    "softmax ": lambda z: torch.softmax(z, -1), "index some": lambda z: z[..., 3:],
    "index some of": lambda z: z[:, 1:, 5], "write": lambda z: z.__setitem__(0, 1.0),
    "view": lambda z: z.view(3, -1), "transpose": lambda z: z.transpose(1, 2),
    "cat": lambda z: torch.cat([z, z]), "where": lambda z: torch.where(torch.tensor(True), z, 0.0),
    "iterate": lambda z: list(z), "tanh twice": lambda z: z.tanh().tanh(),
    "class weights": lambda z: F.cross_entropy(z.view(-1, V), IDS, torch.ones(V)),
    "reduction": lambda z: F.cross_entropy(z.view(-1, V), IDS, reduction="none"),
    "not class ids": lambda z: F.cross_entropy(z.view(-1, V), torch.ones(27, V)),
    "add with alpha": lambda z: torch.add(z, torch.ones(V), alpha=0.5),
    "share": lambda z: (z[:, :-1], z.mul_(2.0)), "share ": lambda z: z[:, :-1].mul_(2.0),
    "no_grad": no_grad, "autograd": lambda z: Halved.apply(z),
    "[+]": lambda z: z + 1.0, "[*]": lambda z: z * torch.ones(V), "[/]": lambda z: z / 0,
}  # fmt: skip


@pytest.mark.parametrize("does", MORE)
def test_more_than_a_form_of_logits(does: str) -> None:
    lm = w2s_fast.patch(tiny_lm(num_hidden_layers=1))
    lm.loss_function = lambda logits, labels, **kw: MORE[does](logits)
    with pytest.raises(W2SError, match=f"does .*{does.strip()}.* with its logits"):
        lm(**batch())


def in_place(z: Any) -> Any:
    same = z.float()
    same.div_(2.0)
    same += torch.linspace(-1, 1, V)
    z *= 3.0
    z.mul_(0.2).tanh_()
    return z


FORMS: dict[str, Callable[[Any], Any]] = {
    "double": lambda z: 2.0 * z.double().float() / 3,
    "torch": lambda z: torch.mul(0.5, torch.div(z, 2.0)),
    "cap": lambda z: 4 * torch.tanh(z.float() / 2.5), "cap_": lambda z: z.mul(0.4).tanh_().mul(3),
    "bias": lambda z: (z * 2 + torch.linspace(-1, 1, V)) * 0.7, "some": lambda z: z[..., :50],
    "capped_bias": lambda z: 3 * torch.tanh((z + torch.linspace(-1, 1, V)[None]) / 3),
    "tensor": lambda z: z * torch.tensor(1.7),
    "in place": in_place, "copied": lambda z: (z.clone().mul_(3.0), z.double().div_(2.0))[1],
    "shape": lambda z: z.unsqueeze(0).squeeze(0).to(z.device),
}  # fmt: skip


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("name", FORMS)
def test_forms_of_logits(name: str, when: str) -> None:
    def loss(logits: Any, labels: Any, **kwargs: Any) -> Any:
        z = FORMS[name](logits)[:, :-1].contiguous()
        labels = labels[:, 1:].clamp_max(z.size(-1) - 1)
        return F.cross_entropy(z.reshape(-1, z.shape[-1]).float(), labels.reshape(-1))

    plain, ours = tiny_lm(num_hidden_layers=1), tiny_lm(num_hidden_layers=1)
    if when == "after":
        w2s_fast.patch(ours)
    plain.loss_function = ours.loss_function = loss
    if when == "before":
        w2s_fast.patch(ours)
    assert_equal(result(ours, **batch()), result(plain, **batch()), torch.float32)


def test_a_bias_that_the_head_cannot_hold() -> None:
    def loss(logits: Any, labels: Any, **kwargs: Any) -> Any:
        z = (logits.float() + torch.linspace(-1, -24, V))[:, :-1].reshape(-1, V)
        return F.cross_entropy(z, labels[:, 1:].reshape(-1))

    lm = w2s_fast.patch(tiny_lm(num_hidden_layers=1).bfloat16())
    lm.loss_function = loss
    with pytest.raises(W2SError, match="a bias in torch.float32 that torch.bfloat16 does not hold"):
        lm(**batch())


def test_a_head_of_another_class() -> None:
    class Halving(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) / 2

    lm = w2s_fast.patch(tiny_lm(num_hidden_layers=1))
    lm.lm_head.__class__ = Halving
    with pytest.raises(W2SError, match="the head, a Halving, is not the one that was patched"):
        lm(**batch())
