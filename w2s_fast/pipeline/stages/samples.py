"""Stage `samples`: completions of the prompts of a split, after examples if a method asks for them.

The examples are prompts of the weak split with their true answers, so a method that asks for them
uses true labels of that split; reports list this.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from w2s_fast.config import train_of
from w2s_fast.pipeline.artifacts import SAMPLES
from w2s_fast.pipeline.context import Context
from w2s_fast.pipeline.stages.build_model import job_model, pretrained_model
from w2s_fast.pipeline.stages.predict import write_parts
from w2s_fast.pipeline.text_files import write_samples
from w2s_fast.sampling import GenerateSampler
from w2s_fast.store import StageBuild

PART_ROWS = 1_000  # prompts per file, and the most that a kill can cost


def samples(ctx: Context, build: StageBuild) -> None:
    """Write n completions of every prompt; the parts are the same for any number of processes."""
    items, sampler = ctx.inputs(ctx.job.setting("split")), _sampler(ctx)
    examples, cut = _examples(ctx)

    def write(rows: range, path: Path) -> None:
        part = items.take(rows)
        prompts = [examples + text for text in part.texts]
        drawn = sampler.sample(prompts, ctx.job.setting("n"), seed=ctx.seed)
        texts = [[cut(text) for text in own] for own in drawn]
        ctx.write(lambda: write_samples(path, part.ids, texts))

    write_parts(ctx, build, SAMPLES, items, PART_ROWS, write)


def _sampler(ctx: Context) -> GenerateSampler:
    model: Any
    model, tokenizer = job_model(ctx)
    return GenerateSampler(
        model=model,
        tokenizer=tokenizer,
        max_new_tokens=ctx.cfg.task.answer_tokens,
        temperature=ctx.job.setting("temperature"),
        top_p=ctx.job.setting("top_p"),
        max_length=train_of(ctx.cfg, ctx.job.setting("role")).max_length,
        guide=_guide(ctx),
    )


def _guide(ctx: Context) -> Callable[[Any], Any] | None:
    """Return what draws from (1 + a) z - a z_0 for a job with a contrast a; None without one."""
    from w2s_fast.integrations.decoding import guided

    if not (contrast := ctx.job.setting("contrast", 0.0)):
        return None
    untrained: Any = pretrained_model(ctx)[0]
    before, alpha = untrained.lm.eval(), ctx.job.setting("plausible")
    return lambda mask: guided(before, 1 + contrast, alpha=alpha, attention_mask=mask)


def _examples(ctx: Context) -> tuple[str, Callable[[str], str]]:
    """Return the text that precedes every prompt, and what cuts a completion at its end."""
    shots, separator = ctx.job.setting("shots"), ctx.task.separator
    if not shots:
        return "", lambda text: text
    weak = ctx.gold("weak")
    assert weak.answers is not None, "generation tasks have answers"
    rows = Random(ctx.seed).sample(range(len(weak)), min(shots, len(weak)))
    shown = "".join(f"{weak.texts[r]}{weak.answers[r]}{separator}" for r in rows)
    return shown, lambda text: text.partition(separator)[0]
