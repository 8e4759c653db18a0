"""What a stage would raise after others have run is raised before the first one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.toy_run import config

import w2s_fast
from w2s_fast.errors import W2SError
from w2s_fast.tasks.datasets import agreement

SCRATCH = {"source": "scratch", "hidden": 8, "heads": 2}
ROWS = [{"text": f"text {i}", "label": "abc"[i % 3]} for i in range(300)]
ANSWERS = [{"prompt": f"say {i}", "answer": str(i)} for i in range(300)]


def checkpoint(folder: Path, **settings: int) -> str:
    """Write a small language model with its tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    small = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}
    tokenizer = agreement.tokenizer()
    architecture = LlamaConfig(vocab_size=len(tokenizer), **{**small, **settings})
    LlamaForCausalLM(architecture).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def jsonl(path: Path, rows: list[dict[str, str]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def refused(tmp_path: Path, changes: dict[str, Any]) -> str:
    """Run; return the line with which it ends before the first stage."""
    with pytest.raises(W2SError) as err:
        w2s_fast.run(config(tmp_path / "out", **changes))
    assert not list((tmp_path / "out").glob("cache/[!.]*"))
    assert "\n" not in str(err.value)
    return str(err.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"student": {**SCRATCH, "dtype": "fp16"}},
         "student.dtype is 'fp16' at student_train.zero_stage=0, which has no loss scaling"),
        ({"weak": {**SCRATCH, "dtype": "fp16"}},
         "weak.dtype is 'fp16' at weak_train.zero_stage=0"),
        ({"student_train": {"gradient_checkpointing": True}},
         "student.source is 'bow', which has no gradient checkpointing"),
        ({"student_train": {"zero_stage": 1, "deepspeed_config": "none.json"}},
         "student_train: cannot read the DeepSpeed configuration none.json"),
        ({"methods": ["elicit"]}, "a method needs the student's language model (stage 'prior')"),
        ({"methods": ["generative_finetuning"]}, "(stage 'tuned'), and student.source='bow'"),
        ({"methods": ["ccs"]}, "a method needs hidden states of the student"),
        ({"methods": ["ccs:layer=4"], "student": SCRATCH},
         "a method reads layer=4 of the student; expected 0 to 1"),
        ({"methods": ["ccs:layer=4"], "student": {"source": "agreement-lm"}}, "expected 0 to 3"),
        ({"methods": ["conformal:alpha=0.01"]}, "alpha is 0.01, half of the rows are 24"),
        ({"methods": ["debate"], "student": {"source": "agreement-lm"}},
         "transcript_writer.max_tokens=256: the student's language model reads 128 tokens"),
        ({"methods": ["debate"]}, "student.source='bow' is none"),
        ({"methods": ["anchor"]}, "anchor=0.1 for the student model with source='bow'; expected a"),
        ({"weak_train": {"anchor": 2.0}}, "anchor=2 for the weak model with source='bow'"),
        ({"methods": ["mixup"], "student_train": {"batch_size": 15}},
         "mixup is 0.2 with 15 rows in a micro-batch"),
        ({"weak_train": {"mixup": 0.3, "micro_batch_size": 1}}, "mixup is 0.3 with 1 rows"),
        ({"methods": ["naive", "mixup|mean_teacher"], "student": SCRATCH},
         "a method makes its targets in steps"),
        ({"methods": ["co_teaching"], "student": SCRATCH, "student_train": {"mixup": 0.2}},
         "and mixup mixes them; expected one of the two"),
        ({"methods": ["co_teaching"], "student": SCRATCH, "student_train": {"anchor": 0.2}},
         "anchor=0.2 keeps the states of one student near, and a method trains two"),
        ({"methods": ["anchor|co_teaching"], "student": SCRATCH},
         "anchor=0.1 keeps the states of one student near"),
        ({"methods": ["naive", "explicit_conflict|mixup"]},
         "learns against true classes, which mixup has none of"),
        ({"methods": ["soup"], "student": SCRATCH},
         "a method averages students of 3 seeds, which start from other random weights"),
    ],
)  # fmt: skip
def test_before_the_first_stage(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    assert words in refused(tmp_path, changes)


def test_models_in_folders(tmp_path: Path) -> None:
    """Positions, layers and tokenizer of a checkpoint are known from its folder."""
    folder = checkpoint(tmp_path / "lm", max_position_embeddings=64, num_hidden_layers=2)
    student: dict[str, Any] = {"student": {"source": folder}}
    for changes, words in (
        ({"methods": ["debate"], "transcript_writer": {"max_tokens": 64}}, "reads 64 tokens"),
        ({"methods": ["ccs:layer=3"]}, "expected 0 to 2, 'half' or 'last' for a model of 2 layers"),
    ):
        assert words in refused(tmp_path, {**student, **changes})
    (tmp_path / "lm" / "tokenizer.json").unlink()
    assert "student: " in (line := refused(tmp_path, student)) and "has no tokenizer" in line
    (tmp_path / "lm" / "config.json").unlink()
    assert "config.json" in refused(tmp_path, student)


def test_tasks_of_other_kinds(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "lm", max_position_embeddings=64)
    sizes = {"n_weak": 40, "n_transfer": 48, "n_test": 40}
    answers = {"name": "local_answers", "path": jsonl(tmp_path / "a.jsonl", ANSWERS), **sizes}
    classes = {"name": "local", "path": jsonl(tmp_path / "c.jsonl", ROWS), **sizes, "n_test": 42,
               "n_weak": 42}  # fmt: skip
    model = {"source": folder}
    for changes, words in (
        ({"task": answers, "student": model}, "weak.source='bow' with freeze='none' cannot"),
        ({"task": answers, "student": model, "weak": model},
         "task.answer_tokens is 256, which leaves no room for a prompt in the 64 tokens of the w"),
        ({"task": classes, "student": model, "methods": ["ccs"]},
         "method 'ccs' contrasts two classes, the task has 3"),
        ({"task": {**answers, "answer_tokens": 8}, "student": model, "weak": model,
          "student_train": {"anchor": 0.1}},
         "anchor=0.1 for the student model with task 'local_answers' of kind 'generation'"),
    ):  # fmt: skip
        assert words in refused(tmp_path, changes)


def test_what_fits_passes(tmp_path: Path) -> None:
    """Settings next to those that are refused."""
    from w2s_fast.pipeline.check_fit import check_fit

    folder = checkpoint(tmp_path / "lm", max_position_embeddings=64, num_hidden_layers=2)
    for changes in (
        {"methods": ["debate", "ccs:layer=2"], "student": {"source": folder},
         "transcript_writer": {"max_tokens": 32}},
        {"methods": ["ccs:layer=1"], "student": SCRATCH},
        {"methods": ["conformal:alpha=0.05"], "weak": {"source": "bow", "dtype": "fp16"}},
        {"student": {**SCRATCH, "dtype": "bf16"}},
        {"methods": ["anchor"], "student": SCRATCH, "student_train": {"anchor": 1.0}},
    ):  # fmt: skip
        check_fit(config(tmp_path, **changes), "classification", 2)
