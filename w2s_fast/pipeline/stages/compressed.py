"""Stage `compressed`: the student's backbone at a low rank, distilled from the full one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from w2s_fast.config import train_of
from w2s_fast.models.weights import gathered
from w2s_fast.pipeline.artifacts import PRETRAINED
from w2s_fast.pipeline.context import Context
from w2s_fast.pipeline.stages.build_model import new_model, read_features, save_backbone
from w2s_fast.pipeline.stages.training_set import max_length
from w2s_fast.store import StageBuild


def compressed(ctx: Context, build: StageBuild) -> None:
    """Train the products of every layer on the stored states of the full model, without labels."""
    from w2s_fast.losses.features import FeatureDistillation
    from w2s_fast.models.low_rank import FeatureModel, factorise
    from w2s_fast.training import train

    model: Any
    model, tokenizer = new_model(ctx, ctx.job.setting("role"))
    factorise(model.base, ctx.job.setting("share"), ctx.world, keep_full=True)
    states = read_features(ctx.input("transfer")).float().numpy()
    targets = np.concatenate([states, np.zeros((len(states), 1), states.dtype)], axis=1)
    rows: Any = ctx.kind.encode(tokenizer, ctx.inputs("transfer"), max_length(ctx))
    cfg = replace(train_of(ctx.cfg, ctx.job.setting("role")), mixup=0.0)
    loss = FeatureDistillation(strength=ctx.job.setting("strength"))
    train(
        FeatureModel(model, ctx.job.setting("bound")), rows, targets, loss, cfg, ctx.seed,
        checkpoint_dir=build.checkpoint, progress=ctx.progress,
    )  # fmt: skip
    with gathered(model.base.parameters()):
        ctx.write(lambda: save_backbone(model, tokenizer, build.path / PRETRAINED))
