"""How a task is put to a language model: its question, a word for each class, and overrides."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.task_data import SMALL, fails, local_config, numbered_rows, write_rows

from w2s_fast.tasks import TaskConfig, get_task
from w2s_fast.tasks.datasets import agreement


def test_agreement_is_asked_for_its_verb() -> None:
    data = get_task("agreement").load(TaskConfig(**SMALL), 0)
    assert (data.prompt, data.words) == ("{text}", (" is", " are"))
    tokenizer = agreement.tokenizer()
    for word in data.words:
        text = data.prompt.replace("{text}", data.test.texts[0])
        before, after = tokenizer(text)["input_ids"], tokenizer(text + word)["input_ids"]
        assert after[:-1] == before and tokenizer.decode(after[-1:]) == word.strip()


def test_configuration_comes_before_the_task(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", numbered_rows(60))
    plain = get_task("local").load(local_config(path), 0)
    assert (plain.prompt, plain.words) == ("{text}\n", ())
    own = local_config(path, prompt="Say: {text}", words=("odd", "even"))
    data = get_task("local").load(own, 0)
    assert (data.prompt, data.words) == ("Say: {text}", ("odd", "even"))
    assert data.test.texts == plain.test.texts  # the text stays, only the question is another


@pytest.mark.parametrize("name", ["local", "agreement"])
def test_a_word_for_each_class(tmp_path: Path, name: str) -> None:
    path = write_rows(tmp_path / "a.jsonl", numbered_rows(60))
    cfg = local_config(path, name=name, words=("a", "b", "c"))
    fails(
        lambda: get_task(name).load(cfg, 0), "task.words=['a', 'b', 'c']", "3 words for 2 classes"
    )


def test_other_defaults_leave_what_was_set() -> None:
    cfg = TaskConfig(text="question").with_defaults(text="prompt", label="answer")
    assert (cfg.text, cfg.label) == ("question", "answer")
