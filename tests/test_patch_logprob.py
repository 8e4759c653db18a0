"""Log-probabilities of answers from a patched model: those of its logits, gradients too."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_lms import ARCHITECTURES, B, T, V, tiny_lm
from torch import Tensor

import w2s_fast
from w2s_fast.errors import W2SError


def batch() -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(0)
    ids = torch.randint(3, V, (B, T), generator=g)
    labels = torch.where(torch.arange(T) >= 4, ids, -100).repeat(1, 1)
    labels[1, 6:] = -100
    labels[2] = -100  # no answer at all
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def expected(lm: Any, inputs: dict[str, Tensor]) -> Tensor:
    labels = inputs["labels"][:, 1:]
    logits = lm(**{k: v for k, v in inputs.items() if k != "labels"}).logits
    logp = logits[:, :-1].to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    taken = logp.gather(-1, labels.clamp_min(0)[..., None])[..., 0]
    return torch.where(labels != -100, taken, 0).sum(1)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_values_and_gradients(name: str) -> None:
    lm = tiny_lm(name)
    upstream = torch.tensor([1.0, -2.0, 3.0])
    theirs = expected(lm, batch())
    theirs.backward(upstream)
    grads = {n: p.grad.clone() for n, p in lm.named_parameters()}
    lm.zero_grad()
    w2s_fast.patch(lm)
    ours = lm(**batch(), return_logprob=True)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert ours[2] == 0
    ours.backward(upstream)
    for n, p in lm.named_parameters():
        torch.testing.assert_close(p.grad, grads[n], rtol=1e-4, atol=1e-5, msg=n)


def test_lora_on_the_head_and_no_answer() -> None:
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(r=2, target_modules=["lm_head", "q_proj"], init_lora_weights=False)
    model = get_peft_model(tiny_lm(), lora)
    theirs = expected(model, batch())
    w2s_fast.patch(model)
    ours = model(**batch(), return_logprob=True)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    inputs = batch()
    nothing = model(**inputs | {"labels": torch.full((B, T), -100)}, return_logprob=True)
    assert nothing.tolist() == [0] * B
    nothing.sum().backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert trained and all(p.grad is not None and not p.grad.any() for p in trained)


def test_only_labelled_positions_enter_the_product(monkeypatch: pytest.MonkeyPatch) -> None:
    from w2s_fast.integrations.patching import logprob

    seen, real = [], logprob.linear_logprob

    def watched(*args: Any, positions: Tensor, **kwargs: Any) -> Any:
        seen.append(positions.tolist())
        return real(*args, positions=positions, **kwargs)

    monkeypatch.setattr(logprob, "linear_logprob", watched)
    w2s_fast.patch(tiny_lm())(**batch(), return_logprob=True)
    assert seen == [(batch()["labels"][:, 1:] != -100).flatten().nonzero()[:, 0].tolist()]


def test_compiled_without_graph_breaks() -> None:
    lm = w2s_fast.patch(tiny_lm(num_hidden_layers=1, use_cache=False))
    theirs = lm(**batch(), return_logprob=True)
    torch._dynamo.reset()
    compiled = torch.compile(lm, fullgraph=True, backend="aot_eager")
    ours = compiled(**batch(), return_logprob=True)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    grads = [torch.autograd.grad(y.sum(), list(lm.parameters())) for y in (ours, theirs)]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_bad_requests() -> None:
    lm = w2s_fast.patch(tiny_lm())
    inputs = batch()
    labels = inputs.pop("labels")
    with pytest.raises(W2SError, match="return_logprob came without labels"):
        lm(**inputs, return_logprob=True)
    with pytest.raises(W2SError, match="labels has shape"):
        lm(**inputs, labels=labels[:, 1:], return_logprob=True)
    with pytest.raises(W2SError, match="logits_to_keep asks for logits"):
        lm(**inputs, labels=labels, logits_to_keep=1, return_logprob=True)
