"""A patched model never trains another loss than its own, whatever its logits' dtype and size."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.patched import result
from helpers.patched_classes import MOE, SERVED, Penalised, assert_equal, mixtral, tiny
from helpers.tiny_lms import T, V, batch, tiny_lm
from torch import Tensor, nn

import w2s_fast
from bench.architectures.tiny_models import tiny as tiny_class
from w2s_fast.errors import W2SError


def assert_own(lm: Any, inputs: dict[str, Any], dtype: torch.dtype = torch.float32) -> None:
    """Loss and gradients before and after ``patch``; in 16 bit with room for rounded logits."""
    lm = lm.to(dtype)
    plain = result(copy.deepcopy(lm), **inputs)
    assert_equal(result(w2s_fast.patch(lm), **inputs), plain, dtype)


DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])


@DTYPES
@pytest.mark.parametrize("name", SERVED)
def test_served(name: str, dtype: torch.dtype) -> None:
    lm = SERVED[name]()
    if name == "logits_bias":
        lm.final_logits_bias.copy_(torch.linspace(-1, 1, lm.final_logits_bias.numel())[None])
    assert_own(lm, batch(), dtype)


@pytest.mark.parametrize("coefficient", [0.0, 0.5])
def test_router_loss_beside_another_loss(coefficient: float) -> None:
    """The patched loss replaces the cross-entropy, not what the model adds to it."""
    lm = tiny("MixtralForCausalLM", **{**MOE, "router_aux_loss_coef": coefficient})
    w2s_fast.patch(lm, loss="smoothing:epsilon=0.2")
    alone = lm(**batch()).loss
    both = lm(**batch(), output_router_logits=True)
    added = coefficient * both.aux_loss
    assert float(both.loss.detach()) == pytest.approx(float((alone + added).detach()), rel=1e-6)
    assert both.logits is None


def test_scheduled_configuration_of_a_trainer(tmp_path: Any) -> None:
    """Patched first, then TRL's trainer, which switches the router's loss on: the same step."""
    pytest.importorskip("trl")
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    class Trainer(SFTTrainer):
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            return super(SFTTrainer, self).compute_loss(*args, **kwargs)

    rows = Dataset.from_dict({k: v.tolist() for k, v in batch(size=2).items()})

    def trained(patched: bool) -> Any:
        lm = tiny("Qwen3MoeForCausalLM", head_dim=8, num_key_value_heads=2, num_experts=4,
                  num_experts_per_tok=2, moe_intermediate_size=8,
                  router_aux_loss_coef=0.5)  # fmt: skip
        if patched:
            w2s_fast.patch(lm)
        args = SFTConfig(
            str(tmp_path), max_steps=1, report_to=[], use_cpu=True, bf16=False, optim="sgd",
            learning_rate=0.1, save_strategy="no", max_grad_norm=0, seed=1, max_length=T,
            router_aux_loss_coef=0.5, per_device_train_batch_size=2,
        )  # fmt: skip
        Trainer(lm, args, train_dataset=rows, processing_class=tokenizer()).train()
        return lm

    plain, ours = trained(False), trained(True)
    assert ours.config.output_router_logits
    for (name, a), b in zip(ours.named_parameters(), plain.parameters(), strict=True):
        assert torch.allclose(a, b, atol=2e-6), name


def tokenizer() -> Any:
    from w2s_fast.tasks.datasets.agreement import tokenizer as make

    return make()


# What a user changes after patch() counts at the next call.


def twice(logits: Any, labels: Any, vocab_size: int, **kwargs: Any) -> Any:
    shifted = F.pad(labels, (0, 1), value=-100)[..., 1:].reshape(-1)
    return 2 * F.cross_entropy(logits.float().view(-1, vocab_size), shifted)


def change_loss(lm: Any) -> None:
    lm.loss_function = twice


def change_cap(lm: Any) -> None:
    lm.config.final_logit_softcapping = 0.7


def change_scale(lm: Any) -> None:
    lm.config.logits_scaling = lm.config.logits_scaling * 2


def change_copied_scale(lm: Any) -> None:
    lm.logit_scale = 3.0  # what its configuration says was copied when it was built


CHANGES = {
    "loss_function": ("llama", change_loss), "softcap": ("gemma2", change_cap),
    "scale": ("granite", change_scale), "copied": ("cohere", change_copied_scale),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_changed_after_patching(change: str) -> None:
    name, apply = CHANGES[change]
    plain, ours = tiny_lm(name), w2s_fast.patch(tiny_lm(name))
    before = float(ours(**batch()).loss.detach())
    for lm in (plain, ours):
        apply(lm)
    theirs = result(plain, **batch())
    assert float(theirs["loss"]) != pytest.approx(before, rel=1e-3)
    assert_equal(result(ours, **batch()), theirs, torch.float32)
    logp = ours(**batch(), return_logprob=True).sum() if change != "loss_function" else None
    if logp is not None:
        count = int((batch()["labels"][:, 1:] != -100).sum())
        assert float(-logp.detach() / count) == pytest.approx(float(theirs["loss"]), rel=1e-5)


@pytest.mark.parametrize(
    "kind",
    ["register_forward_hook", "register_full_backward_hook", "register_forward_pre_hook"],
)
def test_a_hook_on_the_head(kind: str) -> None:
    lm = w2s_fast.patch(tiny_lm())
    handle = getattr(lm.lm_head, kind)(lambda *args: None)
    with pytest.raises(W2SError, match="the head has a hook of .*test_own_loss"):
        lm(**batch())
    handle.remove()
    lm(**batch())


def test_a_loss_function_that_needs_logits() -> None:
    lm = w2s_fast.patch(tiny_lm())
    lm.loss_function = lambda logits, labels, **kw: logits.log_softmax(-1).mean()
    with pytest.raises(W2SError, match="does 'log_softmax' with its logits"):
        lm(**batch())


@pytest.mark.slow
def test_compiled_code_follows_the_configuration() -> None:
    lm = w2s_fast.patch(tiny_lm("gemma2", num_hidden_layers=1, use_cache=False))
    torch._dynamo.reset()
    compiled = torch.compile(lm, backend="eager")
    for cap in (1.5, 0.7):
        lm.config.final_logit_softcapping = cap
        got = float(compiled(**batch()).loss)
        assert got == pytest.approx(float(lm(**batch()).loss.detach()), rel=1e-5)
    other = w2s_fast.patch(tiny_lm("cohere", num_hidden_layers=1, use_cache=False))
    change_copied_scale(other)
    expected = float(other(**batch()).loss.detach())
    compiled_other = torch.compile(other, backend="eager")
    assert float(compiled_other(**batch()).loss) == pytest.approx(expected, rel=1e-5)
    logp = [run(**batch(), return_logprob=True).detach() for run in (other, compiled_other)]
    assert torch.allclose(*logp, rtol=1e-5)
    lm.loss_function = twice
    expected = float(lm(**batch()).loss.detach())
    assert float(compiled(**batch()).loss) == pytest.approx(expected, rel=1e-5)


def test_compiled_code_sees_a_cap_of_the_text_model_inside() -> None:
    """It was off when the model was compared, so only its configuration can tell."""
    lm = tiny_class("Gemma4ForConditionalGeneration", "small").train()
    lm.config.text_config.final_logit_softcapping = None
    w2s_fast.patch(lm)
    lm.config.text_config.final_logit_softcapping = 2.0
    ids = torch.randint(3, 60, (2, 6), generator=torch.Generator().manual_seed(0))
    expected = float(lm(input_ids=ids, labels=ids).loss.detach())
    torch._dynamo.reset()
    got = torch.compile(lm, backend="eager")(input_ids=ids, labels=ids).loss
    assert float(got) == pytest.approx(expected, rel=1e-5)


def test_compiled_mixture_of_experts() -> None:
    lm = w2s_fast.patch(mixtral(num_hidden_layers=1))
    expected = result(lm, **batch())
    torch._dynamo.reset()
    got = result(torch.compile(lm, backend="eager"), **batch())
    got = {name.removeprefix("_orig_mod."): value for name, value in got.items()}
    assert_equal(got, expected, torch.float32)


# Keywords of the model's own loss.


def test_ignore_index() -> None:
    inputs = batch()
    inputs["labels"] = inputs["labels"].where(inputs["labels"] != -100, 7)
    plain = result(tiny_lm(), **inputs, ignore_index=7)
    lm = w2s_fast.patch(tiny_lm())
    assert_equal(result(lm, **inputs, ignore_index=7), plain, torch.float32)
    half = lm(**inputs, ignore_index=7, weak_weight=torch.full((3,), 0.5), num_items_in_batch=5)
    full = lm(**inputs, ignore_index=7, num_items_in_batch=5)
    assert float(half.loss.detach()) == pytest.approx(float(full.loss.detach()) / 2, rel=1e-6)
    with pytest.raises(W2SError, match="ignore_index=7 came with labels of -100"):
        lm(**batch(), ignore_index=7)


@pytest.mark.parametrize("more", [{"label_smoothing": 0.1}, {"num_items_in_batch": 13}])
def test_keywords_of_the_loss(more: dict[str, Any]) -> None:
    plain = result(tiny_lm(), **batch(), **more)
    assert_equal(result(w2s_fast.patch(tiny_lm()), **batch(), **more), plain, torch.float32)


def test_smoothing_of_the_loss_function() -> None:
    def smoothed(logits: Any, labels: Any, vocab_size: int, **kwargs: Any) -> Any:
        rows = logits[:, :-1].reshape(-1, vocab_size)
        return F.cross_entropy(rows.float(), labels[:, 1:].flatten(), label_smoothing=0.2)

    plain, ours = tiny_lm(), w2s_fast.patch(tiny_lm())
    plain.loss_function = ours.loss_function = smoothed
    assert_equal(result(ours, **batch()), result(plain, **batch()), torch.float32)
    with pytest.raises(W2SError, match="label_smoothing=0.2 of the model's loss function"):
        ours(**batch(), weak_labels=torch.full((3, T, V), 1 / V))


def test_shift_labels_of_a_model_that_shifts_itself() -> None:
    shifted = batch()
    shifted["shift_labels"] = shifted.pop("labels")
    with pytest.raises(W2SError, match="does not use shift_labels unchanged"):
        w2s_fast.patch(Shifting(tiny_lm().config))(**shifted)


# What is not a shift by one: columns cannot follow it.


def test_columns_of_other_shifts() -> None:
    lm = w2s_fast.patch(SERVED["unshifted"]())
    with pytest.raises(W2SError, match="does not shift its labels by one token"):
        lm(**batch(), weak_weight=torch.ones(3))
    lm = w2s_fast.patch(SERVED["encoder_decoder"]())
    with pytest.raises(W2SError, match="is an encoder-decoder .* not weak_weight"):
        lm(**batch(), weak_weight=torch.ones(3))


class Shifting(type(tiny_lm())):  # type: ignore[misc]
    """A shift of its own, whatever else is given."""

    def forward(self, *args: Any, labels: Any = None, shift_labels: Any = None, **kw: Any) -> Any:
        out = super().forward(*args, **kw)
        if labels is not None:
            rows = out.logits[:, :-1].reshape(-1, V)
            out.loss = F.cross_entropy(rows.float(), labels[:, 1:].flatten())
        return out


class Twofold(type(tiny_lm())):  # type: ignore[misc]
    """Adds the cross-entropy of the token after the next, as multi-token prediction does."""

    def forward(self, *args: Any, labels: Any = None, **kwargs: Any) -> Any:
        out = super().forward(*args, labels=labels, **kwargs)
        if labels is not None:
            last = self.model(kwargs["input_ids"]).last_hidden_state
            rows = self.lm_head(last[:, :-2]).reshape(-1, V)
            out.loss = out.loss + 0.3 * F.cross_entropy(rows.float(), labels[:, 2:].flatten())
        return out


def test_multi_token_prediction() -> None:
    torch.manual_seed(0)
    lm = Twofold(tiny_lm().config).train()
    plain = result(copy.deepcopy(lm), **batch())
    assert_equal(result(w2s_fast.patch(lm), **batch()), plain, torch.float32)
    for more in ({"weak_weight": torch.ones(3)}, {}):
        if not more:
            w2s_fast.patch(w2s_fast.unpatch(lm), loss="focal")
        with pytest.raises(W2SError, match="Twofold adds the cross-entropy of further tokens"):
            lm(**batch(), **more)


# The comparison itself: as sharp in bf16 as in fp32, and for logits of any size.


class Capped(type(tiny_lm())):  # type: ignore[misc]
    """A soft-cap that no field of the configuration tells, written past the head."""

    def forward(self, *args: Any, labels: Any = None, **kwargs: Any) -> Any:
        out = super().forward(*args, **kwargs)
        out.logits = 30 * torch.tanh(out.logits / 30)
        if labels is not None:
            out.loss = self.loss_function(out.logits, labels, vocab_size=V)
        return out


@DTYPES
@pytest.mark.parametrize("size", [1.0, 0.01])
def test_hidden_cap(dtype: torch.dtype, size: float) -> None:
    lm = Capped(tiny_lm().config).train()
    with torch.no_grad():
        lm.lm_head.weight.mul_(size)
    assert_own(lm, batch(), dtype)
    with torch.no_grad():  # pre-training makes them larger
        lm.lm_head.weight.mul_(100 / size)
    theirs = result(copy.deepcopy(w2s_fast.unpatch(lm)), **batch())
    assert_equal(result(w2s_fast.patch(lm), **batch()), theirs, dtype)


@DTYPES
def test_loss_with_more_in_it(dtype: torch.dtype) -> None:
    with pytest.raises(W2SError, match="does 'logsumexp' with its logits"):
        w2s_fast.patch(Penalised(tiny_lm().config).to(dtype))


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def test_a_head_with_a_forward_of_its_own() -> None:
    lm = tiny_lm()
    lm.lm_head = Doubled(16, V, bias=False)
    with pytest.raises(W2SError, match="the head of LlamaForCausalLM is a Doubled"):
        w2s_fast.patch(lm)
