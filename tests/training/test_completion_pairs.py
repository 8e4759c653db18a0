"""Pairs of completions: what is encoded, what is refused, and that training is plain PyTorch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.completion_pairs import N, encoded, pair_texts, plain_logprob, soft_q
from helpers.generation_cases import RECIPE, checkpoint, small_lm
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.losses import make_loss
from w2s_fast.losses.pairwise import ImplicitReward, PairLoss, make_pair_loss
from w2s_fast.losses.preference import DPO, WSPO, SimPO
from w2s_fast.tasks.datasets.agreement import tokenizer as agreement_tokenizer
from w2s_fast.training import encode_pairs, predict, predict_pairs, reference_logprob, train
from w2s_fast.training.engine import forward

KINDS = ("llama", "gpt2-tied")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return agreement_tokenizer()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> dict[str, Path]:
    return {k: checkpoint(k, tmp_path_factory.mktemp(k), tokenizer) for k in KINDS}


def test_both_completions_follow_the_same_tokens(tokenizer: Any) -> None:
    pairs = encode_pairs(
        tokenizer,
        ["the old key", "red door near the old boy"],
        [" cat", " dog"],
        [" dog dog", " cat key the"],
        max_length=7,
    )

    def words(ids: np.ndarray) -> str:
        return " ".join(tokenizer.convert_ids_to_tokens(ids.tolist()))

    eos, data = tokenizer.eos_token, pairs.completions
    rows = [words(part) for part in np.split(data.tokens, data.offsets[1:-1])]
    assert rows == [
        f"{eos} the old key cat",
        f"{eos} the old key dog dog",
        f"{eos} the old boy dog",
        f"{eos} the old boy cat key the",
    ]
    labels = [words(part) for part in np.split(data.labels, data.starts[1:-1])]
    assert labels == [f"cat {eos}", f"dog dog {eos}", f"dog {eos}", f"cat key the {eos}"]
    assert pairs.truncated.tolist() == [False, True] and pairs.n_truncated == 1
    assert len(pairs) == 2 and pairs.lengths.tolist() == [12, 14] and pairs.n_classes == 2
    batch = pairs.batch(np.array([1, 0]))
    assert batch.lengths.tolist() == [[2, 4], [2, 3]]
    assert batch.owner.tolist() == [0] * 2 + [1] * 4 + [2] * 2 + [3] * 3
    again = [words(batch.labels.numpy()[batch.owner.numpy() == row]) for row in range(4)]
    assert again == labels[2:] + labels[:2]
    assert batch.reference is None and batch.target is None


def _tensors(field: Any) -> tuple[Tensor, ...]:
    """The tensor of a field of a batch, or those of its packing."""
    return (field,) if isinstance(field, Tensor) else tuple(field)


def test_selections_and_digests(tokenizer: Any) -> None:
    pairs = encoded(tokenizer)
    part = pairs.take(np.array([7, 2]))
    for got, want in zip(part.batch(np.array([0, 1])), pairs.batch(np.array([7, 2])), strict=True):
        for one, two in zip(_tensors(got), _tensors(want), strict=True):
            assert torch.equal(one, two)
    assert pairs.rows(slice(2, 5)).digest() == pairs.take(np.array([2, 3, 4])).digest()
    assert pairs.take(np.arange(N) > 3).digest() == pairs.rows(slice(4, None)).digest()
    moved = pairs.reference + np.float32(1)
    others = [
        replace(pairs, reference=None), replace(pairs, target=None), pairs.with_reference(moved),
        pairs.rows(slice(0, N - 1)), encode_pairs(tokenizer, *pair_texts(), end=False),
        encode_pairs(tokenizer, *(pair_texts()[i] for i in (0, 2, 1))),
    ]  # fmt: skip
    assert len({p.digest() for p in [pairs, *others]}) == len(others) + 1
    last = [
        encode_pairs(tokenizer, ["the"], [f" cat {word}"], [" dog"], end=False).digest()
        for word in ("key", "door")
    ]
    assert last[0] != last[1]  # the last token of a completion is a label alone
    assert others[2].token_digest() == pairs.token_digest()


def test_what_cannot_be_encoded(tokenizer: Any) -> None:
    def refused(match: str, *texts: list[str], **options: Any) -> None:
        with pytest.raises(W2SError, match=match):
            encode_pairs(tokenizer, *texts, **options)

    refused("2 prompts, 1 first and 2 second", ["the"] * 2, [" a"], [" b"] * 2)
    refused("0 prompts", [], [], [])
    refused("the second completion of pair 1 is ' ', which is blank", ["the"] * 2, [" a"] * 2,
            [" b", " "])  # fmt: skip
    refused("both completions of pair 1 are ' key'", ["the"] * 2, [" a", " key"], [" b", " key"])
    refused("the first completion of pair 1 has 4 tokens and leaves no room for its prompt in "
            "max_length=3; it is one of 2 such pairs of 3: use max_length=6 or more", ["the"] * 3,
            [" key", " key key key", " a"], [" cat", " key", " dog" * 5], max_length=3)  # fmt: skip
    encode_pairs(tokenizer, ["the"], [" cat"], [" dog" * 5], max_length=6)
    pairs = encode_pairs(tokenizer, ["the old"], [" cat"], [" dog"])
    for wrong, match in (
        (np.zeros((1, 3)), r"reference has shape \(1, 3\)"),
        (np.zeros((1, 2), dtype=int), "dtype int64; expected floats"),
        (np.array([[0.0, np.nan]]), r"reference of pair 0 is \[0.0, nan\]"),
    ):
        with pytest.raises(W2SError, match=match):
            pairs.with_reference(wrong)


SPECS = ("dpo", "dpo_norm:beta=5", "simpo", "ipo", "orpo", "cpo", "wspo", "wspo:average=false",
         "logconf@dpo", "xent@simpo", "logconf_paper@ipo")  # fmt: skip


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("kind", KINDS)
def test_training_is_plain_pytorch(
    spec: str, kind: str, folders: dict[str, Path], tokenizer: Any
) -> None:
    """fp64, AdamW of torch, one forward a completion, hooks that see no logits of the model."""
    pairs, q = encoded(tokenizer), soft_q()
    weight = np.arange(N) / 4  # a sum without rounding
    model, plain = (small_lm(folders, kind, tokenizer).double() for _ in range(2))
    calls: list[int] = []
    model.lm.get_output_embeddings().register_forward_hook(lambda *_: calls.append(1))
    loss = make_pair_loss(spec)
    cfg = replace(RECIPE, epochs=3, batch_size=N, lr=1e-3, eps=1e-3, schedule="constant")
    log = train(model, pairs, q, loss, cfg, 0, weight=weight)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-3, eps=1e-3, weight_decay=0.0)
    weak = torch.from_numpy(q.astype(np.float32))
    plain.eval()
    losses = []
    for step in range(3):
        columns = [
            plain_logprob(plain.lm, pairs),
            torch.from_numpy(pairs.reference).double(),
            torch.from_numpy(np.diff(pairs.completions.starts).reshape(-1, 2)).double(),
            torch.from_numpy(pairs.target).double(),
        ]
        w = torch.from_numpy(weight.astype(np.float32))
        out = loss(torch.stack(columns, 2), weak, weight=w, step_frac=step / 3, step=step)
        optimizer.zero_grad()
        (out.loss_sum / out.count).backward()
        optimizer.step()
        losses.append(float(out.loss_sum.detach() / out.count))
    exact = kind == "gpt2-tied"  # Llama's norm computes in fp32 whatever it is given
    assert not calls and np.allclose(log["losses"], losses, rtol=1e-9 if exact else 1e-6)
    assert losses[0] != losses[-1]
    for (name, a), (_, b) in zip(model.named_parameters(), plain.named_parameters(), strict=True):
        assert (a - b).abs().max() < (1e-8 if exact else 1e-5), name


@pytest.mark.parametrize("spec", ["dpo", "logconf@dpo", "logconf_eleuther@dpo_norm"])
def test_micro_batches_change_nothing(spec: str, folders: dict[str, Path], tokenizer: Any) -> None:
    pairs, q, ends = encoded(tokenizer), soft_q(), []
    for size in (None, 1, 4):
        model = small_lm(folders, "gpt2-tied", tokenizer).double()
        cfg = replace(RECIPE, micro_batch_size=size, clip_norm=0.5)
        train(model, pairs, q, make_pair_loss(spec), cfg, 0, weight=np.arange(N) % 3 / 2)
        ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    for other in ends[1:]:
        assert (other - ends[0]).abs().max() < 1e-9


def test_implicit_reward_of_dpo_with_xent_is_dpo(folders: dict[str, Path], tokenizer: Any) -> None:
    pairs, q = encoded(tokenizer), soft_q()
    for weak in (q, np.where(q[:, 0] > 0.5, 0, np.where(q[:, 0] > 0.1, 1, -100))):
        ends = []
        for loss in (PairLoss(preference=DPO(beta=0.2)),
                     ImplicitReward(loss=make_loss("xent"), preference=DPO(beta=0.2))):  # fmt: skip
            model = small_lm(folders, "llama", tokenizer).double()
            log = train(model, pairs, weak, loss, RECIPE, 0)
            ends.append((log["losses"], log["agreement"], list(model.parameters())))
        assert np.allclose(ends[0][0], ends[1][0], rtol=1e-6) and ends[0][1] == ends[1][1]
        for a, b in zip(ends[0][2], ends[1][2], strict=True):
            assert (a - b).abs().max() < 1e-6


def test_the_memory_of_an_implicit_reward_is_that_of_its_loss() -> None:
    """Processes advance it by the rows of all; a call over the same rows leaves the same ring."""
    g = torch.Generator().manual_seed(0)
    answers = torch.randn(6, 2, 3, generator=g)
    weak = torch.rand(6, 1, generator=g)
    weak = torch.cat([weak, 1 - weak], 1)
    loss = make_pair_loss("logconf_eleuther:window=8@dpo:beta=0.3")
    empty = loss.init_state()
    assert empty is not None and bool(empty.isnan().all()) and len(empty) == 8
    assert [loss.coefficient(0.0, step) for step in (0, 50, 100)] == [0.0, 0.25, 0.5]
    out = loss(answers, weak, step=200)
    state = loss.advance(answers, weak, state=empty)
    assert out.state is not None and torch.equal(state[2:], out.state[2:])
    assert bool(state[:2].isnan().all())
    gaps = 0.3 * (answers[..., 0] - answers[..., 1])
    assert torch.allclose(state[2:].float(), gaps[:, 0] - gaps[:, 1])


def test_what_cannot_be_trained(folders: dict[str, Path], tokenizer: Any) -> None:
    pairs, q = encode_pairs(tokenizer, *pair_texts()), soft_q()
    model = small_lm(folders, "llama", tokenizer)

    def refused(match: str, data: Any, weak: Any, loss: Any) -> None:
        with pytest.raises(W2SError, match=match):
            train(model, data, weak, loss, RECIPE, 0)

    refused("DPO needs the reference of the pairs.*reference_logprob", pairs, q, PairLoss())
    refused("DPO needs the reference", pairs, q, make_pair_loss("xent@dpo"))
    whole = encoded(tokenizer)
    refused("WSPO needs the target", replace(whole, target=None), q, PairLoss(preference=WSPO()))
    refused("preference loss of completion pairs is None", whole, q, make_loss("xent"))
    odd = q * (1 + 0.01 * (np.arange(N) == 3))[:, None]
    refused(r"row 3; expected the probabilities", whole, odd, PairLoss())
    refused("labels must be 0..1", whole, np.full(N, 2), PairLoss())
    train(model, pairs, q, PairLoss(preference=SimPO()), RECIPE, 0)  # needs none
    with pytest.raises(W2SError, match="use predict_pairs"):
        predict(model, pairs)
    with pytest.raises(W2SError, match="DPO needs the reference"):
        predict_pairs(model, pairs, DPO())
    for spec, match in (("kto", "other prompts"), ("bradley_terry", "log-probabilities"),
                        ("xent@bradley_terry", "log-probabilities"),
                        ("xent@dpo:flip_rate=0.1", "would be ignored"),
                        ("xent@dpo:label_smoothing=0.1", "would be ignored"),
                        ("nope@dpo", "unknown loss 'nope'"), ("nope", "unknown preference loss"),
                        ):  # fmt: skip
        with pytest.raises(W2SError, match=match):
            make_pair_loss(spec)


@pytest.mark.parametrize("kind", KINDS)
def test_predictions(kind: str, folders: dict[str, Path], tokenizer: Any) -> None:
    pairs = encoded(tokenizer)
    model = small_lm(folders, kind, tokenizer)
    want = plain_logprob(model.lm.eval(), pairs)
    logp = reference_logprob(model, pairs, batch_size=4)
    assert logp.dtype == np.float32 and logp.shape == (N, 2)
    assert np.abs(logp - want.detach().numpy()).max() < 1e-4
    got = predict_pairs(model, pairs, DPO(beta=0.3), batch_size=3)
    gap = 0.3 * (want - torch.from_numpy(pairs.reference)).detach()
    assert got.dtype == np.float32 and np.abs(got - gap.softmax(1).numpy()).max() < 1e-5
    answers = forward(model, pairs.batch(np.arange(N)))
    assert answers.shape == (N, 2, 4) and answers.dtype == torch.float32
    bare = forward(model, encode_pairs(tokenizer, *pair_texts()).batch(np.arange(N)))
    assert bare.shape == (N, 2, 3) and bool(bare[..., 1].isnan().all())
