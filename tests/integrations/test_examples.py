"""The examples: each runs, and trains what the trainer's own loss, or the formula, trains."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import ranks
from helpers.example_trainings import (
    EXAMPLES,
    PLAIN,
    WHOLE,
    Reference,
    descent,
    door,
    hard_rows,
    losses,
    reference,
    same,
    tiny,
)
from torch import Tensor

import w2s_fast
from w2s_fast.errors import W2SError
from w2s_fast.integrations.batches import WeakLabelCollator
from w2s_fast.integrations.patching import progress_callback


def test_compute_loss_func_is_the_trainers_own(certain: None, tmp_path: Path) -> None:
    """Hard labels: the model's own cross-entropy.

    Accumulated, the Trainer's own loss of a classifier is too large by the number of micro-batches
    (transformers 5.23), so it gets whole batches.
    """
    from transformers import DataCollatorWithPadding, Trainer

    ours = door("hf_compute_loss_func").main(str(tmp_path), "xent", **PLAIN | WHOLE)
    data = [
        {"input_ids": row["input_ids"], "labels": int(np.argmax(row["labels"]))}
        for row in ours.train_dataset
    ]
    collator = DataCollatorWithPadding(tiny.tokenizer)
    theirs = Trainer(tiny.classifier(), ours.args, train_dataset=data, data_collator=collator)
    theirs.train()
    same(ours.model, theirs.model)
    assert losses(ours) == pytest.approx(losses(theirs), abs=1e-5) and len(losses(ours)) == 3


def test_compute_loss_func_accumulates_and_ramps(tmp_path: Path) -> None:
    run = door("hf_compute_loss_func").main
    parts, whole = (run(str(tmp_path), "xent", **PLAIN | size) for size in ({}, WHOLE))
    same(parts.model, whole.model)
    ramped = losses(run(str(tmp_path), "logconf:aux_coef=0.5,warmup_frac=0.5", **PLAIN))
    assert ramped[0] == pytest.approx(losses(parts)[0])
    assert abs(ramped[1] - losses(parts)[1]) > 1e-3


def test_bare_loop() -> None:
    same(door("bare_loop").main(aux=0.0, adam=descent).lm, reference(6, 8, True))


@pytest.mark.slow
def test_trainer_is_its_own(certain: None, tmp_path: Path) -> None:
    """A certain judge is the model's own loss of its labels, micro-batches accumulated."""
    from transformers import Trainer

    ours = door("hf_trainer").main(str(tmp_path), "xent", **PLAIN)
    theirs = Trainer(
        tiny.lm(), ours.args, train_dataset=hard_rows(tiny.rows()),
        data_collator=WeakLabelCollator(tiny.tokenizer),
    )  # fmt: skip
    theirs.train()
    same(ours.model, theirs.model)
    assert losses(ours) == pytest.approx(losses(theirs), abs=1e-5)


@pytest.mark.slow
def test_trainer_accumulates_doubts(tmp_path: Path) -> None:
    """Soft, weighted labels against the formula, in micro-batches and whole."""
    from transformers import Trainer

    class Formula(Trainer):
        def compute_loss(self, model: Any, inputs: Any, *_: Any, **__: Any) -> Tensor:
            return Reference(model)(inputs) / len(inputs["input_ids"])

    run = door("hf_trainer").main
    parts, whole = (run(str(tmp_path), "xent", **PLAIN | size) for size in ({}, WHOLE))
    args = replace(whole.args, remove_unused_columns=False)
    collator = whole.data_collator
    theirs = Formula(tiny.lm(), args, train_dataset=tiny.rows(), data_collator=collator)
    theirs.train()
    same(parts.model, theirs.model)
    same(whole.model, theirs.model)


@pytest.mark.parametrize(
    ("settings", "own", "problem"),
    [
        ({}, True, "computed a loss of its own in this step"),
        ({"label_smoothing_factor": 0.1}, False, "label_smoothing_factor=0.1 needs logits"),
    ],
    ids=["its own loss", "smoothing"],
)
def test_a_trainer_that_does_not_ask_the_model(
    settings: dict[str, Any], own: bool, problem: str, tmp_path: Path
) -> None:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    lm = w2s_fast.patch(tiny.lm(), loss="logconf")
    trainer = (SFTTrainer if own else door("trl_sft").WeakSFTTrainer)(
        lm, SFTConfig(str(tmp_path), **tiny.SETTINGS | tiny.TRL | settings),
        train_dataset=Dataset.from_list(tiny.rows()), processing_class=tiny.tokenizer,
        data_collator=WeakLabelCollator(tiny.tokenizer), callbacks=[progress_callback(lm)],
    )  # fmt: skip
    with pytest.raises(W2SError, match=problem):
        trainer.train()
    with pytest.raises(W2SError, match=r"wrapped by trl\S* after patch"):
        w2s_fast.unpatch(lm)
    plain = tiny.lm()
    SFTTrainer(
        plain, trainer.args, train_dataset=trainer.train_dataset, processing_class=tiny.tokenizer
    )
    with pytest.raises(W2SError, match=r"replaced by trl\S*; .* patch it first"):
        w2s_fast.patch(plain)


