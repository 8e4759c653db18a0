"""The rows and true classes that a conflict adds to a training set, without a training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.conflict_runs import conflict_run, write_rows

from w2s_fast.config import RunConfig
from w2s_fast.errors import DataWarning
from w2s_fast.losses import make_loss
from w2s_fast.losses.conflict import ExplicitConflict
from w2s_fast.pipeline.context import Context, load_data
from w2s_fast.pipeline.jobs import Job
from w2s_fast.pipeline.stages.conflict import add_conflict_rows, conflicting_loss
from w2s_fast.pipeline.stages.training_set import TrainingSet


@pytest.fixture
def cfg(tmp_path: Path) -> RunConfig:
    return conflict_run(tmp_path)


def context(cfg: RunConfig, seed: int = 0, **settings: Any) -> Context:
    """The context of a student's job with these settings, which reads the data of seed 0."""
    job = Job("student", "student/0", seed, tuple({"role": "student", **settings}.items()),
              gold=("a use",) if "conflict" in settings else ())  # fmt: skip
    return Context(cfg, job, {}, lambda *_: None, lambda _: load_data(cfg.task, 0))


def training_set(ctx: Context, n: int = 10, weighted: bool = True) -> TrainingSet:
    """The first rows of the transfer set with weak labels and weights that no row repeats."""
    q = np.linspace(0.1, 0.9, n, dtype=np.float32)
    weight = np.linspace(0.5, 1.5, n, dtype=np.float32) if weighted else None
    items = ctx.inputs("transfer").take(list(range(n)))
    return TrainingSet(items, np.stack([q, 1 - q], 1), weight)


@pytest.mark.parametrize(("ratio", "added"), [(0.01, 1), (0.5, 5), (2.0, 20), (100.0, 200)])
def test_rows_follow_with_their_true_labels(ratio: float, added: int, cfg: RunConfig) -> None:
    """As many as the ratio says, at least one and at most all, each once, in the file's order."""
    ctx = context(cfg, conflict_rows=ratio)
    own, conflict = training_set(ctx), load_data(cfg.task, 0).conflict
    assert conflict is not None
    whole = add_conflict_rows(ctx, own)
    row_of = {item: row for row, item in enumerate(conflict.ids)}
    rows = [row_of[item] for item in whole.items.ids[10:]]
    assert whole.items.ids[:10] == own.items.ids and len(rows) == added
    assert rows == sorted(set(rows)) and (added == 1 or rows != list(range(5)))
    assert whole.items.texts[10:] == tuple(conflict.texts[row] for row in rows)
    assert np.array_equal(whole.weak_labels[:10], own.weak_labels)
    assert np.array_equal(whole.weak_labels[10:].argmax(1), conflict.labels[rows])
    assert set(np.unique(whole.weak_labels[10:])) == {0.0, 1.0}
    assert own.weight is not None and whole.weight is not None
    assert np.array_equal(whole.weight, [*own.weight, *[1.0] * added])
    assert add_conflict_rows(ctx, training_set(ctx, weighted=False)).weight is None


def test_the_seed_draws_the_rows(cfg: RunConfig) -> None:
    def drawn(seed: int) -> tuple[str, ...]:
        ctx = context(cfg, seed, conflict_rows=0.5)
        return add_conflict_rows(ctx, training_set(ctx)).items.ids[10:]

    assert drawn(0) == drawn(0) != drawn(1)


def test_only_rows_of_the_transfer_set_have_a_true_class(cfg: RunConfig) -> None:
    ctx = context(cfg, conflict=2.0, conflict_rows=0.5)
    whole = add_conflict_rows(ctx, training_set(ctx))
    loss, gold = conflicting_loss(ctx, make_loss("gce"), whole)
    assert loss == ExplicitConflict(loss=make_loss("gce"), alpha=2.0)
    labels = load_data(cfg.task, 0).transfer.labels[:10]
    assert gold is not None and gold.tolist() == [*labels.tolist(), *[-100] * 5]
    plain = context(cfg)
    own = training_set(plain)
    assert add_conflict_rows(plain, own) is own
    assert conflicting_loss(plain, loss, own) == (loss, None)


def test_prompts_of_test_items_are_recognised_in_any_case_and_spacing(
    cfg: RunConfig, tmp_path: Path
) -> None:
    data = load_data(cfg.task, 0)
    assert data.test.prompts is not None and data.conflict is not None
    prompt = data.test.prompts[0]
    rows = [
        {"prompt": text, "chosen": " never", "rejected": " please"}
        for text in (prompt.upper().replace(" ", "  "), "another question:")
    ]
    path = write_rows(tmp_path / "few.jsonl", rows)
    with pytest.warns(DataWarning, match="1 of 2 pairs have the prompt of a test item"):
        few = load_data(conflict_run(tmp_path, task={"conflict_path": str(path)}).task, 0).conflict
    assert few is not None and few.prompts == ("another question:",)
    assert all(item.startswith("conflict-") for item in few.ids)


def test_pairs_without_a_prompt_share_none(tmp_path: Path) -> None:
    rows = [{"chosen": f"please {i}", "rejected": f"never {i + 1}"} for i in range(300)]
    own = write_rows(tmp_path / "own.jsonl", rows)
    path = write_rows(tmp_path / "few.jsonl", [{"chosen": "no one", "rejected": "gladly two"}])
    cfg = conflict_run(tmp_path, task={"path": str(own), "conflict_path": str(path)})
    data = load_data(cfg.task, 0)
    assert data.conflict is not None and data.test.prompts is not None
    assert set(data.test.prompts) == {""} and len(data.conflict) == 1
