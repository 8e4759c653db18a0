"""Pairs without padding and with common beginnings once: what padded rows give, and rows alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.completion_pairs import plain_logprob, with_columns
from helpers.generation_cases import checkpoint, small_lm
from torch import Tensor

from w2s_fast.models.causal_lm import GenerativeModel
from w2s_fast.models.packed_attention import ATTENTION, can_pack
from w2s_fast.tasks.datasets.agreement import tokenizer as agreement_tokenizer
from w2s_fast.testing import BACKWARD, FORWARD, assert_within_budget
from w2s_fast.training import CompletionPairs, encode_pairs
from w2s_fast.training.engine import forward

WORDS = ("the", "old", "key", "near", "boy", "door", "cat", "dog", "red")
V = len(agreement_tokenizer())
SIZES: dict[str, Any] = {
    "vocab_size": V, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "initializer_range": 0.2, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0,
}  # fmt: skip
LLAMA = {**SIZES, "num_key_value_heads": 2, "intermediate_size": 48}


def llama(**fields: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**LLAMA, **fields))


def gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    rates = {name: 0.0 for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop")}
    return GPT2LMHeadModel(GPT2Config(n_positions=64, **rates, **SIZES))


def gemma2() -> Any:
    """Soft-capped attention, which has no packed form, and soft-capped logits."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    return Gemma2ForCausalLM(Gemma2Config(head_dim=8, **LLAMA))


def gemma3(**fields: Any) -> Any:
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    return Gemma3ForCausalLM(Gemma3TextConfig(head_dim=8, **LLAMA, **fields))


def mamba() -> Any:
    """A state that runs through the tokens in their order."""
    from transformers import MambaConfig, MambaForCausalLM

    sizes = {k: v for k, v in SIZES.items() if k != "num_attention_heads"}
    return MambaForCausalLM(MambaConfig(state_size=4, **sizes))


PACKED: dict[str, Callable[[], Any]] = {"llama": llama, "gpt2": gpt2, "gemma3": gemma3}
PADDED: dict[str, Callable[[], Any]] = {"gemma2": gemma2, "mamba": mamba}


def uneven_pairs() -> CompletionPairs:
    """Prompts of one token and of twenty, completions of one to thirty, one inside another."""
    rng = np.random.default_rng(0)

    def some(n: int) -> str:
        return " ".join(rng.choice(WORDS, n))

    prompts = ["the", some(20), some(3), "key", some(7), "old"]
    first = [f" {some(n)}" for n in (30, 1, 4, 1, 2)] + [" key cat the dog"]
    second = [f" {some(n)}" for n in (1, 2, 9, 12)]
    again = " door cat the dog key"  # equal tokens at equal places, after a difference
    inside = f"{first[4]} {some(5)}"
    return with_columns(
        encode_pairs(agreement_tokenizer(), prompts, first, [*second, inside, again])
    )


def logprob_and_gradients(model: Any, batch: Any) -> tuple[Tensor, list[Tensor]]:
    """Log-probabilities of completions, and gradients of a sum with different factors."""
    logp = forward(model, batch)[..., 0]
    factors = torch.linspace(-1, 2, logp.numel()).view(logp.shape).to(logp.dtype)
    parameters = [p for p in model.parameters() if p.requires_grad]
    return logp.detach(), list(torch.autograd.grad((factors * logp).sum(), parameters))


@pytest.mark.parametrize("name", [*PACKED, *PADDED])
def test_packed_is_padded_is_one_by_one(name: str) -> None:
    torch.manual_seed(0)
    pairs = uneven_pairs()
    model = GenerativeModel({**PACKED, **PADDED}[name]())
    every = np.arange(len(pairs))
    batch = pairs.batch(every)
    assert batch.packing is not None
    packed = logprob_and_gradients(model, batch)
    assert (model.lm.config._attn_implementation == ATTENTION) == (name in PACKED)
    padded = logprob_and_gradients(model, batch._replace(packing=None))
    exact = GenerativeModel({**PACKED, **PADDED}[name]())
    exact.load_state_dict(model.state_dict())
    exact = exact.double()
    alone = plain_logprob(exact.lm, pairs)
    factors = torch.linspace(-1, 2, alone.numel()).view(alone.shape).double()
    wanted = torch.autograd.grad(
        (factors * alone).sum(), [p for p in exact.parameters() if p.requires_grad]
    )
    assert_within_budget(packed[0], alone.detach(), padded[0], FORWARD, "log-probability")
    for p, g, want, base in zip(
        exact.named_parameters(), packed[1], wanted, padded[1], strict=True
    ):
        assert_within_budget(g, want, base, BACKWARD, p[0])


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("lora_rank", [0, 2])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_adapters_bf16_and_recomputed_activations_are_packed(
    kind: str, lora_rank: int, dtype: str, tmp_path: Path
) -> None:
    """The gradients of padded rows; a layer is computed again with the same packing."""
    tokenizer = agreement_tokenizer()
    folders = {kind: checkpoint(kind, tmp_path / kind, tokenizer)}
    pairs = uneven_pairs()
    batch = pairs.batch(np.arange(len(pairs)))
    assert batch.packing is not None
    results, seen = [], []
    for recompute, packing in ((True, batch.packing), (False, batch.packing), (False, None)):
        model = small_lm(folders, kind, tokenizer, lora_rank=lora_rank, dtype=dtype)
        adapters = [(n, p) for n, p in model.named_parameters() if "lora_B" in n]
        for i, (_, p) in enumerate(adapters):  # they start from 0, where they change nothing
            torch.nn.init.normal_(p, generator=torch.Generator().manual_seed(i))
        assert bool(adapters) == bool(lora_rank)
        model.train()  # with the dropout of GPT-2
        assert can_pack(model.lm, 40) and model.lm.config._attn_implementation == ATTENTION
        for m in model.modules():
            if isinstance(m, torch.nn.Dropout):
                m.p = 0.0
        model.gradient_checkpointing(recompute)
        shapes: list[torch.Size] = []
        mlp = next(m for n, m in model.named_modules() if n.endswith("0.mlp"))
        mlp.register_forward_pre_hook(lambda _m, inputs, to=shapes: to.append(inputs[0].shape))
        results.append(logprob_and_gradients(model, batch._replace(packing=packing)))
        seen.append(shapes)
    tokens = (1, len(batch.packing.source), 16)
    assert seen == [[tokens, tokens], [tokens], [(*batch.input_ids.shape, 16)]]
    again, packed, padded = results
    assert torch.equal(again[0], packed[0])
    assert all(map(torch.equal, again[1], packed[1]))
    exact = logprob_and_gradients(model.double(), batch._replace(packing=None))
    assert len(packed[1]) == len(exact[1]) > 5
    assert_within_budget(packed[0], exact[0], padded[0], FORWARD, "log-probability")
    for one, truth, base in zip(packed[1], exact[1], padded[1], strict=True):
        assert_within_budget(one, truth, base, BACKWARD, "gradient")


