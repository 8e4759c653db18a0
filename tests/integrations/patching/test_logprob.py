"""Log-probabilities of answers from a patched model: those of its logits, gradients too."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.patched import expected
from helpers.tiny_lms import ARCHITECTURES, B, T, V, tiny_lm
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


@pytest.mark.slow
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
    with pytest.raises(W2SError, match="logits_to_keep requests logits"):
        lm(**inputs, labels=labels, logits_to_keep=1, return_logprob=True)


@pytest.mark.parametrize("name", ["Bart", "XLNet", "XLM", "T5", "Marian"])
def test_models_whose_labels_are_not_shifted_by_one(name: str) -> None:
    """Their own loss has the label of token t at token t: one token further is another answer."""
    lm = w2s_fast.patch(unshifted(name))
    inputs = batch()
    inputs.pop("attention_mask")
    with pytest.raises(W2SError, match=r"return_logprob shifts labels by one token, and .*logits"):
        lm(**inputs, return_logprob=True)


@pytest.mark.parametrize("first", [False, True], ids=["at patch", "at first use"])
@pytest.mark.parametrize("name", ["Bart", "XLNet"])
def test_compiled_losses_that_do_not_shift(name: str, first: bool) -> None:
    lm = unshifted(name).eval()
    inputs = {"input_ids": batch()["input_ids"], "labels": batch()["labels"]}
    expected = lm(**inputs).loss.item()
    w2s_fast.patch(lm)
    if first:  # as if its weights had not been here
        lm._w2s_fast.compared, lm._w2s_fast.shifts = False, None
    torch._dynamo.reset()
    compiled = torch.compile(lm, backend="eager")
    assert compiled(**inputs).loss.item() == pytest.approx(expected, rel=1e-5)


def test_a_loss_function_that_does_not_shift() -> None:
    """Found at the first use where the weights were not here when it was patched."""
    lm = tiny_lm()
    lm.loss_function = lambda logits, labels, vocab_size, **kw: torch.nn.functional.cross_entropy(
        logits.float().view(-1, vocab_size), labels.view(-1)
    )
    w2s_fast.patch(lm)
    lm._w2s_fast.shifts = None
    for _ in range(2):
        with pytest.raises(W2SError, match="the loss of LlamaForCausalLM does not"):
            lm(**batch(), return_logprob=True)


def test_the_first_use_is_like_every_other() -> None:
    lm = w2s_fast.patch(tiny_lm())
    assert lm._w2s_fast.shifts is True
    lm._w2s_fast.shifts = None
    first = lm(**batch(), return_logprob=True)
    assert lm._w2s_fast.shifts is True
    assert torch.equal(first, lm(**batch(), return_logprob=True))


@pytest.mark.parametrize(
    "name", ["weak_weight", "weak_labels", "weak_frac", "shift_labels", "ignore_index"]
)
def test_what_would_not_count(name: str) -> None:
    lm = w2s_fast.patch(tiny_lm())
    values: dict[str, Any] = {
        "weak_weight": torch.zeros(B), "weak_labels": batch()["labels"], "weak_frac": 0.5,
        "shift_labels": batch()["labels"], "ignore_index": 7,
    }  # fmt: skip
    with pytest.raises(W2SError, match=f"return_logprob came with {name}, which it does not use"):
        lm(**batch(), **{name: values[name]}, return_logprob=True)
    lm(**batch(), **{name: None}, return_logprob=True)


def unshifted(name: str) -> Any:
    """A tiny model whose labels stand where they are learned."""
    import transformers as hf

    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": V, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1,
        "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 24,
        "decoder_ffn_dim": 24, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
        "decoder_start_token_id": 1, "forced_eos_token_id": None, "max_position_embeddings": 32,
    }  # fmt: skip
    if name == "Bart":
        return hf.BartForCausalLM(hf.BartConfig(**sizes)).train()
    if name == "Marian":
        return hf.MarianMTModel(hf.MarianConfig(**sizes)).train()
    if name == "XLNet":
        config = hf.XLNetConfig(vocab_size=V, d_model=16, n_layer=1, n_head=2, d_inner=24)
        return hf.XLNetLMHeadModel(config).train()
    if name == "XLM":
        config = hf.XLMConfig(vocab_size=V, emb_dim=16, n_layers=1, n_heads=2, pad_index=0)
        return hf.XLMWithLMHeadModel(config).train()
    small = {"vocab_size": V, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1}
    config = hf.T5Config(**small, num_heads=2, decoder_start_token_id=0)
    return hf.T5ForConditionalGeneration(config).train()
