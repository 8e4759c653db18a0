"""Texts and their likelihoods: one by one as transformers does it, on any number of processes."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import ranks
from helpers.generation_cases import KINDS, WORDS, checkpoint, texts

from w2s_fast.distributed.world import exit_process, init_distributed
from w2s_fast.errors import W2SError
from w2s_fast.integrations.decoding import guided
from w2s_fast.losses import make_loss
from w2s_fast.models import ModelConfig, build_model
from w2s_fast.tasks.datasets.agreement import tokenizer as agreement_tokenizer
from w2s_fast.training import (
    encode_completions,
    generate,
    next_token_probs,
    sequence_logprob,
    train,
)
from w2s_fast.training.config import TrainConfig

PROMPTS, ANSWERS = texts()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return agreement_tokenizer()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> dict[str, Path]:
    return {k: checkpoint(k, tmp_path_factory.mktemp(k), tokenizer) for k in KINDS}


@pytest.fixture(scope="module")
def models(folders: dict[str, Path], tokenizer: Any) -> dict[str, Any]:
    return {
        k: build_model(ModelConfig(str(path)), 2, tokenizer, 0, kind="generation")
        for k, path in folders.items()
    }


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_is_transformers_one_by_one(
    kind: str, models: dict[str, Any], tokenizer: Any
) -> None:
    """Left padding, caches and batches of like length change no token; some end early."""
    model = models[kind]
    model.train()
    state = torch.get_rng_state()
    seen: list[tuple[int, int]] = []
    got = generate(
        model, tokenizer, PROMPTS, 12, batch_size=4, progress=lambda a, b: seen.append((a, b))
    )
    assert model.training and torch.equal(torch.get_rng_state(), state)
    assert seen[-1] == (len(PROMPTS), len(PROMPTS))
    lm = model.lm.eval()
    for prompt, text in zip(PROMPTS, got, strict=True):
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        new = lm.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
        )[0, ids.shape[1] :]  # fmt: skip
        assert text == (f" {tokenizer.decode(new, skip_special_tokens=True)}" if len(new) else "")
    assert len(set(got)) > 3
    # What was written reads back as the tokens that were written.
    data = encode_completions(tokenizer, PROMPTS, got, end=False)
    assert (np.diff(data.starts) <= 12).all()


def test_generation_learns(tokenizer: Any) -> None:
    """A model taught to answer with the prompt's last word does, and stops."""
    cfg = ModelConfig("scratch", hidden=32, heads=2)
    model = build_model(cfg, 2, tokenizer, 0, kind="generation")
    prompts = [f"the {a} {b}" for a in WORDS[:5] for b in WORDS[:5]]
    answers = [" " + p.split()[-1] for p in prompts]
    data = encode_completions(tokenizer, prompts, answers)
    log = train(model, data, data.labels, make_loss("xent"), TrainConfig(epochs=60, lr=1e-2), 0)
    assert log["agreement"][-1] > 0.98
    assert generate(model, tokenizer, prompts, 5) == answers
    own = sequence_logprob(model, tokenizer, prompts, answers)
    assert (own > -1).all()
    probs = next_token_probs(model, tokenizer, prompts, [f" {w}" for w in WORDS])
    assert [WORDS[i] for i in probs.argmax(1)] == [p.split()[-1] for p in prompts]


def test_samples_belong_to_their_rows(models: dict[str, Any], tokenizer: Any) -> None:
    model = models["llama"]

    def sample(prompts: list[str] = PROMPTS, **options: Any) -> list[str]:
        return generate(model, tokenizer, prompts, 6, temperature=1.0, **options)

    got = sample(n=3, seed=5)
    assert len(got) == 3 * len(PROMPTS) and got == sample(n=3, seed=5, batch_size=2)
    assert sample(n=1, seed=5) != got[::3] or len(set(got)) > 20
    assert got[:6] == sample(PROMPTS[:2], n=3, seed=5)
    assert got != sample(n=3, seed=6) and len(set(got[:3])) > 1


def test_samples_have_the_models_distribution(models: dict[str, Any], tokenizer: Any) -> None:
    """2000 first tokens at T = 0.7: each count within 4.5 standard deviations."""
    model, prompt = models["gpt2"], "the old key"
    found = Counter(
        generate(model, tokenizer, [prompt], 1, temperature=0.7, n=2000, batch_size=500)
    )
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    p = (model.lm.eval()(ids).logits[0, -1] / 0.7).softmax(0).detach().numpy()
    special = set(tokenizer.all_special_ids)
    for token in np.argsort(-p)[:20]:
        if int(token) not in special:
            text = f" {tokenizer.decode([int(token)])}"
            room = 4.5 * (2000 * p[token] * (1 - p[token])) ** 0.5
            assert abs(found[text] - 2000 * p[token]) < room + 1, text


def test_long_prompts_keep_their_end(models: dict[str, Any], tokenizer: Any) -> None:
    """GPT-2 has 64 positions: prompt and answer share them."""
    model = models["gpt2"]
    long = " ".join(np.random.default_rng(0).choice(WORDS, 100))
    end = " ".join(long.split()[-55:])
    assert generate(model, tokenizer, [long], 8) == generate(model, tokenizer, [end], 8)
    short = generate(model, tokenizer, [long], 8, max_length=20)
    assert short == generate(model, tokenizer, [" ".join(long.split()[-11:])], 8)
    with pytest.raises(W2SError, match="leaves no room for a prompt in 64 tokens"):
        generate(model, tokenizer, [long], 64)
    with pytest.raises(W2SError, match="temperature -1"):
        generate(model, tokenizer, [long], 4, temperature=-1)
    with pytest.raises(W2SError, match="no prompts"):
        generate(model, tokenizer, [], 4)


