"""Stage `text_labels`: the completions, or pairs of them, that a method's function makes of texts;
and what models compute of them: stages `pair_logprob`, `reference` and `perplexity`."""

from __future__ import annotations

from typing import Any

import numpy as np

from w2s_fast.errors import W2SError
from w2s_fast.methods import PairLabels, Prompts, Samples, TextLabels, make_method
from w2s_fast.pipeline.artifacts import LABELS, PAIR_LOGPROB, PERPLEXITY, SAMPLES, read_texts
from w2s_fast.pipeline.context import Context
from w2s_fast.pipeline.stages.build_model import job_model
from w2s_fast.pipeline.stages.training_set import load_training_set, max_length
from w2s_fast.pipeline.text_files import read_samples, write_text_labels
from w2s_fast.store import StageBuild


def text_labels(ctx: Context, build: StageBuild) -> None:
    """Call a method's function with its texts, and store the labels it returns."""
    method = make_method(ctx.job.setting("method"))
    function = getattr(method, ctx.job.setting("function"))
    items = ctx.inputs("transfer")
    texts = {name: _read(ctx, name, items.ids) for name, _ in ctx.job.inputs}
    labels: Any = function(prompts=Prompts(items.ids, items.texts), **texts, seed=ctx.seed)
    expected = PairLabels if ctx.job.setting("pairs") else TextLabels
    if not isinstance(labels, expected):
        raise W2SError(
            f"{type(method).__name__}.{ctx.job.setting('function')} gave "
            f"{type(labels).__name__}; expected {expected.__name__}"
        )
    labels.check(len(items))
    ctx.write(lambda: write_text_labels(build.path, items.ids, labels))


def _read(ctx: Context, name: str, ids: tuple[str, ...]) -> Samples:
    """Return an input as N lists of texts: samples, or one completion each."""
    folder = ctx.input(name)
    if (folder / SAMPLES).exists():
        return read_samples(folder / SAMPLES, ids)
    return [[text] for text in read_texts(folder / LABELS, ids).values()]


def pair_logprob(ctx: Context, build: StageBuild) -> None:
    """Store the log-probabilities (R, 2) of the pairs of a method, or of the items of a split."""
    from w2s_fast.training import reference_logprob

    model, tokenizer = job_model(ctx)
    rows: Any
    if split := ctx.job.setting("split"):
        rows = ctx.kind.encode(tokenizer, ctx.inputs(split), max_length(ctx))
    else:
        rows = load_training_set(ctx).encode(ctx, tokenizer)[0]
    logprob = reference_logprob(model, rows)
    ctx.write(lambda: np.save(build.path / PAIR_LOGPROB, logprob, allow_pickle=False))


def perplexity(ctx: Context, build: StageBuild) -> None:
    """Store the perplexities (R,) of completions, their end tokens included."""
    from w2s_fast.training import completion_logprob
    from w2s_fast.training import perplexity as perplexity_of

    model, tokenizer = job_model(ctx)
    rows: Any = load_training_set(ctx).encode(ctx, tokenizer)[0]
    values = perplexity_of(completion_logprob(model, rows), np.diff(rows.starts))
    ctx.write(lambda: np.save(build.path / PERPLEXITY, values, allow_pickle=False))
