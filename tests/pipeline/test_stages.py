"""Parts of the pipeline by themselves: label files, what a job reads, and planted label errors."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from w2s_fast import metrics
from w2s_fast.config import RunConfig
from w2s_fast.errors import W2SError
from w2s_fast.losses import make_loss
from w2s_fast.models import ModelConfig, build_model
from w2s_fast.pipeline.artifacts import read_probs, write_probs
from w2s_fast.pipeline.context import load_data
from w2s_fast.pipeline.job_identity import data_digests
from w2s_fast.pipeline.jobs import plan_jobs
from w2s_fast.tasks import Examples, TaskConfig
from w2s_fast.training import TrainConfig, encode, predict, train


def test_nan_and_wrong_labels_are_refused(tmp_path: Path) -> None:
    path, ids = tmp_path / "labels.parquet", ("a", "b", "c")
    probs = np.full((3, 2), 0.5, np.float32)
    with pytest.raises(W2SError, match=r"1 of 3 items have NaN probabilities \(first id 'b'\)"):
        write_probs(path, ids, np.where(np.arange(3)[:, None] == 1, np.nan, probs))
    with pytest.raises(W2SError, match="shape"):
        write_probs(path, ids[:2], probs)
    probs[:, 0] = [0.1, 0.2, 0.3]
    write_probs(path, ids, probs)
    assert np.array_equal(read_probs(path, ("c", "a", "b"), 2), probs[[2, 0, 1]])
    with pytest.raises(W2SError, match="1 of them absent, first 'd'"):
        read_probs(path, ("a", "b", "d"), 2)
    with pytest.raises(W2SError, match="has 2 classes, the task 3"):
        read_probs(path, ids, 3)


def test_the_student_never_sees_gold_and_shares_its_half_with_the_ceiling() -> None:
    cfg = RunConfig(task=TaskConfig(n_weak=20, n_transfer=20, n_test=20))
    jobs = {j.name: j for j in plan_jobs(cfg).jobs}
    assert jobs["student/0/xent"].needs == ("pretrain", "labels/0")
    assert jobs["ceiling/0"].needs == ("pretrain",)
    data = load_data(cfg.task, 0)
    flipped = dataclasses.replace(data.transfer, labels=1 - data.transfer.labels)
    before, after = data_digests(data), data_digests(dataclasses.replace(data, transfer=flipped))
    assert {k for k in before if before[k] != after[k]} == {"transfer.labels"}


def test_random_errors_are_overcome_and_structured_ones_are_learned() -> None:
    """A linear student, labels that are 70 % right (Burns et al. 2023, appendix E.2).

    Errors drawn at random average out: PGR near 1. Errors that follow a word of the text are as
    easy to learn as the task itself: PGR near 0.
    """
    recovered = {kind: _planted(kind) for kind in ("random", "structured")}
    assert recovered["random"] > 0.8
    assert abs(recovered["structured"]) < 0.2


def _planted(kind: str) -> float:
    """Return the PGR of a bag-of-words student taught by labels with planted errors."""
    rng = np.random.default_rng(0)
    n, signs = 3000, 5
    gold = rng.integers(2, size=n)
    trap = rng.random(n) < 0.3  # the texts that name a trap word
    texts = [
        " ".join([f"sign{g}{rng.integers(signs)}", "trap" if t else "plain"])
        for g, t in zip(gold, trap, strict=True)
    ]
    wrong = rng.random(n) < 0.3 if kind == "random" else trap
    weak = np.where(wrong, 1 - gold, gold)
    if kind == "structured":  # a linear model needs the conjunction as a word of its own
        texts = [f"trap_{t.split()[0]}" if x else t for t, x in zip(texts, trap, strict=True)]
    tokenizer = _tokenizer(texts)
    ids = tuple(map(str, range(n)))
    data = encode(tokenizer, Examples(ids, tuple(texts), None, ids, gold), 8)
    cfg = TrainConfig(epochs=3, batch_size=32, lr=0.02)

    def accuracy(targets: np.ndarray) -> float:
        model = build_model(ModelConfig(source="bow"), 2, tokenizer, 0)
        train(model, data, targets, make_loss("xent"), cfg, 0)
        return metrics.accuracy(predict(model, data), gold)

    floor = float((weak == gold).mean())
    assert floor == pytest.approx(0.7, abs=0.03)
    return metrics.pgr(floor, accuracy(weak), accuracy(gold))


def _tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    words = sorted({word for text in texts for word in text.split()})
    ids = {word: i for i, word in enumerate(["[PAD]", *words])}
    backend = Tokenizer(WordLevel(ids, unk_token="[PAD]"))
    backend.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]")
