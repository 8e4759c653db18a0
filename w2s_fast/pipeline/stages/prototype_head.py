"""Students whose head is computed from class prototypes; nothing is trained."""

from __future__ import annotations

import json
from typing import Any

import torch

from w2s_fast.config import model_of, train_of
from w2s_fast.models.weights import gathered, save_weights
from w2s_fast.pipeline.artifacts import LOG, MODEL
from w2s_fast.pipeline.context import Context
from w2s_fast.pipeline.stages.build_model import head_model, new_model, read_features
from w2s_fast.pipeline.stages.predict import predict_test
from w2s_fast.pipeline.stages.training_set import load_training_set, stored_rows
from w2s_fast.store import StageBuild
from w2s_fast.training.deepspeed.partition import gather_in_forward


def prototype_student(ctx: Context, build: StageBuild) -> None:
    """Set the head of the untrained student, and predict the test items."""
    from w2s_fast.probing.prototype_head import prototype_head

    training_set = load_training_set(ctx)
    _, rows = stored_rows(ctx, training_set.items, "transfer")
    settings = {name: ctx.job.setting(name) for name in ("tau", "alpha", "rare")}
    features = read_features(ctx.input("transfer"))[rows]
    head = prototype_head(features, training_set.weak_labels, training_set.weight, **settings)
    role, model = ctx.job.setting("role"), None
    if ctx.job.setting("freeze"):
        model, tokenizer = head_model(ctx)
    else:
        model, tokenizer = new_model(ctx, role)
        gather_in_forward(model, train_of(ctx.cfg, role), model_of(ctx.cfg, role).dtype)
    _set(model, head)
    save_weights(model, build.path / MODEL, ctx.world)
    predict_test(ctx, build, model, tokenizer)
    text = json.dumps({"steps": 0}) + "\n"
    ctx.write(lambda: (build.path / LOG).write_text(text, encoding="utf-8"))


@torch.no_grad()
def _set(model: Any, head: torch.nn.Linear) -> None:
    for name, t in model.head.named_parameters():
        with gathered([t], change=True):
            t.copy_(getattr(head, name))
