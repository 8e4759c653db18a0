"""Models that a run pretrains itself: one job each, and what their pretraining depends on."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from helpers.supervised_runs import folder_of

import w2s_fast
from w2s_fast.config import RunConfig, at_seed, from_dict, validate
from w2s_fast.errors import W2SError
from w2s_fast.models import ModelConfig
from w2s_fast.models.backbone import BUILT_IN
from w2s_fast.models.backbone import folder_of as checkpoint_of
from w2s_fast.pipeline.check_fit import check_fit
from w2s_fast.pipeline.job_identity import config_slice
from w2s_fast.pipeline.jobs import plan_jobs
from w2s_fast.tasks import EMBEDDED, TASKS, TaskConfig, task_tokenizer

TINY = {"hidden": 16, "layers": 1, "heads": 2, "steps": 3, "batch_size": 2, "length": 64}


def config(folder: Path, **changes: Any) -> RunConfig:
    problems = {"pretrain": {**TINY, "hidden": 32}, "pretrain_small": TINY}
    sizes = {"n_weak": 12, "n_transfer": 12, "n_test": 8, "answer_tokens": 4}
    values = {
        "task": {"name": "word_problems", **sizes, "word_problems": problems},
        "weak": {"source": "word-problems-small-lm"}, "student": {"source": "word-problems-lm"},
        "weak_train": {"epochs": 1}, "student_train": {"epochs": 1}, "losses": ["xent"],
        "seeds": [0], "output_dir": str(folder), "workers": 1, "threads": 1,
    }  # fmt: skip
    return from_dict({**values, **changes})


def pretrainings(cfg: RunConfig) -> dict[str, dict[str, Any]]:
    jobs = plan_jobs(cfg).jobs
    return {j.name: config_slice(cfg, j, 2) for j in jobs if j.stage == "pretrain"}


@pytest.mark.slow
def test_weak_model_and_student_start_from_models_of_their_own(tmp_path: Path) -> None:
    cfg = config(tmp_path, control=True)
    results = w2s_fast.run(cfg)
    hidden = {}
    for name in ("pretrain/word-problems-small-lm", "pretrain/word-problems-lm"):
        folder = folder_of(results, cfg, name) / "model"
        hidden[name] = json.loads((folder / "config.json").read_text())["hidden_size"]
    assert list(hidden.values()) == [16, 32]
    [run] = results["runs"]
    assert {0 <= run[key] <= 1 for key in ("weak", "student", "ceiling")} == {True}
    longer = EMBEDDED["word-problems-lm"].with_settings(cfg.task, steps=4)
    again = w2s_fast.run(dataclasses.replace(cfg, task=longer))
    computed = {n for n, s in again["provenance"]["stages"].items() if not s["reused"]}
    assert computed == {
        "pretrain/word-problems-lm", "ceiling/0", "student/0/xent", "control/0/xent", "report",
    }  # fmt: skip


def test_pretrainings_depend_on_their_own_settings_and_on_the_text(tmp_path: Path) -> None:
    cfg = config(tmp_path)
    plain, problems = pretrainings(cfg), cfg.task.word_problems
    assert set(plain) == {"pretrain/word-problems-lm", "pretrain/word-problems-small-lm"}

    def changed(**fields: Any) -> set[str]:
        task = dataclasses.replace(
            cfg.task, word_problems=dataclasses.replace(problems, **fields), n_weak=3
        )
        other = pretrainings(dataclasses.replace(cfg, task=task))
        return {name.removeprefix("pretrain/") for name in plain if plain[name] != other[name]}

    small = dataclasses.replace(problems.pretrain_small, lr=1e-3)
    assert changed() == set()
    assert changed(pretrain_small=small) == {"word-problems-small-lm"}
    solvers = dataclasses.replace(problems.solvers, careful=0.4)
    assert changed(solvers=solvers) == set(EMBEDDED) - {"agreement-lm"}
    assert changed(max_steps=4) == changed(distractor_frac=0.1) == changed(solvers=solvers)


def test_bases_differ_by_their_pretraining_seed(tmp_path: Path) -> None:
    bases = ["word-problems-lm", "word-problems-lm:pretrain_seed=4"]
    cfg = config(tmp_path, student_bases=bases)
    found = pretrainings(cfg)
    names = [f"pretrain/{n}" for n in ("word-problems-small-lm", "word-problems-lm")]
    assert list(found) == [*names, "pretrain/word-problems-lm/4"]
    assert found["pretrain/word-problems-lm/4"] == {**found[names[1]], "seed": 4}
    assert at_seed(cfg, 10000).task.word_problems.pretrain.seed == 4
    assert at_seed(cfg, 10000).task.pretrain.seed == 0
    with pytest.raises(W2SError, match=r"task.word_problems.pretrain.seed=-1"):
        at_seed(config(tmp_path, student_bases=["word-problems-lm:pretrain_seed=-1"]), 0)


@pytest.mark.parametrize("source", EMBEDDED)
def test_every_embedded_model_belongs_to_a_task_whose_tokenizer_it_has(source: str) -> None:
    model = EMBEDDED[source]
    assert model.task in TASKS and source in BUILT_IN
    assert task_tokenizer(model.task).get_vocab() == model.tokenizer().get_vocab()
    assert model.positions() == model.tokenizer().model_max_length
    assert model.config(model.with_settings(TaskConfig(), seed=3)).seed == 3
    with pytest.raises(W2SError, match=f"{source}' has to be pretrained first.*_lm.pretrain"):
        checkpoint_of(ModelConfig(source))
    other = next(name for name in ("agreement", "word_problems") if name != model.task)
    cfg = RunConfig(task=TaskConfig(other), student=ModelConfig(source))
    with pytest.raises(W2SError, match=f"knows only the language of task '{model.task}'"):
        validate(cfg)


def test_prompts_must_leave_room_for_answers(tmp_path: Path) -> None:
    cfg = config(tmp_path)
    check_fit(cfg, "generation", 2)
    task = dataclasses.replace(cfg.task, answer_tokens=512)
    with pytest.raises(W2SError, match="leaves no room for a prompt in the 512 tokens of the weak"):
        check_fit(dataclasses.replace(cfg, task=task), "generation", 2)


def test_a_task_without_a_tokenizer_has_none() -> None:
    assert task_tokenizer("gsm8k") is None
