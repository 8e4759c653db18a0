"""Settings that act on the same rows: mixup with anchor and nested dropout; what excludes it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import ranks, sharded_training
from helpers.sharded_training import close, fit
from helpers.training_rows import BASE, encoded_rows, small_model, soft_labels

from w2s_fast.errors import W2SError
from w2s_fast.losses import make_loss
from w2s_fast.probing import HeadRun, train_heads
from w2s_fast.training import CoTeaching, SelfTargets, Twins, train

TOGETHER: dict[str, Any] = {
    "mixup": 0.4, "anchor": 0.8, "nested_dropout": 6.0, "batch_size": 16, "ema_decay": 0.9,
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from w2s_fast.tasks.datasets.agreement import tokenizer as agreement_tokenizer

    return agreement_tokenizer()


def test_each_setting_counts_and_micro_batches_do_not() -> None:
    """The anchor compares a row with its own initial state, in whatever place mixup puts it."""
    want = fit(**TOGETHER)
    for name in ("mixup", "anchor", "nested_dropout", "ema_decay"):
        assert fit(**{**TOGETHER, name: 0.0})["weights"] != want["weights"], name
    for size in (2, 4, 6):
        close(fit(**TOGETHER, micro_batch_size=size), want)


@pytest.mark.slow
@pytest.mark.dist
def test_two_processes_equal_one(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    jobs = [
        {**TOGETHER, "zero_stage": zero, "micro_batch_size": 4} for zero in ranks.ZERO_STAGES[1]
    ]
    out = tmp_path / "out.json"
    ranks.run(sharded_training.__file__, 2, {"fits": jobs, "out": str(out)})
    for got in json.loads(out.read_text()):
        close(got, fit(**TOGETHER))


def test_without_a_step_the_anchor_of_mixed_rows_is_zero(tokenizer: Any) -> None:
    """At a rate of 0 the states stay the initial ones: a wrong row would add a penalty."""
    model, data = small_model(tokenizer), encoded_rows(tokenizer)
    cfg = replace(BASE, lr=0.0, mixup=0.4)
    for anchor in (0.0, 5.0):
        log = train(model, data, soft_labels(), make_loss("xent"), replace(cfg, anchor=anchor), 0)
        if not anchor:
            plain = log["losses"]
    np.testing.assert_allclose(log["losses"], plain, rtol=1e-6)


def test_targets_of_steps_are_not_mixed(tokenizer: Any) -> None:
    data, labels, loss = encoded_rows(tokenizer), soft_labels(), make_loss("xent")
    cfg = replace(BASE, mixup=0.2)
    with pytest.raises(W2SError, match="mixup mixes weak labels, and step_targets are SelfTargets"):
        train(small_model(tokenizer), data, labels, loss, cfg, 0, step_targets=SelfTargets())
    run = HeadRun(labels.astype(np.float32), loss, step_targets=SelfTargets())
    with pytest.raises(W2SError, match="mixup is 0.2, and step_targets are SelfTargets"):
        train_heads(torch.randn(len(labels), 4), [run], cfg, 0)


def test_twins_have_no_anchor(tokenizer: Any) -> None:
    twins = Twins(small_model(tokenizer), small_model(tokenizer))
    targets, loss = CoTeaching(), make_loss("xent")
    cfg = replace(BASE, anchor=0.1)
    with pytest.raises(W2SError, match="anchor is 0.1, and Twins learns Encoded"):
        train(twins, encoded_rows(tokenizer), soft_labels(), loss, cfg, 0, step_targets=targets)
