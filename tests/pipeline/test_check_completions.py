"""Completions that no policy of a run can read are counted before anything is computed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.generation_cases import checkpoint
from helpers.text_runs import TRAIN, policy_run

import w2s_fast
from w2s_fast.config import RunConfig
from w2s_fast.errors import W2SError
from w2s_fast.pipeline.check_completions import check_completions
from w2s_fast.pipeline.context import load_data
from w2s_fast.tasks.datasets.agreement import tokenizer
from w2s_fast.training import encode_pairs

LONG = " key" * 30  # 31 tokens with the end


def write_pairs(path: Path, n: int, long: int, side: str = "chosen") -> str:
    """Write pairs of which the first ``long`` have a completion of 31 tokens."""
    rows = []
    for i in range(n):
        row = {"prompt": f"the old boy {path.stem} {i}", "chosen": " cat", "rejected": " dog"}
        rows.append(row | ({side: LONG} if i < long else {}))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def run_of(folder: Path, changes: dict[str, Any], weak: int = 16, student: int = 16) -> RunConfig:
    """Return a run of policies that read so many tokens; all pairs but the conflict's are long."""
    source = folder / "lm"
    if not source.exists():
        checkpoint("llama", source, tokenizer())
    model = {"source": str(source), "preference": "simpo"}
    values = {
        "task": {"path": write_pairs(folder / "own.jsonl", 240, 240, "rejected")},
        "weak": model,
        "student": model,
        "weak_train": {**TRAIN, "max_length": weak},
        "student_train": {**TRAIN, "max_length": student},
    }
    return policy_run(folder, "simpo", **{**values, **changes})


def check(cfg: RunConfig) -> None:
    check_completions(cfg, {0: load_data(cfg.task, 0)})


def test_the_first_split_that_does_not_fit_is_named(tmp_path: Path) -> None:
    message = (
        r"weak_train.max_length=30: 60 of 60 pairs of the weak split have completions that leave "
        r"no room for their prompts, item '\w+' for instance, .*; set weak_train.max_length=31 or"
    )
    with pytest.raises(W2SError, match=message):
        w2s_fast.run(run_of(tmp_path, {}, weak=30))
    assert not list((tmp_path / "out").glob("cache/[!.]*"))
    message = "student_train.max_length=16: 60 of 60 pairs of the transfer split"
    with pytest.raises(W2SError, match=message):
        check(run_of(tmp_path, {}, weak=31))
    check(run_of(tmp_path, {}, weak=31, student=31))


def test_the_count_is_that_of_the_rows_that_do_not_fit(tmp_path: Path) -> None:
    """As many as ``encode_pairs`` finds; one of them is named."""
    own = write_pairs(tmp_path / "some.jsonl", 240, 40)
    long_word = '" d' + "o" * 60 + 'g"'  # one token of many bytes: tokenized, and short enough
    Path(own).write_text(Path(own).read_text().replace('" dog"', long_word))
    cfg = run_of(tmp_path, {"task": {"path": own}})
    weak = load_data(cfg.task, 0).weak
    assert weak.pairs is not None and weak.prompts is not None
    long = [i for i, both in zip(weak.ids, zip(weak.texts, weak.pairs, strict=True), strict=True)
            if any("key" in text for text in both)]  # fmt: skip
    assert 0 < len(long) < 30
    message = rf"{len(long)} of 60 pairs of the weak split .* item '{long[0]}'"
    with pytest.raises(W2SError, match=message):
        check(cfg)
    sides = ([t[len(p) :] for p, t in zip(weak.prompts, texts, strict=True)]
             for texts in (weak.texts, weak.pairs))  # fmt: skip
    with pytest.raises(W2SError, match=f"one of {len(long)} such pairs of 60: use max_length=31"):
        encode_pairs(tokenizer(), weak.prompts, *sides, max_length=16)


def test_only_what_a_policy_reads_is_checked(tmp_path: Path) -> None:
    conflict = write_pairs(tmp_path / "conflict.jsonl", 30, 3)
    own = write_pairs(tmp_path / "short.jsonl", 240, 0)
    task = {"path": own, "conflict_path": conflict}
    check(run_of(tmp_path, {"task": task}))
    methods = ["naive", "implicit_conflict"]
    with pytest.raises(
        W2SError, match="student_train.max_length=16: 3 of 30 .* the conflict split"
    ):
        check(run_of(tmp_path, {"task": task, "methods": methods}))
    source = {"source": str(tmp_path / "lm")}
    check(run_of(tmp_path, {"weak": source, "student": source}))  # reward models truncate
    student = {"source": str(tmp_path / "lm"), "preference": "simpo"}
    with pytest.raises(W2SError, match="student_train.max_length=16: 60 of 60 pairs of the trans"):
        check(run_of(tmp_path, {"weak": source, "student": student}))
