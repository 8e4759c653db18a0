"""A patched causal LM is the model it was, without its logits."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import pytest
import torch
from helpers.patched import assert_same, result
from helpers.tiny_lms import ARCHITECTURES, batch, tiny_lm
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import w2s_fast
from w2s_fast.errors import W2SError
from w2s_fast.integrations.patching import progress_callback, set_progress, state


def assert_patch_keeps(build: Any, **inputs: Any) -> None:
    """``build(dtype)`` gives the same model every time."""
    truth, baseline = (result(build(d), **inputs) for d in (torch.float64, torch.float32))
    lm = build(torch.float32)
    keys = list(lm.state_dict())
    w2s_fast.patch(lm)
    assert lm(**inputs).logits is None
    assert list(lm.state_dict()) == keys
    assert_same(result(lm, **inputs), truth, baseline)
    w2s_fast.unpatch(lm)
    assert_same(result(lm, **inputs), baseline, baseline)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_loss_and_gradients(name: str, tied: bool) -> None:
    def build(dtype: torch.dtype) -> Any:
        return tiny_lm(name, dtype, tie_word_embeddings=tied)

    assert_patch_keeps(build, **batch())


def test_bias_and_scale() -> None:
    def build(dtype: torch.dtype) -> Any:
        lm = tiny_lm("granite", dtype)
        lm.lm_head.bias = nn.Parameter(torch.linspace(-1, 1, lm.lm_head.out_features, dtype=dtype))
        return lm

    assert_patch_keeps(build, **batch())


@pytest.mark.parametrize("name", ["llama", "gemma2", "phi"])
def test_bf16(name: str) -> None:
    weights = tiny_lm(name, torch.bfloat16).state_dict()  # the truth has these very weights
    wide = tiny_lm(name, torch.float64)
    wide.load_state_dict(weights)
    truth = result(wide, **batch())
    baseline = result(tiny_lm(name, torch.bfloat16), **batch())
    ours = result(w2s_fast.patch(tiny_lm(name, torch.bfloat16)), **batch())
    assert_same(ours, truth, baseline)


def test_autocast() -> None:
    truth = result(tiny_lm(dtype=torch.float64), **batch())
    patched = w2s_fast.patch(tiny_lm())
    with torch.autocast("cpu", torch.bfloat16):
        baseline = result(tiny_lm(), **batch())
        ours = result(patched, **batch())
    assert {g.dtype for g in ours.values()} == {torch.float32}
    assert_same(ours, truth, baseline)


def test_mixed_dtypes_without_autocast() -> None:
    lm = tiny_lm()
    lm.model.to(torch.bfloat16)
    with pytest.raises(W2SError, match="the forward of LlamaForCausalLM fails: .*dtype"):
        w2s_fast.patch(lm)
    lm = w2s_fast.patch(tiny_lm())
    lm.model.to(torch.bfloat16)
    with pytest.raises(W2SError, match=r"hidden torch.bfloat16 .* under torch.autocast"):
        lm(**batch())


@pytest.mark.parametrize("n_items", [7, torch.tensor(7)])
def test_num_items_in_batch(n_items: Any) -> None:
    def build(dtype: torch.dtype) -> Any:
        return tiny_lm(dtype=dtype)

    assert_patch_keeps(build, **batch(), num_items_in_batch=n_items)


def test_labels_that_are_shifted_already() -> None:
    inputs = batch()
    labels = nn.functional.pad(inputs.pop("labels"), (0, 1), value=-100)[:, 1:].contiguous()
    # The model's own forward looks at labels only to see whether there are any.
    assert_patch_keeps(
        lambda dtype: tiny_lm(dtype=dtype), **inputs, labels=labels, shift_labels=labels
    )


def test_gradient_checkpointing() -> None:
    def build(dtype: torch.dtype) -> Any:
        lm = tiny_lm(dtype=dtype, use_cache=False)
        lm.gradient_checkpointing_enable({"use_reentrant": False})
        return lm

    assert_patch_keeps(build, **batch())


def test_without_labels_nothing_changes() -> None:
    lm, plain = tiny_lm().eval(), tiny_lm().eval()
    w2s_fast.patch(lm)
    inputs = batch()
    assert float(lm(**inputs).loss.detach()) == pytest.approx(
        float(plain(**inputs).loss.detach()), rel=1e-6
    )
    inputs.pop("labels")
    assert torch.equal(lm(**inputs).logits, plain(**inputs).logits)
    assert torch.equal(
        lm.generate(**inputs, max_new_tokens=4), plain.generate(**inputs, max_new_tokens=4)
    )
    assert lm(**batch(), return_dict=False)[0].dim() == 0
    assert lm(**batch(), output_hidden_states=True).hidden_states is not None


def test_positional_inputs_and_own_embeddings() -> None:
    lm, inputs = w2s_fast.patch(tiny_lm()), batch()
    expected = lm(**inputs).loss
    assert torch.equal(lm(inputs["input_ids"], inputs["attention_mask"], None, None, None,
                          inputs["labels"]).loss, expected)  # fmt: skip
    embedded = lm.get_input_embeddings()(inputs.pop("input_ids"))
    assert torch.equal(lm(inputs_embeds=embedded, **inputs).loss, expected)


def test_a_copy_has_its_own_weights() -> None:
    lm = w2s_fast.patch(tiny_lm())
    twin = copy.deepcopy(lm)
    with torch.no_grad():
        for p in lm.parameters():
            p.zero_()
    assert torch.allclose(twin(**batch()).loss, tiny_lm()(**batch()).loss)
    w2s_fast.unpatch(twin)
    with pytest.raises(W2SError, match="not patched"):
        w2s_fast.unpatch(twin)
    w2s_fast.unpatch(lm)


def test_training_modes_and_random_numbers_survive_patching() -> None:
    lm = tiny_lm()
    lm.model.layers[0].eval()
    before, state = [m.training for m in lm.modules()], torch.get_rng_state()
    w2s_fast.patch(lm)
    assert [m.training for m in lm.modules()] == before
    assert torch.equal(torch.get_rng_state(), state)


def test_no_labelled_position() -> None:
    lm = w2s_fast.patch(tiny_lm())
    inputs = batch()
    weightless = result(lm, **inputs, weak_weight=torch.zeros(3))
    inputs["labels"][:] = -100
    got = result(lm, **inputs)
    assert not any(value.any() for value in weightless.values())
    assert got.keys() == {"loss", *(n for n, _ in lm.named_parameters())}
    assert not any(value.any() for value in got.values())


class Largest(TorchDispatchMode):
    """Bytes of the largest storage that any operator returned."""

    n = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        sizes = [t.untyped_storage().nbytes() for t in tree_leaves(out) if isinstance(t, Tensor)]
        self.n = max([self.n, *sizes])
        return out


def test_logits_are_never_made() -> None:
    lm = tiny_lm(vocab_size=2000, use_cache=False)
    ids = torch.randint(3, 2000, (2, 30))
    with Largest() as plain:
        result(lm, input_ids=ids, labels=ids)
    w2s_fast.patch(lm, memory_mib=10 * 2000 * 4 / 2**20)  # ten rows a chunk
    with Largest() as ours:
        result(lm, input_ids=ids, labels=ids)
    assert plain.n >= 4 * 2 * 30 * 2000
    assert ours.n == 4 * 2000 * 16  # the head itself


def test_only_labelled_positions_reach_the_head(monkeypatch: pytest.MonkeyPatch) -> None:
    lm, seen, called = w2s_fast.patch(tiny_lm()), [], state.call_head

    def call_head(head: Any, hidden: Tensor, head_fn: Any) -> Any:
        seen.append(tuple(hidden.shape))
        return called(head, hidden, head_fn)

    monkeypatch.setattr(state, "call_head", call_head)
    inputs = batch()
    lm(**inputs)
    assert seen == [(int((inputs["labels"][:, 1:] != -100).sum()), 16)]


@pytest.mark.slow
def test_compiled_without_graph_breaks() -> None:
    lm = w2s_fast.patch(tiny_lm(num_hidden_layers=1, use_cache=False), loss="logconf:aux_coef=0.5")
    set_progress(lm, 0.05)
    expected = result(lm, **batch())
    torch._dynamo.reset()
    from torch._dynamo.testing import CompileCounterWithBackend

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lm, fullgraph=True, backend=counter)
    got = result(compiled, **batch())
    for (name, a), b in zip(got.items(), expected.values(), strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6), name
    losses = []
    for step_frac in (0.0, 0.02, 0.04):
        set_progress(lm, step_frac)
        losses.append(float(compiled(**batch()).loss))
        assert losses[-1] == pytest.approx(float(lm(**batch()).loss), rel=1e-5)
    assert len(set(losses)) == 3 and counter.frame_count == 1  # a schedule compiles nothing anew


def test_signature_names_the_columns() -> None:
    lm = w2s_fast.patch(tiny_lm())
    names = list(inspect.signature(lm.forward).parameters)
    assert names[0] == "input_ids" and names[-1] == "kwargs"
    assert {"weak_labels", "weak_ids", "weak_probs", "weak_rest", "weak_weight"} < set(names)


def test_trainer(tmp_path: Any) -> None:
    """Accumulated, its loss and weights are those of the model's own forward; columns survive."""
    from datasets import Dataset
    from transformers import Trainer, TrainingArguments

    args = TrainingArguments(
        str(tmp_path), per_device_train_batch_size=2, gradient_accumulation_steps=2, max_steps=2,
        report_to=[], use_cpu=True, save_strategy="no", logging_steps=1, seed=1, optim="sgd",
        learning_rate=0.1, disable_tqdm=True,
    )  # fmt: skip
    rows = {k: v.tolist() for k, v in batch(size=8).items()}
    data = Dataset.from_dict({**rows, "other": [0] * 8})

    def trained(patched: bool, data: Any) -> tuple[Any, list[float]]:
        lm = tiny_lm()
        if patched:
            w2s_fast.patch(lm)
        trainer = Trainer(lm, args, train_dataset=data)
        trainer.train()
        return lm, [log["loss"] for log in trainer.state.log_history if "loss" in log]

    (plain, expected), (ours, losses) = trained(False, data), trained(True, data)
    assert losses == pytest.approx(expected, abs=2e-4) and len(losses) == 2
    for (name, a), (_, b) in zip(ours.named_parameters(), plain.named_parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5), name
    weighted = data.add_column("weak_weight", [0.5] * 8)
    assert trained(True, weighted)[1] == pytest.approx([x / 2 for x in expected], rel=0.05)


def test_progress_comes_from_the_callback() -> None:
    from types import SimpleNamespace

    lm = w2s_fast.patch(tiny_lm(), loss="logconf")
    callback = progress_callback(lm)
    callback.on_step_begin(None, SimpleNamespace(global_step=3, max_steps=4), None)
    assert (lm._w2s_fast.step_frac, lm._w2s_fast.step) == (0.75, 3)
