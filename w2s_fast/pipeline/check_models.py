"""Check, before anything is computed, that the checkpoints of a run load.

The student is used after the supervisor has been trained and has labelled its data: a checkpoint
that does not load must not be found then.
"""

from __future__ import annotations

import functools
from pathlib import Path

from w2s_fast.config import RunConfig, model_of
from w2s_fast.errors import W2SError
from w2s_fast.files import tree_stamp
from w2s_fast.models import BUILT_IN, ModelConfig, build_model, load_tokenizer
from w2s_fast.pipeline.jobs import plan_jobs

# Stages that use a model's own head, so that it must be a language model.
LANGUAGE_MODEL_STAGES = ("tuned", "prior", "transcripts")


def check_models(cfg: RunConfig, kind: str) -> None:
    """Build every checkpoint without its weights.

    Args:
        cfg: Configuration of the run.
        kind: Kind of its task.

    Raises:
        W2SError: A checkpoint or its tokenizer does not load.
    """
    for role, kind_of_model in _kinds(cfg, kind):
        model = model_of(cfg, role)
        if model.source in BUILT_IN:
            continue
        try:
            _check_checkpoint(model, kind_of_model, tree_stamp(Path(model.source)))
        except W2SError as err:
            raise W2SError(f"{role}.source: {err}") from err


def _kinds(cfg: RunConfig, kind: str) -> list[tuple[str, str]]:
    """Return each role with the kinds of model that are built for it."""
    pairs: dict[tuple[str, str], None] = {}
    for job in plan_jobs(cfg).jobs:
        if role := job.setting("role"):
            language_model = job.stage in LANGUAGE_MODEL_STAGES or model_of(cfg, role).preference
            pairs[role, "generation" if language_model else kind] = None
    return list(pairs)


@functools.lru_cache(maxsize=64)  # cells of a sweep share models
def _check_checkpoint(model: ModelConfig, kind: str, _stamp: str) -> None:
    tokenizer = load_tokenizer(model)
    build_model(model, n_classes=2, tokenizer=tokenizer, seed=0, kind=kind, empty=True)