@pytest.mark.parametrize("kind", KINDS)
def test_sequence_logprob(kind: str, models: dict[str, Any], tokenizer: Any) -> None:
    model = models[kind]
    model.train()
    for end in (True, False):
        got = sequence_logprob(model, tokenizer, PROMPTS, ANSWERS, end=end, batch_size=5)
        assert model.training and got.shape == (len(PROMPTS),) and got.dtype == np.float32
        lm = model.lm.eval()
        for prompt, answer, logp in zip(PROMPTS, ANSWERS, got, strict=True):
            ids = tokenizer(prompt + answer).input_ids + [tokenizer.eos_token_id] * end
            start = len(tokenizer(prompt).input_ids)
            z = lm(torch.tensor([ids])).logits[0].log_softmax(-1).detach()
            want = sum(float(z[t - 1, ids[t]]) for t in range(start, len(ids)))
            assert logp == pytest.approx(want, abs=2e-5)


def test_next_token_probs(models: dict[str, Any], tokenizer: Any) -> None:
    """Words of one token from one forward, others as wholes; the two ways agree."""
    model = models["llama-tied"]
    words = [" cat", " dog", " red"]
    got = next_token_probs(model, tokenizer, PROMPTS, words, batch_size=4)
    assert got.shape == (len(PROMPTS), 3) and np.allclose(got.sum(1), 1)
    lm = model.lm.eval()
    ids = [tokenizer(w, add_special_tokens=False).input_ids[0] for w in words]
    for prompt, row in zip(PROMPTS, got, strict=True):
        z = lm(tokenizer(prompt, return_tensors="pt").input_ids).logits[0, -1, ids].softmax(0)
        assert np.allclose(row, z.detach(), atol=1e-5)
    mixed = [" cat", " dog red", " red"]
    both = next_token_probs(model, tokenizer, PROMPTS, mixed)
    whole = np.stack(
        [sequence_logprob(model, tokenizer, PROMPTS, [w] * len(PROMPTS), end=False) for w in mixed],
        axis=1,
    )
    assert np.allclose(both, np.exp(whole) / np.exp(whole).sum(1, keepdims=True), atol=1e-5)
    ratio = both[:, 0] / both[:, 2]
    assert np.allclose(ratio, got[:, 0] / got[:, 2], rtol=1e-4)
    for bad, says in (([" cat"], "at least two"), ([" a", " a"], "at least two"),
                      ([" zzz", " yyy"], "same token")):  # fmt: skip
        with pytest.raises(W2SError, match=says):
            next_token_probs(model, tokenizer, PROMPTS, bad)


def work(zero: int, source: str) -> dict[str, Any]:
    tokenizer = agreement_tokenizer()
    model = build_model(ModelConfig(source), 2, tokenizer, 0, kind="generation")
    data = encode_completions(tokenizer, PROMPTS, ANSWERS)
    cfg = TrainConfig(epochs=1, batch_size=6, lr=1e-9, zero_stage=zero)  # as good as untrained
    train(model, data, data.labels, make_loss("xent"), cfg, 0)
    other: Any = build_model(ModelConfig(source), 2, tokenizer, 0, kind="generation").eval()
    with torch.no_grad():
        head = other.lm.get_output_embeddings().weight
        head.copy_(head.roll(7, 0))

    def guide(mask: Any) -> Any:
        return guided(other.lm, 1.5, attention_mask=mask)

    return {
        "guided": generate(model, tokenizer, PROMPTS, 8, batch_size=3, guide=guide),
        "greedy": generate(model, tokenizer, PROMPTS, 8, batch_size=3),
        "sampled": generate(model, tokenizer, PROMPTS, 8, batch_size=3, temperature=1.0, n=2),
        "logp": sequence_logprob(model, tokenizer, PROMPTS, ANSWERS, batch_size=3).tolist(),
        "probs": next_token_probs(
            model, tokenizer, PROMPTS, [" cat", " dog"], batch_size=3
        ).tolist(),
    }


@pytest.mark.slow
@pytest.mark.dist
def test_shared_out(folders: dict[str, Path], tmp_path: Path) -> None:
    """Two processes, the model whole or in parts: the texts of one process."""
    pytest.importorskip("deepspeed")
    out, source = tmp_path / "out.json", str(folders["llama"])
    ranks.run(__file__, 2, {"stages": [0, 3], "source": source, "out": str(out)})
    want = work(0, source)
    for got in json.loads(out.read_text()):
        for name in ("greedy", "guided", "sampled"):
            assert got[name] == want[name], name
        assert got["guided"] != got["greedy"]
        for name in ("logp", "probs"):
            assert np.allclose(got[name], want[name], atol=1e-4)


def main(job: dict[str, Any]) -> None:
    world = init_distributed(60)
    found = [work(zero, job["source"]) for zero in job["stages"]]
    if world.is_main_process:
        Path(job["out"]).write_text(json.dumps(found))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
    exit_process(0)
