"""Perplexity, stages from easy to hard, and trainings in stages: order, resume, processes."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import ranks, sharded_training
from helpers.sharded_training import RECIPE, close, fit
from helpers.training_rows import BASE, N, encoded_rows, small_model, soft_labels
from hypothesis import given, settings
from hypothesis import strategies as st

from w2s_fast.errors import W2SError
from w2s_fast.losses import make_loss
from w2s_fast.models.weights import module_tensors
from w2s_fast.tasks.datasets.agreement import tokenizer as agreement_tokenizer
from w2s_fast.training import difficulty_stages, hardest_rows, perplexity, train
from w2s_fast.training.data import RowOrder


def flat(order: RowOrder, steps: int) -> list[int]:
    return np.concatenate([order.rows(step) for step in range(steps)]).tolist()


def test_perplexity() -> None:
    got = perplexity(np.array([math.log(1 / 8), 0.0, -9999.0], np.float32), np.array([3, 1, 2]))
    assert got.dtype == np.float64
    assert got.tolist() == [pytest.approx(2.0), 1.0, math.inf]


def test_stages_and_hardest_rows() -> None:
    hard = np.array([5.0, 1.0, 3.0, 3.0, 9.0, math.inf, 2.0])
    assert difficulty_stages(hard).tolist() == [1, 0, 0, 1, 2, 2, 0]
    assert difficulty_stages(hard, 1).tolist() == [0] * 7
    assert difficulty_stages(hard, 7).tolist() == [4, 0, 2, 3, 5, 6, 1]
    assert hardest_rows(hard, 0.5).tolist() == [0, 4, 5]
    assert hardest_rows(hard, 1.0).tolist() == list(range(7))
    assert hardest_rows(hard, 0.5, groups="aabbaab").tolist() == [3, 4, 5]
    assert hardest_rows(np.zeros(3), 0.34).tolist() == [2]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(allow_nan=False), min_size=1, max_size=20), st.integers(1, 20))
def test_stages_are_even_and_in_order(values: list[float], n_stages: int) -> None:
    hard = np.array(values)
    stages = difficulty_stages(hard, min(n_stages, len(hard)))
    sizes = np.bincount(stages)
    assert sizes.max() - sizes.min() <= 1 and len(sizes) == min(n_stages, len(hard))
    for stage in range(1, len(sizes)):
        assert hard[stages == stage].min() >= hard[stages == stage - 1].max()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: perplexity(np.zeros(2), np.ones(3)), r"logprob_sum has shape \(2,\)"),
        (lambda: perplexity(np.zeros((2, 1)), np.ones((2, 1))), "one number a row"),
        (lambda: perplexity(np.array([0, -np.inf]), np.ones(2)), r"logprob_sum\[1\] is -inf"),
        (lambda: perplexity(np.zeros(2), np.array([1, 0])), r"n_tokens\[1\] is 0; .* 1 token"),
        (lambda: difficulty_stages(np.array([1, np.nan])), r"difficulty\[1\] is nan"),
        (lambda: difficulty_stages(np.zeros(0)), r"difficulty has shape \(0,\)"),
        (lambda: difficulty_stages(np.zeros(2), 3), "n_stages is 3 for 2 rows"),
        (lambda: difficulty_stages(np.zeros(2), 0), "n_stages is 0 for 2 rows"),
        (lambda: hardest_rows(np.zeros(2), 0.0), "share is 0.0"),
        (lambda: hardest_rows(np.zeros(2), 1.5), "share is 1.5"),
        (lambda: hardest_rows(np.zeros(2), 0.4), "share=0.4 of 2 rows in 1 groups selects no row"),
        (lambda: hardest_rows(np.zeros(2), groups="a"), "groups has 1 names for 2 rows"),
    ],
)
def test_input_errors(call: Any, message: str) -> None:
    with pytest.raises(W2SError, match=message):
        call()


def test_order_of_stages() -> None:
    """All epochs of a stage precede the next; each epoch has each of its rows once."""
    stages = np.array([7, 0, 0, 7, 3, 0, 7, 0, 3, 0, 0])
    got = flat(RowOrder(11, 4, 3, 5, stages), 9)
    assert [len(RowOrder(11, 4, 3, 5, stages).rows(s)) for s in range(9)] == [4] * 8 + [1]
    easy, middle, hard = got[:18], got[18:24], got[24:]
    for rows, members in ((easy, [1, 2, 5, 7, 9, 10]), (middle, [4, 8]), (hard, [0, 3, 6])):
        epochs = np.array(rows).reshape(3, -1)
        assert all(sorted(epoch) == members for epoch in epochs.tolist())
    assert len({tuple(e) for e in np.array(easy).reshape(3, -1).tolist()}) == 3
    late = RowOrder(11, 4, 3, 5, stages).rows(5)  # no memory of earlier steps
    assert late.tolist() == got[20:24]
    assert flat(RowOrder(11, 4, 3, 6, stages), 9) != got
    # Stages of one size have permutations of their own.
    same = np.array(flat(RowOrder(12, 6, 1, 0, np.repeat([0, 1], 6)), 2)).reshape(2, 6)
    assert same[1].tolist() != (same[0] + 6).tolist()


def test_one_stage_is_no_stage() -> None:
    plain = flat(RowOrder(10, 4, 3, 7), 8)
    assert flat(RowOrder(10, 4, 3, 7, np.full(10, 4)), 8) == plain


def test_training_in_stages(tmp_path: Path) -> None:
    """A training of one epoch is the same as the training on rows in that order, and resumes."""
    tokenizer: Any = agreement_tokenizer()
    data, soft = encoded_rows(tokenizer), soft_labels()
    stages = difficulty_stages(data.lengths, 3)
    cfg, loss = replace(BASE, epochs=1, checkpoint_every=1, schedule="constant"), make_loss("xent")

    def run(stages: np.ndarray | None, **options: Any) -> tuple[list[float], Any]:
        model = small_model(tokenizer)
        log = train(model, data, soft, loss, cfg, 3, stages=stages, **options)
        return log["losses"], module_tensors(model)

    straight, weights = run(stages)
    assert straight != run(None)[0]
    first = RowOrder(N, cfg.batch_size, 1, 3, stages).rows(0)
    assert set(stages[first]) == {0, 1} and (stages[first] == 0).sum() == 15

    class Killed(Exception):
        pass

    def kill(step: int, _steps: int, _loss: float) -> None:
        if step == 2:
            raise Killed

    with pytest.raises(Killed):
        run(stages, checkpoint_dir=tmp_path, progress=kill)
    with pytest.raises(W2SError, match="stages was"):
        run(stages[::-1].copy(), checkpoint_dir=tmp_path)
    with pytest.raises(W2SError, match="stages"):
        run(None, checkpoint_dir=tmp_path)
    again, resumed = run(stages.astype(np.int32), checkpoint_dir=tmp_path)
    assert again == straight
    assert all((t == resumed[name]).all() for name, t in weights.items())
    with pytest.raises(W2SError, match=r"stages have shape \(3,\)"):
        run(np.zeros(3, np.int64))
    with pytest.raises(W2SError, match="dtype float64"):
        run(np.zeros(N))


@pytest.mark.slow
@pytest.mark.dist
def test_stages_on_two_processes(tmp_path: Path) -> None:
    """Every ZeRO stage has the rows of one process in every step."""
    pytest.importorskip("deepspeed")
    jobs = [{**RECIPE, "stages": 4, "zero_stage": zero} for zero in (0, 1, 2, 3)]
    out = tmp_path / "out.json"
    ranks.run(sharded_training.__file__, 2, {"fits": jobs, "out": str(out)})
    want = fit(**RECIPE, stages=4)
    for got in json.loads(out.read_text()):
        close(got, want)
    assert want["losses"] != fit(**RECIPE)["losses"]