def test_the_trainers_of_the_quick_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets import Dataset

    monkeypatch.chdir(tmp_path)
    text = (EXAMPLES.parent / "docs" / "quick_start.md").read_text()
    code = next(b for b in re.findall(r"```python\n(.*?)```", text, re.S) if "SFTTrainer" in b)
    names: dict[str, Any] = {"w2s_fast": w2s_fast}
    exec(code, names)
    lm = tiny.lm()
    trainer = names["weak_sft_trainer"](lm, Dataset.from_list(tiny.rows(16)), tiny.tokenizer)
    trainer.args.logging_steps, trainer.args.learning_rate = 1, 1e-2
    trainer.train()
    found = losses(trainer)
    assert len(found) == 6 and found[-1] < found[0]

    lightning = pytest.importorskip("lightning")

    class Student(lightning.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.lm = w2s_fast.patch(tiny.lm(), loss="logconf")
            self.seen: list[float] = []

        def training_step(self, batch: Any, index: int) -> Tensor:
            self.seen.append(float(loss := names["training_step"](self, batch, index)))
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.1)

    student = Student()
    loader = torch.utils.data.DataLoader(
        tiny.rows(16), 8, collate_fn=WeakLabelCollator(tiny.tokenizer)
    )
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    lightning.Trainer(max_epochs=2, accelerator="cpu", **quiet).fit(student, loader)
    assert len(student.seen) == 4 and student.seen[-1] < student.seen[0]


@pytest.mark.slow
def test_progress_ends_with_the_training(tmp_path: Path) -> None:
    lm = door("trl_sft").main(str(tmp_path), "logconf").model
    batch = WeakLabelCollator(tiny.tokenizer)(tiny.rows()[:2])
    with pytest.raises(W2SError, match="its progress is not set"):
        lm.train()(**batch)


def test_lightning(certain: None) -> None:
    quiet = {"enable_progress_bar": False, "accelerator": "cpu"}
    trainer = door("lightning_module").main(adam=descent, spec="xent", **quiet)
    same(trainer.lightning_module.lm, reference(6, 8, False))
    scheduled = door("lightning_module").main(max_steps=1, **quiet)
    assert scheduled.callback_metrics["loss"] > 0


def test_accelerate() -> None:
    same(door("accelerate_loop").main(adam=descent, spec="xent"), reference(6, 8, False))


def sharded(job: dict[str, Any]) -> None:
    """Every door of several processes in turn; weights to files, from rank 0."""
    from safetensors.torch import save_file

    from w2s_fast.training.deepspeed.setup import load_deepspeed

    def keep(name: str, weights: dict[str, Tensor]) -> None:
        weights = {k: v.detach().clone() for k, v in weights.items()}
        save_file(weights, f"{job['folder']}/{name}-{job['rank']}.safetensors")

    deepspeed = load_deepspeed()
    torch.distributed.init_process_group("gloo")
    for zero in range(4):
        engine = door("deepspeed_engine").main(zero, adam=descent, spec="xent", steps=3, micro=2)
        with deepspeed.zero.GatheredParameters(list(engine.module.parameters())):
            keep(f"zero{zero}", dict(engine.module.named_parameters()))
        engine.destroy()
    model = door("fsdp2").main(adam=descent, spec="xent", steps=3, micro=4)
    keep("fsdp2", {k: v.full_tensor() for k, v in model.named_parameters()})
    model = door("accelerate_loop").main(adam=descent, spec="xent", steps=3, micro=2)
    keep("accelerate", dict(model.named_parameters()))


@pytest.mark.slow
@pytest.mark.dist
def test_two_processes(tmp_path: Path) -> None:
    """Under DDP, ZeRO 0 to 3 and FSDP2: the weights of one process."""
    pytest.importorskip("deepspeed")
    from safetensors.torch import load_file

    ranks.run(__file__, 2, {"folder": str(tmp_path)}, ACCELERATE_USE_CPU="1", DS_ACCELERATOR="cpu")
    expected = reference(3, 8, False)
    for name in ("zero0", "zero1", "zero2", "zero3", "fsdp2", "accelerate"):
        for rank in range(2):
            found = load_file(tmp_path / f"{name}-{rank}.safetensors")
            model = tiny.lm(1)
            model.load_state_dict(found)
            same(model, expected)


if __name__ == "__main__":
    import os

    sharded({**json.loads(sys.argv[1]), "rank": os.environ["RANK"]})