def test_tokens_are_computed_once() -> None:
    """The layers see neither padding nor a prompt twice, and nothing is packed without gain."""
    pairs, model = uneven_pairs(), GenerativeModel(llama())
    seen: list[torch.Size] = []
    model.base.layers[0].mlp.register_forward_hook(lambda _m, _i, out: seen.append(out.shape))
    batch = pairs.batch(np.arange(len(pairs)))
    can_pack(model.lm, 40)
    seen.clear()
    forward(model, batch)
    data = pairs.completions
    rows = [
        data.tokens[data.offsets[i] : data.offsets[i + 1]].tolist() for i in range(2 * len(pairs))
    ]
    tokens = 0
    for one, two in zip(rows[::2], rows[1::2], strict=True):
        same = next((i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b),
                    min(len(one), len(two)))  # fmt: skip
        tokens += len(one) + len(two) - same
    assert seen == [(1, tokens, 32)]
    long = encode_pairs(agreement_tokenizer(), ["the"], [" key" * 119], [" cat" * 119])
    assert long.batch(np.array([0])).packing is None  # two of 240 tokens would be saved


def test_a_window_shorter_than_the_rows_is_respected() -> None:
    """Packed attention is causal alone: rows that a window would cut stay padded."""
    pairs, states = uneven_pairs(), None
    longest = int(pairs.completions.lengths.max())
    for window, packs in ((longest, True), (longest - 1, False), (8, False)):
        torch.manual_seed(0)
        model = GenerativeModel(
            gemma3(sliding_window=window, layer_types=["sliding_attention"] * 2)
        )
        if states is not None:
            model.load_state_dict(states)
        states = model.state_dict()
        batch = pairs.batch(np.arange(len(pairs)))
        assert can_pack(model.lm, batch.input_ids.shape[1]) == packs
        got = forward(model, batch)[..., 0]
        want = plain_logprob(model.lm, pairs)
        assert torch.allclose(got, want, atol=1e-4)


def test_a_backbone_that_mixes_neighbours_is_padded() -> None:
    """It takes positions and a packing, and computes other states: the comparison finds it."""
    torch.manual_seed(0)
    lm = llama()

    def mix(_module: Any, _inputs: Any, out: Tensor) -> Tensor:
        return out + torch.nn.functional.pad(out[:, :-1], (0, 0, 1, 0))

    lm.model.norm.register_forward_hook(mix)
    model, pairs = GenerativeModel(lm), uneven_pairs()
    got = forward(model, pairs.batch(np.arange(len(pairs))))[..., 0]
    assert not can_pack(lm, 9) and lm.config._attn_implementation == "sdpa"
    assert torch.allclose(got, plain_logprob(lm, pairs), atol=1e-4)


def test_the_model_is_otherwise_unchanged(tmp_path: Path) -> None:
    """Generation, padded rows and the saved configuration are those of transformers' sdpa."""
    torch.manual_seed(0)
    plain = llama().eval()
    other = llama().eval()
    other.load_state_dict(plain.state_dict())
    model = GenerativeModel(other)
    model.lm.train()
    assert can_pack(model.lm, 9) and model.lm.training and model.base.training
    model.lm.eval()
    ids = torch.tensor([[5, 6, 7, 8], [5, 6, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    logits = [m(input_ids=ids, attention_mask=mask).logits for m in (plain, model.lm)]
    assert torch.equal(logits[0][mask.bool()], logits[1][mask.bool()])
    texts = [m.generate(input_ids=ids[:1], max_new_tokens=5, do_sample=False) for m in
             (plain, model.lm)]  # fmt: skip
    assert torch.equal(*texts)
    model.lm.save_pretrained(tmp_path)
    assert ATTENTION not in (tmp_path / "config.json").read_text()
