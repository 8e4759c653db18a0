"""Stage `samples`: examples before prompts, settings of the sampler, and what it writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers.generation_cases import checkpoint
from helpers.text_runs import TRAIN, text_run

from w2s_fast.config import RunConfig
from w2s_fast.pipeline.artifacts import SAMPLES
from w2s_fast.pipeline.context import Context, load_data
from w2s_fast.pipeline.jobs import Job
from w2s_fast.pipeline.stages.samples import _examples, _sampler, samples
from w2s_fast.pipeline.text_files import read_samples
from w2s_fast.store import StageBuild
from w2s_fast.tasks.datasets.agreement import tokenizer

SETTINGS = {"n": 2, "temperature": 0.7, "top_p": 0.9, "shots": 3, "split": "transfer"}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(checkpoint("llama", tmp_path_factory.mktemp("lm") / "lm", tokenizer()))


@pytest.fixture
def cfg(tmp_path: Path, source: str) -> RunConfig:
    train = {**TRAIN, "max_length": 40}
    model = {"source": source}
    return text_run(tmp_path, ["naive"], task={"answer_tokens": 3}, weak=model, student=model,
                    student_train=train, weak_train={**TRAIN, "max_length": 30})  # fmt: skip


def context(cfg: RunConfig, seed: int = 0, role: str = "student", **settings: Any) -> Context:
    values = {**SETTINGS, "role": role, **settings}
    job = Job("samples", "samples/0", seed, tuple(values.items()))
    return Context(cfg, job, {}, lambda *_: None, lambda _: load_data(cfg.task, 0))


def test_examples_are_solved_prompts_of_the_weak_split(cfg: RunConfig) -> None:
    data = load_data(cfg.task, 0)
    answers, end = data.weak.answers, data.separator
    assert answers is not None
    solved = {p + a for p, a in zip(data.weak.texts, answers, strict=True)}
    shown, cut = _examples(context(cfg))
    parts = shown.split(end)
    assert parts.pop() == "" and len(set(parts)) == 3 and solved.issuperset(parts)
    assert cut(f" 7{end}8 + 1 ={end}") == " 7" and cut(" 7") == " 7"
    assert _examples(context(cfg))[0] == shown != _examples(context(cfg, seed=1))[0]
    everything, _ = _examples(context(cfg, shots=1000))
    assert sorted(everything.split(end)[:-1]) == sorted(solved)
    nothing, keep = _examples(context(cfg, shots=0))
    assert nothing == "" and keep(f" 7{end}8") == f" 7{end}8"


def test_the_sampler_has_the_settings_of_the_job(cfg: RunConfig) -> None:
    for role, length in (("student", 40), ("weak", 30)):
        sampler = _sampler(context(cfg, role=role))
        assert (sampler.temperature, sampler.top_p) == (0.7, 0.9)
        assert (sampler.max_new_tokens, sampler.max_length) == (3, length)


def test_the_stage_writes_what_the_sampler_draws_after_the_examples(
    cfg: RunConfig, tmp_path: Path
) -> None:
    ids, drawn = load_data(cfg.task, 0).transfer.ids, []
    for seed in (0, 1):
        ctx, folder = context(cfg, seed=seed), tmp_path / f"stage{seed}"
        folder.mkdir()
        samples(ctx, StageBuild(folder, None))
        drawn.append(read_samples(folder / SAMPLES, ids))
        shown, cut = _examples(ctx)
        prompts = [shown + text for text in ctx.inputs("transfer").texts]
        expected = _sampler(ctx).sample(prompts, 2, seed=seed)
        assert drawn[-1] == [[cut(text) for text in own] for own in expected]
    assert drawn[0] != drawn[1] and len({text for own in drawn[0] for text in own}) > 10
