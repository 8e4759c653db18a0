"""What models and loss functions do with logits: recorded and applied, or refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_patch import result
from test_patch_own_loss import assert_equal
from tiny_lms import V, batch, tiny_lm

import w2s_fast
from w2s_fast.errors import W2SError

IDS = torch.zeros(27, dtype=torch.int64)
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
    "no class ids": lambda z: F.cross_entropy(z.view(-1, V), torch.ones(27, V)),
    "[+]": lambda z: z + 1.0, "[*]": lambda z: z * torch.ones(V), "[/]": lambda z: z / 0,
}  # fmt: skip


@pytest.mark.parametrize("does", MORE)
def test_more_than_a_form_of_logits(does: str) -> None:
    lm = w2s_fast.patch(tiny_lm(num_hidden_layers=1))
    lm.loss_function = lambda logits, labels, **kw: MORE[does](logits)
    with pytest.raises(W2SError, match=f"does .*{does.strip()}.* with its logits"):
        lm(**batch())


FORMS: dict[str, Callable[[Any], Any]] = {
    "double": lambda z: 2.0 * z.double().float() / 3,
    "torch": lambda z: torch.mul(0.5, torch.div(z, 2.0)),
    "cap": lambda z: 4 * torch.tanh(z.float() / 2.5), "cap_": lambda z: z.mul(0.4).tanh_().mul(3),
    "bias": lambda z: (z * 2 + torch.linspace(-1, 1, V)) * 0.7, "some": lambda z: z[..., :50],
    "capped_bias": lambda z: 3 * torch.tanh((z + torch.linspace(-1, 1, V)[None]) / 3),
    "tensor": lambda z: z * torch.tensor(1.7),
    "shape": lambda z: z.unsqueeze(0).squeeze(0).to(z.device),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_forms_of_logits(name: str) -> None:
    def loss(logits: Any, labels: Any, **kwargs: Any) -> Any:
        z = FORMS[name](logits)[:, :-1].contiguous()
        labels = labels[:, 1:].clamp_max(z.size(-1) - 1)
        return F.cross_entropy(z.reshape(-1, z.shape[-1]).float(), labels.reshape(-1))

    plain, ours = tiny_lm(num_hidden_layers=1), w2s_fast.patch(tiny_lm(num_hidden_layers=1))
    plain.loss_function = ours.loss_function = loss
    assert_equal(result(ours, **batch()), result(plain, **batch()), torch.float32)
